#include <cmath>

#include "tests/ops/helpers.h"

using namespace dtensor;

TEST_CASE("reductions over some or all dimensions") {
  OneRank one;
  DistributedTensor x = one({2, 3});
  CHECK(ops::sum(x).item() == 15);
  CHECK(ops::sum(x).shape() == Shape{});
  CHECK(numbers(ops::sum(x, {0}).full()) == std::vector<double>{3, 5, 7});
  CHECK(numbers(ops::sum(x, {-1}).full()) == std::vector<double>{3, 12});
  CHECK(ops::sum(x, {1}, true).shape() == Shape{2, 1});
  CHECK(ops::mean(x).item() == 2.5);
  CHECK(numbers(ops::amax(x, {1}).full()) == std::vector<double>{2, 5});
  CHECK(ops::sum_squares(x).item() == 55);
  CHECK(ops::sum_squares(x).dtype() == DType::f64);
  CHECK(ops::sum(one(Shape{})).item() == 0);
  CHECK(numbers(ops::sum(one({0, 2}), {0}).full()) == std::vector<double>{0, 0});
  CHECK(numbers(ops::sum_to(one({2, 3}), {1, 3}).full()) == std::vector<double>{3, 5, 7});
  CHECK(numbers(ops::sum_to(one({2, 3}), {3}).full()) == std::vector<double>{3, 5, 7});
}

TEST_CASE("a sharded dimension that is reduced leaves a Partial, and nothing moves") {
  launch(3, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=3");
    Moved moved(rank);
    DistributedTensor x = DistributedTensor::distribute(iota({4, 5}), mesh, {Shard(0)});  // 2, 2 and 0 rows
    expect(ops::sum(x, {0}).layout(), Layout{Partial(Reduce::sum)});
    expect(ops::amax(x, {0}).layout(), Layout{Partial(Reduce::max)});
    expect(ops::sum(x, {1}).layout(), Layout{Shard(0)});
    expect(ops::mean(x, {0}).layout(), Layout{Partial(Reduce::sum)});
    expect(moved.log, "");
    expect(numbers(ops::mean(x, {0}).full())[1], 8.5);
    expect(numbers(ops::amax(x, {0}).full())[0], 15);
  });
}
