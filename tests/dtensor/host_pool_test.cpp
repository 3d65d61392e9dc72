#include "dtensor/local/host_pool.h"

#include <sys/resource.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <vector>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

constexpr int64_t MiB = int64_t(1) << 20;

// Of the process.
int64_t resident() {
  int64_t pages = 0, all = 0;
  std::ifstream("/proc/self/statm") >> all >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

// Blocks that are written when they are taken, and looked at when they are given back.
struct Blocks {
  struct One {
    char* at;
    int64_t bytes;
    char mark;
  };
  HostPool& pool;
  std::vector<One> all = {};
  int64_t in_use = 0, most = 0;
  char next = 0;

  void take(int64_t bytes) {
    auto block = static_cast<char*>(pool.allocate(bytes));
    REQUIRE(block);
    REQUIRE(reinterpret_cast<uintptr_t>(block) % 4096 == 0);
    std::memset(block, ++next, size_t(bytes));
    all.push_back({block, bytes, next});
    in_use += bytes, most = std::max(most, in_use);
  }
  void put(size_t i) {
    One b = all[i];
    REQUIRE((b.at[0] == b.mark && b.at[b.bytes / 2] == b.mark && b.at[b.bytes - 1] == b.mark));
    pool.free(b.at, b.bytes);
    in_use -= b.bytes;
    all.erase(all.begin() + long(i));
  }
  ~Blocks() {
    while (!all.empty()) put(all.size() - 1);
  }
};

}  // namespace

TEST_CASE("host memory of 60 sizes in turn is under twice what is in use") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  WARN("not measured: what is resident is mostly the sanitizer's");
  return;
#endif
  struct Case {
    int64_t first, step;
  };
  for (auto [first, step] : {Case{4'000'000, 20'000}, {4'000'000, 600'000}, {100'000, 1'000}, {40'000'000, -600'000}}) {
    HostPool pool;
    Blocks blocks{pool};
    int64_t before = resident(), most = 0;
    for (int64_t i = 0; i < 60; ++i) {
      blocks.take(first + step * i), blocks.take(first + step * i);
      most = std::max(most, resident() - before);
      REQUIRE(pool.resident_bytes() <= pool.limit());
      blocks.put(0), blocks.put(0);
    }
    INFO(first << " and " << step << " more each time: " << blocks.most << " in use, resident " << most);
    CHECK(pool.limit() <= blocks.most * 5 / 4 + 2 * MiB + 20'000);  // sizes are rounded to pages
    CHECK(most < std::max(2 * blocks.most, 4 * MiB));
  }
}

TEST_CASE("host memory of steps that repeat is taken from the system once") {
  HostPool pool;
  Blocks blocks{pool};
  auto step = [&](bool forward_only) {  // activations that stay, temporaries, and gradients that come and go
    size_t kept = blocks.all.size();
    for (int64_t layer = 0; layer < 6; ++layer)
      for (int64_t n : {70'000, 300'000, 1'000'000, 200'000, 1'300'000}) {
        blocks.take(2 * n), blocks.take(n);
        blocks.put(blocks.all.size() - 2);
      }
    while (blocks.all.size() > kept) {
      if (!forward_only) blocks.take(blocks.all.back().bytes), blocks.put(blocks.all.size() - 1);
      blocks.put(blocks.all.size() - 1);
    }
  };
  for (int i = 0; i < 3; ++i) step(false);
  int64_t before = page_faults();
  for (int i = 0; i < 10; ++i) step(i % 2);
  CHECK(page_faults() - before < 100);  // of more than 4,000 pages a step
}

TEST_CASE("whatever a program does, host memory kept for reuse has its limit") {
  Random random{5};
  for (int round = 0; round < 20; ++round) {
    HostPool pool;
    Blocks blocks{pool};
    int largest = 1 << (4 + random.below(18));
    for (int i = 0; i < 300; ++i) {
      if (blocks.all.empty() || (blocks.all.size() < 20 && random.below(2)))
        blocks.take(1 + random.below(largest));
      else
        blocks.put(size_t(random.below(int(blocks.all.size()))));
      REQUIRE(pool.resident_bytes() >= blocks.in_use);
    }
    while (!blocks.all.empty()) blocks.put(0);
    blocks.take(1);
    CHECK(pool.resident_bytes() <= pool.limit());
    CHECK(pool.limit() <= 2 * MiB + 20 * 4096 + blocks.most * 5 / 4);
  }
}

TEST_CASE("host memory that was needed once is given back") {
  HostPool pool;
  Blocks blocks{pool};
  for (int i = 0; i < 10; ++i) blocks.take(10 * MiB);
  while (!blocks.all.empty()) blocks.put(0);
  CHECK(pool.resident_bytes() == 100 * MiB);  // the next step may need as much
  int64_t steps = 0;
  for (; pool.resident_bytes() > 30 * MiB && steps < 100'000; ++steps) blocks.take(MiB), blocks.put(0);
  CHECK(steps > 10'000);
  CHECK(steps < 60'000);
}

TEST_CASE("more host memory than there is, is null") {
  HostPool pool;
  CHECK(pool.allocate(int64_t(1) << 50) == nullptr);
  Blocks blocks{pool};
  blocks.take(5 * MiB), blocks.put(0);
  CHECK(pool.allocate(int64_t(1) << 50) == nullptr);
  CHECK(pool.resident_bytes() == 0);  // what was idle was tried for it
  blocks.take(5 * MiB);
}
