#include "tests/ops/helpers.h"

using namespace dtensor;

TEST_CASE("operands broadcast as in NumPy") {
  OneRank one;
  DistributedTensor row = one({3}), column = one({2, 1}), number = one(Shape{});
  CHECK(numbers(ops::add(column, row).full()) == std::vector<double>{0, 1, 2, 1, 2, 3});
  CHECK(ops::add(one({4, 1, 3}), column).shape() == Shape{4, 2, 3});
  CHECK(numbers((one({2, 2}) + number).full()) == std::vector<double>{0, 1, 2, 3});
  CHECK(ops::add(one({1}), one({0})).shape() == Shape{0});
  CHECK(ops::mul(number, number).shape() == Shape{});
  CHECK(numbers((-(row * 2 - row) / one({1, 3}) + 1.0).full())[1] == 0);
}

TEST_CASE("broadcast dimensions of size 1 are whole on every rank") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    Moved moved(rank);
    DistributedTensor a = DistributedTensor::distribute(iota({4, 3}), mesh, {Shard(0)});
    DistributedTensor bias = DistributedTensor::distribute(iota({1, 3}), mesh, {Replicate()});
    DistributedTensor y = ops::add(a, bias);
    expect(y.layout(), Layout{Shard(0)});
    expect(moved.log, "");
    expect(numbers(y.full())[4], 5);
  });
}

TEST_CASE("cast changes types, and nothing else does") {
  OneRank one;
  DistributedTensor x = ops::mul(one({4}), 0.75);
  CHECK(numbers(ops::cast(x, DType::i64).full()) == std::vector<double>{0, 0, 1, 2});
  CHECK(numbers(ops::cast(x, DType::boolean).full()) == std::vector<double>{0, 1, 1, 1});
  CHECK(ops::cast(x, DType::f64).dtype() == DType::f64);
  CHECK(ops::cast(x, DType::f32).id() == x.id());
  CHECK(numbers(ops::add(one({3}, DType::i64), one({3}, DType::i64)).full()) == std::vector<double>{0, 2, 4});
}
