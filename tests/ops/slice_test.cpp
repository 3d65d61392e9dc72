#include "ops/shape/slice.h"

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

// Python's rules, spelled out: for i in range(n)[start:end:step].
static std::vector<double> expected_slice(int64_t n, int64_t start, int64_t end, int64_t step) {
  auto bound = [&](int64_t i) { return std::max<int64_t>(0, std::min(i < 0 ? i + n : i, n)); };
  std::vector<double> v;
  for (int64_t i = bound(start); i < bound(end); i += step) v.push_back(double(i));
  return v;
}

TEST_CASE("slices have Python's bounds, for all bounds of small sizes") {
  OneRank one;
  for (int64_t n : {0, 1, 2, 5})
    for (int64_t start = -n - 2; start <= n + 2; ++start)
      for (int64_t end = -n - 2; end <= n + 2; ++end)
        for (int64_t step : {1, 2, 3, 9}) {
          DistributedTensor x = one({n}), y = ops::slice(x, 0, start, end, step);
          INFO(n << " [" << start << ":" << end << ":" << step << "]");
          CHECK(numbers(y.full_tensor()) == expected_slice(n, start, end, step));
        }
}

TEST_CASE("slices are views, the whole is the tensor itself") {
  OneRank one;
  DistributedTensor x = one({4, 6});
  for (const DistributedTensor& y : {ops::slice(x, 1, 1, 5, 2), ops::narrow(x, 0, -3, 2), ops::select(x, 1, -1),
                                     ops::index(x, {ops::Slice(1, 3), 5}), ops::select(x, 0, 0)})
    CHECK(y.local().shares_storage(x.local()));
  CHECK(ops::slice(x, 1).id() == x.id());
  CHECK(ops::slice(x, 0, -9, 9).id() == x.id());
  CHECK(numbers(ops::narrow(x, 0, -3, 1).full_tensor()) == std::vector<double>{6, 7, 8, 9, 10, 11});
  CHECK(numbers(ops::select(x, 1, -1).full_tensor()) == std::vector<double>{5, 11, 17, 23});
}

TEST_CASE("index takes numbers, slices, an ellipsis and new axes, as brackets do in Python") {
  using ops::ellipsis, ops::newaxis, ops::Slice;
  OneRank one;
  DistributedTensor x = one({4, 3, 2});
  struct Row {
    std::vector<ops::Index> indices;
    Shape shape;
    double first;
  };
  for (const Row& r : std::initializer_list<Row>{{{}, {4, 3, 2}, 0},
                                                 {{2}, {3, 2}, 12},
                                                 {{-1, -1, -1}, {}, 23},
                                                 {{Slice(1, 3), 2}, {2, 2}, 10},
                                                 {{ellipsis, 1}, {4, 3}, 1},
                                                 {{1, ellipsis, Slice(1, {})}, {3, 1}, 7},
                                                 {{Slice(), newaxis, 0, ellipsis, newaxis}, {4, 1, 2, 1}, 0},
                                                 {{Slice({}, {}, 3), ellipsis}, {2, 3, 2}, 0},
                                                 {{0, 0, 1, ellipsis}, {}, 1}}) {
    DistributedTensor y = ops::index(x, r.indices);
    INFO(to_string(y));
    CHECK(y.shape() == r.shape);
    CHECK(element(y.local().contiguous(), 0) == r.first);
  }
  CHECK_THROWS_WITH(ops::index(x, {0, 0, 0, 0}), Contains("[index] 4 indices for f32[4,3,2]"));
  CHECK_THROWS_WITH(ops::index(x, {ellipsis, ellipsis}), Contains("[index] 2 ellipses for f32[4,3,2]"));
}

TEST_CASE("what slices cannot take is an error that shows it") {
  OneRank one;
  DistributedTensor x = one({4, 6});
  CHECK_THROWS_WITH(ops::slice(x, 0, 0, 4, 0), Contains("[slice] step 0 along dimension 0 of f32[4,6]"));
  CHECK_THROWS_WITH(ops::slice(x, 2), Contains("[slice] dimension 2 is out of range for 2 dimensions"));
  CHECK_THROWS_WITH(ops::narrow(x, 1, 4, 3),
                    Contains("[narrow] 3 elements from 4 on are not within dimension 1 of f32[4,6]"));
  CHECK_THROWS_WITH(ops::narrow(x, 1, -7, 1), Contains("[narrow] 1 elements from -7 on"));
  CHECK_THROWS_WITH(ops::select(x, 0, 4), Contains("[select] index 4 is not within dimension 0 of f32[4,6]"));
  CHECK_THROWS_WITH(ops::select(x, 0, -5), Contains("[select] index -5"));
  CHECK_THROWS_WITH(call(ops::select_op, {&x}, ops::At{0, 4}),
                    Contains("[select] index 4 is outside [0,4) of dimension 0"));
  CHECK_THROWS_WITH(call(ops::slice_op, {&x}, ops::Part{{1, 4, 2}, 2}),
                    Contains("[slice] 2 elements, 2 apart, from 4 on are not within dimension 1 of size 6"));
}

TEST_CASE(
    "slices of whole dimensions keep the sharding of the others, a sharded one is gathered, and the log says so") {
  launch(3, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=3");
    DistributedTensor x = DistributedTensor::distribute(iota({5, 6}), mesh, {Shard(0)});
    {
      Moved moved(rank);
      expect(ops::index(x, {ops::Slice(), ops::Slice(1, 6, 2)}).layout(), Layout{Shard(0)});
      expect(ops::select(x, 0, 3).layout(), Layout{Partial()});
      expect(moved.launches, 0);
    }
    expect(numbers(ops::select(x, 0, 3).full_tensor()), std::vector<double>{18, 19, 20, 21, 22, 23});
    Moved moved(rank);
    DistributedTensor y = ops::slice(x, 0, 1, 3);
    expect(moved.launches, 1);
    expect(numbers(y.full_tensor()), numbers(ops::slice(x.redistribute({Replicate()}), 0, 1, 3).local()));
  });
}

TEST_CASE("of a bool tensor the rank that has an index shows it") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    Tensor flags(std::make_shared<Allocator>(), DType::boolean, {4, 2});
    for (int i = 0; i < 8; ++i) flags.data<bool>()[i] = i % 3 == 0;
    DistributedTensor x = DistributedTensor::distribute(flags, mesh, {Shard(0)}), y = ops::select(x, 0, 3);
    expect(y.layout(), Layout{Partial(Reduce::max)});
    expect(numbers(y.full_tensor()), std::vector<double>{1, 0});
  });
}
