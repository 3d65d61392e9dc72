#include "ops/shape/join.h"

#include "ops/shape/slice.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

using Tensors = std::vector<DistributedTensor>;

static std::vector<int64_t> sizes_of(const Tensors& list, int64_t dim) {
  std::vector<int64_t> sizes;
  for (const DistributedTensor& t : list) sizes.push_back(t.size(dim));
  return sizes;
}

TEST_CASE("split and chunk give views of PyTorch's sizes, and cat puts them together") {
  using Sizes = std::vector<int64_t>;
  OneRank one;
  DistributedTensor x = one({7, 2}), empty = one({0, 2});
  struct Row {
    DistributedTensor from;
    Tensors pieces;
    Sizes expected;
  };
  for (const Row& r : {Row{x, ops::split(x, 3), {3, 3, 1}}, Row{x, ops::split(x, 9), {7}},
                       Row{x, ops::split(x, Sizes{0, 5, 2}, -2), {0, 5, 2}}, Row{x, ops::chunk(x, 3), {3, 3, 1}},
                       Row{x, ops::chunk(x, 5), {2, 2, 2, 1}}, Row{x, ops::chunk(x, 99), Sizes(7, 1)},
                       Row{x, ops::split(x, INT64_MAX), {7}}, Row{x, ops::chunk(x, INT64_MAX), Sizes(7, 1)},
                       Row{empty, ops::split(empty, 2), {0}}, Row{empty, ops::split(empty, 0), {0}},
                       Row{empty, ops::chunk(empty, 3), {0, 0, 0}}}) {
    CHECK(sizes_of(r.pieces, 0) == r.expected);
    CHECK(numbers(ops::cat(r.pieces).full_tensor()) == numbers(r.from.full_tensor()));
    for (const DistributedTensor& p : r.pieces) CHECK(p.local().shares_storage(r.from.local()));
  }
  CHECK(ops::cat({x}).id() == x.id());
  CHECK(ops::stack({x, x, x}, -1).shape() == Shape{7, 2, 3});
}

TEST_CASE("any number of tensors are joined, and split again, whatever their sizes") {
  OneRank one;
  for (int count : {2, 18, 19, 63, 64, 65, 130, 400})
    for (int distinct : {1, 3, 40}) {
      std::vector<int64_t> sizes;
      for (int i = 0; i < count; ++i) sizes.push_back(i % distinct);
      int64_t n = std::accumulate(sizes.begin(), sizes.end(), int64_t(0));
      DistributedTensor x = one({2, n});
      Tensors pieces = ops::split(x, sizes, 1);
      INFO(count << " pieces of " << distinct << " sizes");
      CHECK(sizes_of(pieces, 1) == sizes);
      CHECK(numbers(ops::cat(pieces, 1).full_tensor()) == numbers(x.full_tensor()));
    }
}

TEST_CASE("what cannot be joined or split is an error that shows it") {
  OneRank one;
  DistributedTensor x = one({4, 6}), y = one({4, 5}), z = one({4}), i = one({4, 6}, DType::i64);
  CHECK_THROWS_WITH(ops::cat({}), Contains("[cat] no tensors: at least one is needed"));
  CHECK_THROWS_WITH(ops::cat({x, y}), Contains("[cat] sizes of b differ: 6 and 5"));
  CHECK_THROWS_WITH(ops::cat({x, z}), Contains("[cat] f32[4,6]") && Contains(": all have as many dimensions"));
  CHECK_THROWS_WITH(ops::cat({x, i}), Contains("[cat] element types differ: f32[4,6] and i64[4,6]; use cast()"));
  CHECK_THROWS_WITH(ops::cat({x, x}, 2), Contains("[cat] dimension 2 is out of range"));
  CHECK_THROWS_WITH(ops::stack({}), Contains("[stack] no tensors: at least one is needed"));
  CHECK_THROWS_WITH(ops::stack({x, y}), Contains("[stack] f32[4,6]") && Contains(": all have one shape"));
  CHECK_THROWS_WITH(ops::split(x, std::vector<int64_t>{1, 2}),
                    Contains("[split] sizes 1,2 do not sum to 4, dimension 0 of f32[4,6]"));
  CHECK_THROWS_WITH(ops::split(x, std::vector<int64_t>{5, -1}), Contains("[split] sizes 5,-1"));
  CHECK_THROWS_WITH(ops::split(x, std::vector<int64_t>{INT64_MAX, INT64_MAX, 6}),  // their sum wraps around to 4
                    Contains("do not sum to 4"));
  CHECK_THROWS_WITH(ops::split(x, 0), Contains("[split] pieces of 0 along dimension 0 of f32[4,6]"));
  CHECK_THROWS_WITH(ops::chunk(x, 0),
                    Contains("[chunk] f32[4,6]") && Contains(" into 0 chunks: at least one is needed"));
}

TEST_CASE("a sharded dimension is gathered once for all pieces, the others stay sharded") {
  launch(3, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=3");
    DistributedTensor x = DistributedTensor::distribute(iota({5, 200}), mesh, {Shard(1)});
    {
      Moved moved(rank);
      Tensors pieces = ops::chunk(x, 100, 1);  // more than one call can give
      expect(moved.launches, 1);               // to Shard(0), or whole
      expect(numbers(pieces[99].full_tensor())[0], 198.0);
    }
    Moved moved(rank);
    DistributedTensor rows = x.redistribute({Shard(0)});
    int64_t before = moved.launches;
    Tensors pieces = ops::split(rows, 77, 1);
    DistributedTensor y = ops::cat({pieces[1], pieces[0], pieces[2]}, 1);
    expect(moved.launches, before);
    expect(y.layout(), Layout{Shard(0)});
    expect(numbers(ops::slice(y, 1, 77, 154).full_tensor()), numbers(ops::slice(x, 1, 0, 77).full_tensor()));
  });
}

TEST_CASE("cat of Partial operands is Partial, and moves nothing") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    DistributedTensor x = DistributedTensor::distribute(iota({3}), mesh, {Partial()});
    DistributedTensor y = DistributedTensor::distribute(iota({2}), mesh, {Partial()});
    Moved moved(rank);
    DistributedTensor z = ops::cat({x, y, DistributedTensor::distribute(iota({1}), mesh, Layout())});
    expect(z.layout(), Layout{Partial()});
    expect(moved.launches, 0);
    expect(numbers(z.full_tensor()), std::vector<double>{0, 1, 2, 0, 1, 0});
  });
}
