// What the emulator shows: missing waits, host reads that are too early, what captures forbid.
#include <cuda_runtime_api.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <thread>
#include <vector>

#include "dtensor/cuda/launch.cuh"
#include "placement/error.h"
#include "tests/emulator/emulator.h"

using namespace dtensor::cuda;
using Catch::Contains;

namespace {

struct Memory {
  explicit Memory(int64_t n) : at(static_cast<float*>(allocate(n * 4))) {}
  Memory(Memory&&) = delete;
  ~Memory() { release(at); }
  float* at;
};
struct Pinned {
  explicit Pinned(int64_t n) : at(static_cast<float*>(allocate_pinned(n * 4))) {}
  Pinned(Pinned&&) = delete;
  ~Pinned() { release_pinned(at); }
  float* at;
};

__global__ void add(float* x, float by) { *x += by; }

void give(const Stream& s, float* x, float by) { launch(add, 1, 1, 0, s.handle(), x, by); }
void copy_one(float* to, const float* from, const Stream& s) { copy(to, from, 4, s.handle()); }
bool is_poison(float x) { return std::isnan(x); }

}  // namespace

TEST_CASE("emulator: new memory is NaN, and nothing runs before the host waits") {
  Stream s;
  Memory a(1);
  Pinned out(1);
  copy_one(out.at, a.at, s);
  synchronize(s.handle());
  CHECK(is_poison(*out.at));
  *out.at = 5;
  zero(a.at, 4, s.handle());
  give(s, a.at, 2);
  copy_one(out.at, a.at, s);
  CHECK(*out.at == 5);  // read too early
  synchronize(s.handle());
  CHECK(*out.at == 2);
}

TEST_CASE("emulator: pageable memory is read at once, pinned memory when the copy runs") {
  Stream s;
  Memory a(2);
  Pinned pinned(1);
  float pageable = *pinned.at = 1;
  copy_one(a.at, &pageable, s);
  copy_one(a.at + 1, pinned.at, s);
  pageable = *pinned.at = 2;
  float seen[2];
  copy(seen, a.at, 8, s.handle());
  synchronize(s.handle());
  CHECK(seen[0] == 1);
  CHECK(seen[1] == 2);
}

TEST_CASE("emulator: a missing wait shows as a wrong value") {
  for (bool waits : {false, true}) {
    Stream producer, consumer;
    Memory a(1);
    Pinned out(1);
    Event ready;
    zero(a.at, 4, producer.handle());
    ready.record(producer.handle());
    give(producer, a.at, 1);  // is behind the event
    if (waits) wait(consumer.handle(), ready);
    copy_one(out.at, a.at, consumer);
    synchronize(consumer.handle());
    CHECK(is_poison(*out.at) == !waits);
    CHECK((waits ? *out.at == 0 : true));
    CHECK(!is_idle(producer.handle()));
  }
}

TEST_CASE("emulator: waits are for what was recorded when they were given") {
  Stream a, b;
  Memory x(1);
  Event e;
  wait(b.handle(), e);  // nothing was recorded
  zero(x.at, 4, a.handle());
  e.record(a.handle());
  wait(b.handle(), e);
  give(a, x.at, 1);
  e.record(a.handle());
  float seen[2] = {-1, -1};
  copy_one(seen, x.at, b);
  synchronize(b.handle());
  CHECK(seen[0] == 0);
  wait(b.handle(), e);
  copy_one(seen + 1, x.at, b);
  synchronize(b.handle());
  CHECK(seen[1] == 1);
}

TEST_CASE("emulator: schedules") {
  auto value_without_wait = [] {
    Stream producer, consumer;
    Memory a(1);
    Pinned out(1);
    zero(a.at, 4, producer.handle());
    copy_one(out.at, a.at, consumer);
    synchronize(consumer.handle());
    return *out.at;
  };
  emulator::set_schedule(emulator::Schedule::lazy);
  CHECK(is_poison(value_without_wait()));
  emulator::set_schedule(emulator::Schedule::eager);
  CHECK(value_without_wait() == 0);
  int poisoned = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    emulator::set_schedule(emulator::Schedule::random, seed);
    poisoned += is_poison(value_without_wait());
  }
  CHECK(poisoned > 10);
  CHECK(poisoned < 90);
}

