// Timing of what one rank gives its GPU: medians by events, and results as a table and as JSON.
#pragma once

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dtensor/creation.h"
#include "ops/all.h"

namespace dtensor::bench {

using Tensors = std::vector<DistributedTensor>;

class Gpu {
 public:
  // Errors: no GPU.
  Gpu() : rank_(Rank::single(Device::cuda)), mesh_(*rank_, "dp=1") {}

  Rank& rank() const { return *rank_; }
  const DeviceMesh& mesh() const { return mesh_; }
  cuda::StreamHandle stream() const { return rank_->allocator()->stream(); }
  cuda::DeviceProperties properties() const { return cuda::properties(0); }

  DistributedTensor random(DType dtype, const Shape& shape) {
    return ops::cast(
        normal(mesh_, SpecOrText(DType::f32, shape), {.seed = 1, .purpose = "bench", .call = ++calls_}, 0, 1), dtype);
  }
  // i64 in [0, bound)
  DistributedTensor random_ids(const Shape& shape, int64_t bound) {
    DistributedTensor unit =
        uniform(mesh_, SpecOrText(DType::f32, shape), {.seed = 1, .purpose = "bench", .call = ++calls_}, 0, 1);
    return ops::cast(ops::mul(unit, double(bound - 1)), DType::i64);
  }

  // How many sets of inputs of this size are together more than four times the cache, so that none is found there.
  int sets(double bytes) const {
    return int(std::clamp(std::ceil(4.0 * double(properties().l2_bytes) / std::max(bytes, 1.0)), 1.0, 100.0)) + 1;
  }

  // The median of the microseconds that `run(i)` takes on the device, i = 0, 1, ... of `calls`. The device is kept busy
  // until the host has given it all of them, so that launching does not count.
  template <class F>
  double median_us(int calls, F run) {
    constexpr int warm_up = 5;
    double host_us = 0;  // of one call
    for (int round = 0; round < 2; ++round) {
      auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < warm_up; ++i) run(i);
      host_us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / warm_up;
      rank_->synchronize();
    }
    std::vector<cuda::Event> events;
    for (int i = 0; i <= calls; ++i) events.emplace_back(true);
    keep_busy(host_us * calls);
    events[0].record(stream());
    for (int i = 0; i < calls; ++i) {
      run(i);
      events[size_t(i) + 1].record(stream());
    }
    rank_->synchronize();
    std::vector<double> us;
    for (size_t i = 1; i < events.size(); ++i) us.push_back(1e3 * events[i].milliseconds_since(events[i - 1]));
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
  }

  // GB/s of a large copy on the device, bytes read and bytes written: the ceiling of what is bound by memory.
  double copy_rate(int calls, int64_t bytes) {
    Tensor a = random(DType::f32, {bytes / 4}).local(), b(rank_->allocator(), DType::f32, {bytes / 4});
    double us = median_us(calls, [&](int) { cuda::copy(b.bytes_data(), a.bytes_data(), bytes, stream()); });
    return 2e-3 * double(bytes) / us;
  }

 private:
  // Copies of half a gigabyte: at least 0.2 ms each on any device.
  void keep_busy(double us) {
    constexpr int64_t bytes = int64_t(1) << 29;
    int64_t fits = std::min(bytes, properties().memory_bytes / 64);
    if (!busy_.defined()) busy_ = Tensor(rank_->allocator(), DType::f32, {2 * fits / 4});
    for (int i = 0; i < int(us / 200) + 2; ++i)
      cuda::copy(busy_.bytes_data(), busy_.bytes_data() + fits, fits, stream());
  }

  std::shared_ptr<Rank> rank_;
  DeviceMesh mesh_;
  Tensor busy_;
  int64_t calls_ = 0;
};

// --json FILE, --calls N (50), --only TEXT: rows whose names have it; --tokens N (16384): fewer make everything
// smaller, to try the program and not the device. Ends the program with 2 where they are wrong.
struct Options {
  std::string json, only;
  int calls = 50;
  int64_t tokens = 16384;

  Options(int argc, char** argv) {
    auto bad = [&](std::string_view why) {
      fmt::print(stderr, "{}: {}; options: --json FILE --calls N --tokens N --only TEXT\n", argv[0], why);
      std::exit(2);
    };
    for (int i = 1; i < argc; i += 2) {
      std::string_view name = argv[i];
      if (i + 1 == argc) bad(fmt::format("{} has no value", name));
      if (name == "--json") {
        json = argv[i + 1];
      } else if (name == "--only") {
        only = argv[i + 1];
      } else if (name == "--calls" || name == "--tokens") {
        int64_t n = std::atoll(argv[i + 1]);
        if (n < 1 || n > 1 << 24) bad(fmt::format("{} {} is no number from 1 to 2^24", name, argv[i + 1]));
        if (name == "--calls")
          calls = int(n);
        else
          tokens = n;
      } else {
        bad(fmt::format("there is no option {}", name));
      }
    }
  }
  int64_t copy_bytes() const { return std::min(tokens << 16, int64_t(1) << 30); }
  bool wants(std::string_view name) const { return name.find(only) != std::string_view::npos; }
};

// The file that tests/gpu/report.py reads: {"kind", "device", "rows": [...]}.
inline void write_json(const Options& o, const Gpu& gpu, std::string_view kind, const nlohmann::ordered_json& rows) {
  if (o.json.empty()) return;
  std::ofstream file(o.json);
  file << nlohmann::ordered_json{{"kind", kind}, {"device", gpu.properties().name}, {"rows", rows}}.dump(1) << "\n";
  check(file.good(), "[bench] cannot write {}", o.json);
}

// The main function of a program: 2 without a GPU, 1 after an error.
template <class F>
int run(int argc, char** argv, F program) {
  Options o(argc, argv);
  if (std::string why = cuda::unavailable(); !why.empty()) {
    fmt::print(stderr, "{}: {}\n", argv[0], why);
    return 2;
  }
  try {
    return program(o);
  } catch (const Error& e) {
    fmt::print(stderr, "{}: {}\n", argv[0], e.what());
    return 1;
  }
}

}  // namespace dtensor::bench
