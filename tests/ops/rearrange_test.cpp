#include "ops/shape/rearrange.h"

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("what cannot be repeated, turned or cut is an error that shows it") {
  OneRank one;
  DistributedTensor x = one({4, 6});
  CHECK_THROWS_WITH(ops::repeat(x, {2}), Contains("[repeat] repeats 2 for f32[4,6]"));
  CHECK_THROWS_WITH(ops::repeat(x, {2, -1}), Contains("[repeat] repeats 2,-1 for f32[4,6]"));
  CHECK_THROWS_WITH(ops::repeat(x, std::vector<int64_t>(9, 1)), Contains("[repeat]") && Contains("at most 8"));
  CHECK_THROWS_WITH(ops::repeat(x, {1, INT64_MAX}),
                    Contains("[repeat]") && Contains("make dimension 1 of f32[4,6]") && Contains("can be counted"));
  DistributedTensor scalar = one(Shape{});
  CHECK(ops::flip(scalar, {-1}).id() == scalar.id());
  CHECK_THROWS_WITH(ops::flip(x, {1, -1}), Contains("[flip] a dimension is named twice in 1,-1"));
  CHECK_THROWS_WITH(ops::flip(x, {2}), Contains("[flip] dimension 2 is out of range for 2 dimensions"));
  CHECK_THROWS_WITH(ops::roll(x, {1, 2}), Contains("[roll] 2 shifts and 0 dims"));
  CHECK_THROWS_WITH(ops::roll(x, {1}, {5}), Contains("[roll] dimension 5 is out of range"));
  CHECK_THROWS_WITH(ops::tril(one({4})), Contains("[tril] operand 0 has 1 dimensions"));
  CHECK_THROWS_WITH(ops::triu(one(Shape{})), Contains("[triu] operand 0 has 0 dimensions"));
}

TEST_CASE("shifts of any size are taken modulo the dimension's") {
  OneRank one;
  DistributedTensor x = one({4, 6});
  auto expected = numbers(ops::roll(x, {2}, {1}).full_tensor());
  CHECK(numbers(ops::roll(x, {INT64_MIN, INT64_MIN}, {1, 1}).full_tensor()) == expected);  // -2^63 is -2 modulo 6
  CHECK(ops::roll(one({0}), {INT64_MIN}).shape() == Shape{0});
}

TEST_CASE("triangles know the rows and columns of their part, a diagonal may lie far outside") {
  launch(6, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2,y=3");
    Tensor whole = iota({5, 7});
    for (int64_t k : {INT64_MIN, int64_t(-5), int64_t(-1), int64_t(0), int64_t(2), int64_t(7), INT64_MAX})
      for (const Layout& l : {Layout{Shard(0), Shard(1)}, Layout{Shard(1), Shard(1)}, Layout{Partial(), Shard(0)}}) {
        DistributedTensor x = DistributedTensor::distribute(whole, mesh, l);
        std::vector<double> lower, upper;
        for (int64_t r = 0; r < 5; ++r)
          for (int64_t c = 0; c < 7; ++c) {
            lower.push_back(c - r <= k ? double(r * 7 + c) : 0);
            upper.push_back(c - r >= k ? double(r * 7 + c) : 0);
          }
        expect(ops::tril(x, k).layout(), l);
        expect(numbers(ops::tril(x, k).full_tensor()), lower);
        expect(numbers(ops::triu(x, k).full_tensor()), upper);
      }
  });
}

TEST_CASE("whole dimensions are turned and repeated where they are, sharded ones keep the others sharded") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    DistributedTensor x = DistributedTensor::distribute(iota({4, 3}), mesh, {Shard(0)});
    Moved moved(rank);
    for (const DistributedTensor& y : {ops::flip(x, {1}), ops::roll(x, {1}, {1}), ops::repeat(x, {1, 2})})
      expect(y.layout(), Layout{Shard(0)});
    expect(moved.launches, 0);
    expect(ops::repeat(x, {3, 1, 1}).layout(), Layout{Shard(1)});
  });
}