TEST_CASE("emulator: threads of the host share streams") {
  for (auto schedule : {emulator::Schedule::lazy, emulator::Schedule::random}) {
    emulator::set_schedule(schedule, 1);
    constexpr int ranks = 4, rounds = 50;
    std::vector<Stream> streams(ranks);
    std::vector<Event> done(ranks);
    Memory sums(ranks);
    zero(sums.at, ranks * 4, streams[0].handle());
    synchronize(streams[0].handle());
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r)
      threads.emplace_back([&, r] {
        for (int i = 0; i < rounds; ++i) give(streams[size_t(r)], sums.at + r, 1);
        done[size_t(r)].record(streams[size_t(r)].handle());
        if (r % 2) synchronize(streams[size_t(r)].handle());
      });
    for (std::thread& t : threads) t.join();
    for (Event& e : done) wait(streams[0].handle(), e);
    float seen[ranks];
    copy(seen, sums.at, ranks * 4, streams[0].handle());
    synchronize(streams[0].handle());
    for (float x : seen) CHECK(x == rounds);
  }
}

TEST_CASE("emulator: a graph without a dependency replays in another order than it was captured in") {
  for (bool joins : {false, true}) {
    Stream s, side;
    Memory a(2);
    zero(a.at, 8, s.handle());
    Event fork, written, end;
    Graph::begin(s.handle());
    fork.record(s.handle());
    wait(side.handle(), fork);
    give(s, a.at, 1);
    written.record(s.handle());
    if (joins) wait(side.handle(), written);
    copy_one(a.at + 1, a.at, side);
    end.record(side.handle());
    wait(s.handle(), end);
    Graph g = Graph::end(s.handle());
    CHECK(g.nodes() == 2);
    g.launch(s.handle());
    float seen[2];
    copy(seen, a.at, 8, s.handle());
    synchronize(s.handle());
    CHECK(seen[0] == 1);
    CHECK(seen[1] == (joins ? 1 : 0));
  }
}

TEST_CASE("emulator: what a capture refuses") {
  Stream s, other;
  Memory a(1);
  Pinned pinned(1);
  Event before, inside;
  before.record(other.handle());
  float pageable = 0;
  struct Case {
    const char* says;
    std::function<void()> call;
  };
  const Case cases[] = {
      {"cudaErrorStreamCaptureUnsupported", [&] { synchronize(s.handle()); }},
      {"cudaErrorStreamCaptureUnsupported", [&] { synchronize(other.handle()); }},
      {"cudaErrorStreamCaptureUnsupported", [&] { is_idle(s.handle()); }},
      {"cudaErrorStreamCaptureUnsupported", [&] { before.synchronize(); }},
      {"cudaErrorStreamCaptureUnsupported", [&] { before.is_done(); }},
      {"cudaErrorStreamCaptureUnsupported", [&] { copy_one(a.at, &pageable, s); }},
      {"cudaErrorStreamCaptureUnsupported", [&] { copy_one(&pageable, a.at, s); }},
      {"cudaErrorStreamCaptureIsolation", [&] { wait(s.handle(), before); }},
      {"cudaErrorCapturedEvent",
       [&] {
         inside.record(s.handle());
         inside.synchronize();
       }},
      {"cudaErrorStreamCaptureUnmatched",
       [&] {
         inside.record(s.handle());
         wait(other.handle(), inside);
         Graph::end(other.handle());
       }},
      {"cudaErrorStreamCaptureWrongThread",
       [&] {
         std::string error;
         std::thread([&] {
           try {
             Graph::end(s.handle());
           } catch (const dtensor::Error& e) {
             error = e.what();
           }
         }).join();
         throw dtensor::Error(error);
       }},
  };
  for (const Case& c : cases) {
    INFO(c.says << " of case " << &c - cases);
    Graph::begin(s.handle());
    give(s, a.at, 1);
    CHECK_THROWS_WITH(c.call(), Contains(c.says));
    CHECK_THROWS_WITH(Graph::end(s.handle()), Contains("cudaErrorStreamCaptureInvalidated"));
    CHECK(!Graph::is_capturing(s.handle()));
    CHECK(!Graph::is_capturing(other.handle()));
  }
  CHECK_THROWS_WITH(inside.is_done(), Contains("cudaErrorCapturedEvent"));
}

