#include "dtensor/local/block_pool.h"

#include <catch2/catch.hpp>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

// Addresses that nobody touches.
char* at(int64_t address) { return reinterpret_cast<char*>(address); }
int64_t address(void* block) { return reinterpret_cast<int64_t>(block); }

}  // namespace

TEST_CASE("a block pool takes the smallest block that fits, and joins what is free") {
  BlockPool pool;
  CHECK(pool.take(1, 0) == nullptr);
  pool.add(at(1000), 100, 0);
  pool.add(at(1100), 60, 0);  // neighbours, but two segments
  CHECK(pool.take(101, 0) == nullptr);
  CHECK(pool.take(10, 1) == nullptr);  // of another kind
  CHECK(pool.take(50, 0) == at(1100));
  CHECK(pool.take(10, 0) == at(1150));
  CHECK(pool.take(60, 0) == at(1000));
  CHECK(pool.take(40, 0) == at(1060));
  CHECK(pool.take(1, 0) == nullptr);
  pool.put(at(1000));
  pool.put(at(1100));
  CHECK(pool.free_segments(0).empty());
  pool.put(at(1150));
  pool.put(at(1060));
  auto whole = pool.free_segments(0);
  REQUIRE(whole.size() == 2);
  CHECK((whole[0].at == at(1000) && whole[0].bytes == 100 && whole[1].bytes == 60));
  pool.remove(at(1100));
  CHECK(pool.take(60, 0) == at(1000));
  auto segments = pool.segments();
  REQUIRE(segments.size() == 1);
  CHECK((segments[0].at == at(1000) && segments[0].bytes == 100));
}

TEST_CASE("a block pool keeps kinds apart, and knows what was idle longest") {
  BlockPool pool;
  pool.add(at(1000), 100, 0);
  CHECK(pool.idlest(1).bytes == 0);
  for (int64_t i = 0; i < 10; ++i) CHECK(pool.take(10, 0) == at(1000 + 10 * i));
  for (int64_t i : {3, 7, 5, 1}) pool.put(at(1000 + 10 * i));
  CHECK(pool.idlest(0).at == at(1030));
  pool.put(at(1040));  // joins 3, 4 and 5, which are now the ones that were used last
  CHECK((pool.idlest(0).at == at(1070) && pool.idlest(0).bytes == 10));
  CHECK_FALSE(pool.turn(at(1070), 1).is_segment);
  CHECK(pool.idlest(0).at == at(1010));
  pool.turn(at(1080), 1);  // a used one
  pool.put(at(1080));
  CHECK((pool.idlest(1).at == at(1070) && pool.idlest(1).bytes == 20));
  CHECK(pool.take(30, 1) == nullptr);
  for (int64_t i : {0, 2, 6, 9}) pool.put(at(1000 + 10 * i));
  CHECK(pool.free_segments(0).empty());
  BlockPool::Span all = pool.turn(at(1070), 0);
  CHECK((all.at == at(1000) && all.bytes == 100 && all.is_segment));
  pool.turn_all(0, 4);
  CHECK(pool.take(100, 0) == nullptr);
  CHECK(pool.take(100, 4) == at(1000));
}

TEST_CASE("whatever the order, blocks of a pool do not overlap, and all are one again at the end") {
  Random random{31};
  for (int round = 0; round < 200; ++round) {
    BlockPool pool;
    int kinds = 1 + random.below(3);
    std::vector<int64_t> sizes;
    for (int64_t i = 0, begin = 1000; i < 1 + random.below(4); ++i, begin += sizes.back()) {
      sizes.push_back(20 + random.below(100));
      pool.add(at(begin), sizes.back(), 0);
    }
    std::map<int64_t, int64_t> used;
    for (int i = 0; i < 300; ++i) {
      if (random.below(2)) {
        int64_t bytes = 1 + random.below(40);
        void* block = pool.take(bytes, random.below(kinds));
        if (!block) continue;
        auto [it, inserted] = used.emplace(address(block), bytes);
        REQUIRE(inserted);
        if (it != used.begin()) REQUIRE(std::prev(it)->first + std::prev(it)->second <= it->first);
        if (std::next(it) != used.end()) REQUIRE(it->first + bytes <= std::next(it)->first);
        if (random.below(2)) pool.turn(block, random.below(kinds));
      } else if (!used.empty()) {
        auto it = std::next(used.begin(), random.below(int(used.size())));
        pool.put(at(it->first));
        used.erase(it);
      }
    }
    for (auto [begin, bytes] : used) pool.put(at(begin));
    for (int kind = 1; kind < kinds; ++kind)
      for (auto idle = pool.idlest(kind); idle.bytes; idle = pool.idlest(kind)) pool.turn(idle.at, 0);
    auto segments = pool.free_segments(0);
    REQUIRE(segments.size() == sizes.size());
    for (size_t s = 0; s < sizes.size(); ++s) REQUIRE(segments[s].bytes == sizes[s]);
  }
}
