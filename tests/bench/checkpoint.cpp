// checkpoint [FOLDER]: how long training stands still for a checkpoint of a gigabyte, against copying as much memory,
// and how fast it is written, against dd with fsync into the same folder.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "nn/checkpoint/checkpoint.h"

using namespace dtensor;

namespace {

constexpr int ranks = 2, tensors = 16;
constexpr int64_t rows = 1 << 12, columns = 1 << 12;  // 64 MiB of f32 each

double seconds_of(const std::function<void()>& f) {
  auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Each rank's part of what is saved, copied once more into memory that was used before; the fastest of some times.
double memcpy_seconds() {
  double best = 1e9;
  launch(ranks, [&](Rank& rank) {
    size_t bytes = size_t(tensors * rows * columns * 4 / ranks);
    std::vector<char> from(bytes, 1), to(bytes, 2);
    for (int i = 0; i < 5; ++i) {
      rank.communicator().barrier();
      double seconds = seconds_of([&] {
        std::memcpy(to.data(), from.data(), bytes);
        rank.communicator().barrier();
      });
      if (rank.rank() == 0) best = std::min(best, seconds);
    }
  });
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  std::filesystem::path folder = argc > 1 ? argv[1] : "checkpoint_bench";
  double gigabytes = double(tensors * rows * columns * 4) / 1e9, copied = memcpy_seconds(), stalled = 1e9,
         written = 1e9;
  std::filesystem::create_directories(folder);
  launch(ranks, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2");
    nn::CheckpointItems items;
    for (int i = 0; i < tensors; ++i)
      items.emplace_back(fmt::format("x{}", i), ones(mesh, fmt::format("f32[{},{}] dp=Shard(0)", rows, columns)));
    nn::CheckpointWriter writer(mesh);
    for (int i = 0; i < 4; ++i) {
      writer.begin(folder / "one", items);
      auto w = *writer.wait();
      if (rank.rank() == 0 && i > 0)
        stalled = std::min(stalled, w.stalled_seconds), written = std::min(written, w.written_seconds);
    }
  });
  std::string file = (folder / "dd").string();
  double dd = 1e9;
  for (int i = 0; i < 3; ++i)
    dd = std::min(dd, seconds_of([&] {
                    std::string command =
                        fmt::format("dd if=/dev/zero of='{}' bs=64M count={} conv=fsync status=none", file, tensors);
                    if (std::system(command.c_str()) != 0) std::exit(1);
                  }));
  fmt::print("{:.2f} GB of state on {} ranks, the fastest of 3\n", gigabytes, ranks);
  fmt::print("memcpy, warm      {:.3f} s  {:.2f} GB/s\n", copied, gigabytes / copied);
  fmt::print("stands still      {:.3f} s  {:.2f} times memcpy\n", stalled, stalled / copied);
  fmt::print("dd conv=fsync     {:.3f} s  {:.2f} GB/s\n", dd, gigabytes / dd);
  fmt::print("written           {:.3f} s  {:.2f} GB/s, {:.0f} % of dd\n", written, gigabytes / written,
             100 * dd / written);
  std::filesystem::remove_all(folder);
}