TEST_CASE("emulator: memory may be taken in a capture") {
  Stream s;
  void *device = nullptr, *pinned = nullptr;
  Graph::capture(s.handle(), [&] { device = allocate(4), pinned = allocate_pinned(4); });
  CHECK(device != nullptr);
  CHECK(pinned != nullptr);
  release(device), release_pinned(pinned);
}

TEST_CASE("emulator: a capture ends only when all its streams have joined") {
  Stream s, side;
  Memory a(1);
  Event fork;
  Graph::begin(s.handle());
  fork.record(s.handle());
  wait(side.handle(), fork);
  CHECK(Graph::is_capturing(side.handle()));
  give(side, a.at, 1);
  CHECK_THROWS_WITH(Graph::end(s.handle()), Contains("cudaErrorStreamCaptureUnjoined"));
  CHECK(!Graph::is_capturing(side.handle()));
  CHECK_THROWS_WITH(wait(s.handle(), fork), Contains("cudaErrorCapturedEvent"));

  Graph::begin(s.handle());
  Graph::begin(side.handle());
  fork.record(s.handle());
  CHECK_THROWS_WITH(wait(side.handle(), fork), Contains("cudaErrorStreamCaptureMerge"));
  Graph::abandon(s.handle());
  Graph::abandon(side.handle());
}

TEST_CASE("emulator: other threads of the host go on while one captures") {
  Stream s, other;
  Memory a(1), b(1);
  float seen = -1;
  Graph::begin(s.handle());
  std::thread([&] {
    Memory c(1);
    zero(c.at, 4, other.handle());
    copy_one(&seen, c.at, other);
    synchronize(other.handle());
  }).join();
  zero(a.at, 4, s.handle());
  CHECK(Graph::end(s.handle()).nodes() == 1);
  CHECK(seen == 0);
}

TEST_CASE("emulator: devices and their memory are the test's choice") {
  emulator::set_devices(0);
  CHECK(device_count() == 0);
  CHECK_THAT(unavailable(), Contains("cudaErrorNoDevice"));
  CHECK_THROWS_WITH(Stream(), Contains("cudaErrorNoDevice"));

  emulator::set_devices(2);
  CHECK(device_count() == 2);
  use_device(1);
  Stream second;
  Event of_second;
  enable_peer_access(0, 1);
  emulator::set_peer_access(false);
  CHECK_THROWS_WITH(enable_peer_access(0, 1),
                    "[cuda] device 0 cannot read the memory of device 1: run one process per device with --comm nccl");
  emulator::set_peer_access(true);
  use_device(0);
  CHECK_THROWS_WITH(give(second, nullptr, 1), Contains("cudaErrorInvalidResourceHandle"));
  Stream first;
  CHECK_THROWS_WITH(of_second.record(first.handle()), Contains("cudaErrorInvalidResourceHandle"));

  emulator::set_memory(1000);
  CHECK(free_memory() == 1000);
  emulator::Alive alive = emulator::alive();
  {
    Memory a(200);
    CHECK(free_memory() == 200);
    CHECK(allocate(201) == nullptr);
    CHECK_THROWS_WITH(zero(a.at, 801, first.handle()), Contains("cudaErrorInvalidValue"));
    CHECK_THROWS_WITH(copy(a.at + 1, a.at, 800, first.handle()), Contains("cudaErrorInvalidValue"));
    CHECK(emulator::alive().device_bytes == alive.device_bytes + 800);
    Stream more;
    CHECK(emulator::alive().streams == alive.streams + 1);
  }
  CHECK(emulator::alive() == alive);
}

TEST_CASE("emulator: the host cannot touch a device's memory") {
  Memory a(1);
  int child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    std::signal(SIGSEGV, SIG_DFL);
    *const_cast<volatile float*>(a.at) = 1;
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status != 0);
}
