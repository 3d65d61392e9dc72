#include "tests/emulator/nccl_world.h"

#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <fstream>

#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

namespace dtensor::testing {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

fs::path scratch_folder() {
  static int last = 0;
  fs::path path = fs::temp_directory_path() / fmt::format("dtensor_nccl_test_{}_{}", getpid(), ++last);
  fs::create_directories(path);
  return path;
}

}  // namespace

World::World(int n) : ranks(n), folder(scratch_folder()), fake(n), options{.deadline = 20s, .poll = 2ms, .grace = 3s} {
  options.flight_recorder_folder = folder.string();
  emulator::set_devices(n);
}

World::~World() {
  std::error_code ignored;
  fs::remove_all(folder, ignored);
}

Strings World::run(const std::function<void(Own)>& f) {
  Strings errors{size_t(ranks)};
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] { errors[size_t(r)] = error_of([&] { run_rank(r, f); }); });
  for (std::thread& t : threads) t.join();
  return errors;
}

void World::run_rank(int r, const std::function<void(Own)>& f) {
  auto memory = cuda::make_allocator(r);
  auto store = std::make_shared<Store>("127.0.0.1", server.port(), 20s);
  auto c = nccl::make_communicator(r, ranks, r, fake.api(r), store, options);
  try {
    f({*c, memory});
  } catch (const Error& e) {
    c->abort(fmt::format("rank {} failed: {}", r, e.what()));
    throw;
  }
}

nlohmann::json World::record(int rank) {
  std::ifstream file(folder / fmt::format("dtensor_flight_recorder_rank{}.json", rank));
  return nlohmann::json::parse(file);
}

Tensor made(const std::shared_ptr<Allocator>& memory, DType t, int64_t n, int rank, size_t item, bool zero) {
  Tensor x(memory, t, {n});
  write_on_host(x, [&](const Tensor& host) {
    for (int64_t i = 0; i < n; ++i)
      fill(host.narrow(0, i, 1),
           zero ? 77 : double(mix(uint64_t(rank) * 7919 + item * 31 + uint64_t(i)) % 3) - (t != DType::boolean));
  });
  return x;
}

Buffers some(const Own& o, int64_t n, DType t) {
  return {made(o.memory, t, n, 0, 0), made(o.memory, t, n, 0, 0, true)};
}
void reduce(const Own& o, int64_t n) { o.comm.all_reduce({some(o, n)}, Reduce::sum).wait(); }
void read(const Own& o) { cuda::synchronize(o.memory->stream()); }

void play(const Scenario& s) {
  INFO(s.name);
  World world(s.ranks);
  world.options.deadline = 250ms, world.options.grace = 1500ms;
  s.script(world);
  auto start = std::chrono::steady_clock::now();
  std::atomic<bool> over = false;
  std::thread release([&] {  // calls that never return would not let the test end either
    while (!over && std::chrono::steady_clock::now() < start + 4s) std::this_thread::sleep_for(5ms);
    world.fake.release();
  });
  Strings errors = world.run([&](Own o) {
    s.program(o);
    read(o);
    o.comm.barrier();
  });
  CHECK(std::chrono::steady_clock::now() - start < 15s);
  over = true;
  release.join();
  for (size_t r = 0; r < errors.size(); ++r) {
    INFO("rank " << r);
    if (s.errors[r].empty())
      CHECK(errors[r] == "");
    else
      CHECK_THAT(errors[r], Catch::Matchers::Contains(s.errors[r]));
  }
  CHECK(world.fake.open() == 0);
  CHECK(world.fake.misuse() == "");
}

int free_port() { return StoreServer("127.0.0.1", 0).port(); }

Strings launch_all(int n, int local, const std::function<void(Rank&)>& f,
                   const std::function<void(int, NcclLaunchOptions&)>& set) {
  FakeNccl fake(n);
  int port = free_port();
  Strings errors{size_t(n)};
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r)
    threads.emplace_back([&, r] {
      Environment e{r, n, r % local, local, "127.0.0.1", port, "test"};
      NcclLaunchOptions options;
      options.nccl = {.deadline = 10s, .poll = 2ms, .grace = 1s};
      options.nccl.flight_recorder_folder = fs::temp_directory_path().string();
      options.threads = 1;
      options.load = [&, r] { return fake.api(r); };
      if (set) set(r, options);
      errors[size_t(r)] = error_of([&] { launch_nccl(e, f, options); });
    });
  for (std::thread& t : threads) t.join();
  CHECK(fake.open() == 0);
  CHECK(fake.misuse() == "");
  return errors;
}

}  // namespace dtensor::testing
