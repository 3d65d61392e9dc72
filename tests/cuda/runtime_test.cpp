#include "dtensor/cuda/runtime.h"

#include <catch2/catch.hpp>
#include <vector>

#include "placement/error.h"

using namespace dtensor;
using namespace dtensor::cuda;
using Catch::Contains;

namespace {

struct Buffer {
  explicit Buffer(int64_t n) : at(static_cast<float*>(allocate(n * 4))) {}
  Buffer(Buffer&&) = delete;
  ~Buffer() { release(at); }
  float* at;
};

std::vector<float> on_host(const Buffer& b, size_t n, const Stream& s) {
  std::vector<float> values(n);
  copy(values.data(), b.at, int64_t(n) * 4, s.handle());
  synchronize(s.handle());
  return values;
}

}  // namespace

TEST_CASE("cuda: a device says what it is") {
  REQUIRE(device_count() >= 1);
  CHECK(is_built());
  CHECK(unavailable() == "");
  DeviceProperties p = properties(0);
  CHECK(p.name != "");
  CHECK(p.multiprocessors > 0);
  CHECK(p.memory_bytes > int64_t(1) << 30);
  CHECK(free_memory() <= p.memory_bytes);
  CHECK_THROWS_WITH(use_device(1000), Contains("cudaSetDevice") && Contains("cudaErrorInvalidDevice"));
  CHECK_THROWS_WITH(properties(1000), Contains("cudaGetDeviceProperties"));
  use_device(0);
}

TEST_CASE("cuda: memory is aligned, and too much of it is null") {
  void* memory = allocate(1);
  CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
  release(memory);
  release(nullptr);
  CHECK(allocate(int64_t(1) << 50) == nullptr);
  use_device(0);  // the error is not seen again
}

TEST_CASE("cuda: copies between host and device keep their order on a stream") {
  Stream s;
  for (int64_t n : {0, 1, 1000}) {
    Buffer a(n), b(n);
    std::vector<float> values(size_t(n), 3.5f);
    copy(a.at, values.data(), n * 4, s.handle());
    values.assign(size_t(n), -1);  // was read already
    copy(b.at, a.at, n * 4, s.handle());
    zero(a.at, n * 4, s.handle());
    CHECK(on_host(b, size_t(n), s) == std::vector<float>(size_t(n), 3.5f));
    CHECK(on_host(a, size_t(n), s) == std::vector<float>(size_t(n), 0));
  }
}

TEST_CASE("cuda: an event orders two streams") {
  Stream producer, consumer(Stream::Priority::high);
  Buffer a(4), b(4);
  std::vector<float> values{1, 2, 3, 4};
  copy(a.at, values.data(), 16, producer.handle());
  Event ready;
  CHECK(ready.is_done());
  ready.record(producer.handle());
  wait(consumer.handle(), ready);
  copy(b.at, a.at, 16, consumer.handle());
  CHECK(on_host(b, 4, consumer) == values);
  ready.synchronize();
  CHECK(ready.is_done());
}

TEST_CASE("cuda: polling a stream and an event ends") {
  Stream s;
  Buffer a(1000);
  Event e;
  for (int i = 0; i < 10; ++i) zero(a.at, 4000, s.handle());
  e.record(s.handle());
  while (!e.is_done()) {
  }
  while (!is_idle(s.handle())) {
  }
  CHECK(on_host(a, 1, s)[0] == 0);
}

TEST_CASE("cuda: the time between two events") {
  Stream s;
  Event begin(true), end(true), untimed;
  begin.record(s.handle());
  end.record(s.handle());
  untimed.record(s.handle());
  synchronize(s.handle());
  CHECK(end.milliseconds_since(begin) >= 0);
  CHECK_THROWS_WITH(untimed.milliseconds_since(begin), Contains("cudaEventElapsedTime"));
}

TEST_CASE("cuda: a graph replays what two streams were given") {
  Stream s, side;
  Buffer a(2), b(2), c(2);
  auto* pinned = static_cast<float*>(allocate_pinned(8));
  Event fork, join;
  Graph::begin(s.handle());
  CHECK(Graph::is_capturing(s.handle()));
  copy(a.at, pinned, 8, s.handle());
  fork.record(s.handle());
  wait(side.handle(), fork);
  copy(b.at, a.at, 8, side.handle());
  join.record(side.handle());
  zero(c.at, 8, s.handle());
  wait(s.handle(), join);
  copy(c.at, b.at, 4, s.handle());
  Graph graph = Graph::end(s.handle());
  CHECK(graph.nodes() == 4);
  CHECK(!Graph::is_capturing(s.handle()));
  for (float x : {1.0f, 2.0f}) {
    pinned[0] = pinned[1] = x;
    graph.launch(s.handle());
    CHECK(on_host(c, 2, s) == std::vector<float>{x, 0});
  }
  release_pinned(pinned);
}

TEST_CASE("cuda: what a capture forbids is an error, and the stream is usable again") {
  Stream s;
  Buffer a(1);
  Graph::begin(s.handle());
  zero(a.at, 4, s.handle());
  CHECK_THROWS_WITH(synchronize(s.handle()), Contains("cudaErrorStreamCaptureUnsupported"));
  CHECK_THROWS_WITH(Graph::end(s.handle()), Contains("cudaErrorStreamCaptureInvalidated"));
  CHECK(!Graph::is_capturing(s.handle()));

  Graph::begin(s.handle());
  void* memory = allocate(1 << 20);  // is allowed
  CHECK(memory != nullptr);
  Graph::abandon(s.handle());
  release(memory);
  CHECK(!Graph::is_capturing(s.handle()));

  zero(a.at, 4, s.handle());
  CHECK(on_host(a, 1, s)[0] == 0);
}
