#include "ops/shape/gather.h"

#include "ops/shape/slice.h"

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

static Tensor ids(const Shape& shape, std::vector<int64_t> v) { return Tensor::of<int64_t>(shape, v); }

TEST_CASE("an index outside its dimension is an error that names op, index and range") {
  OneRank one;
  DistributedTensor x = one({4, 6}), row = one({1, 6});
  auto at = [&](int64_t i) { return one(ids({1}, {i})); };
  auto square = [&](int64_t i) { return one(ids({1, 1}, {i})); };
  CHECK_THROWS_WITH(ops::index_select(x, 0, at(4)), Contains("[index_select] index 4 is outside [0,4) of dimension 0"));
  CHECK_THROWS_WITH(ops::index_select(x, 1, at(-1)), Contains("[index_select] index -1 is outside [0,6)"));
  CHECK_THROWS_WITH(ops::index_add(x, 0, at(9), row), Contains("[index_add] index 9 is outside [0,4) of dimension 0"));
  CHECK_THROWS_WITH(ops::gather(x, -1, square(6)), Contains("[gather] index 6 is outside [0,6) of dimension 1"));
  CHECK_THROWS_WITH(ops::scatter_add(x, 0, square(-3), row),
                    Contains("[scatter_add] index -3 is outside [0,4) of dimension 0"));
  CHECK_THROWS_WITH(ops::one_hot(at(5), 5), Contains("[one_hot] class 5 is outside [0,5)"));
  CHECK_THROWS_WITH(launch(2,
                           [](Rank& rank) {  // where no rank has it
                             DeviceMesh mesh(rank, "x=2");
                             auto parts = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(0)});
                             ops::index_select(parts, 0, DistributedTensor::distribute(ids({1}, {4}), mesh, Layout()));
                           }),
                    Contains("[index_select] index 4 is outside [0,4)"));
}

TEST_CASE("operands that do not fit an index are errors that show them") {
  OneRank one;
  DistributedTensor x = one({4, 6}), wide = one(ids({1, 7}, std::vector<int64_t>(7))), flat = one(ids({2}, {0, 1}));
  DistributedTensor square = one(ids({1, 1}, {0})), whole = one({4, 6}, DType::i64);
  CHECK_THROWS_WITH(ops::index_select(x, 0, x),
                    Contains("[index_select] index f32[4,6]") && Contains(": it has one dimension; flatten() it"));
  CHECK_THROWS_WITH(ops::index_select(x, 0, one({2})), Contains("[index_select] indices are i64, not f32[2]"));
  CHECK_THROWS_WITH(ops::index_add(x, 0, flat, x), Contains("[index_add] sizes of i differ: 2 and 4"));
  CHECK_THROWS_WITH(ops::gather(x, 0, flat),
                    Contains("[gather] f32[4,6]") && Contains(": both have as many dimensions"));
  CHECK_THROWS_WITH(ops::gather(x, 0, wide),
                    Contains("[gather] index i64[1,7]") && Contains(" is larger than f32[4,6]"));
  CHECK_THROWS_WITH(ops::gather(x, 0, x), Contains("[gather] indices are i64, not f32[4,6]"));
  CHECK_THROWS_WITH(ops::scatter_add(x, 0, whole, one({4, 5})), Contains("is larger than source f32[4,5]"));
  CHECK_THROWS_WITH(ops::scatter_add(x, 0, square, one({1})), Contains("[scatter_add]") && Contains("source f32[1]"));
  CHECK_THROWS_WITH(ops::scatter_add(whole, 0, square, x), Contains("[scatter_add] element types differ"));
  DistributedTensor flags = one(Tensor::zeros(std::make_shared<Allocator>(), DType::boolean, {2}));
  CHECK_THROWS_WITH(call(ops::gather_op, {&flags, &flat}, ops::AtIndex{0}),
                    Contains("[gather] of bool needs the attribute any=true"));
  CHECK_THROWS_WITH(call(ops::select_op, {&flags}, ops::At{0, 0}),
                    Contains("[select] of bool needs the attribute any=true"));
  CHECK_THROWS_WITH(ops::index_add(flags, 0, flat, flags),
                    Contains("[index_add] adds numbers, not bool[2]; use cast()"));
  CHECK_THROWS_WITH(ops::one_hot(x, 3), Contains("[one_hot] classes are i64, not f32[4,6]"));
  CHECK_THROWS_WITH(ops::one_hot(flat, -1), Contains("[one_hot] num_classes=-1"));
}

TEST_CASE("each rank looks up, or adds to, its range of an indexed dimension that 3 ranks do not divide") {
  launch(3, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=3");
    auto whole = [&](const Tensor& t) { return DistributedTensor::distribute(t, mesh, Layout()); };
    DistributedTensor table = whole(iota({7, 2})), parts = table.redistribute({Shard(0)});
    DistributedTensor at = whole(ids({5}, {6, 0, 3, 3, 2})), source = whole(iota({5, 2}));
    DistributedTensor each = whole(ids({2, 2}, {6, 5, 0, 2}));
    struct Row {
      DistributedTensor got, expected;
      Placement placement;
    };
    Moved moved(rank);
    for (const Row& r :
         {Row{ops::embedding(at, parts), ops::embedding(at, table), Partial()},
          Row{ops::index_select(parts, 0, at), ops::index_select(table, 0, at), Partial()},
          Row{ops::gather(parts, 0, each), ops::gather(table, 0, each), Partial()},
          Row{ops::index_add(parts, 0, at, source), ops::index_add(table, 0, at, source), Shard(0)},
          Row{ops::scatter_add(parts, 0, each, source), ops::scatter_add(table, 0, each, source), Shard(0)}}) {
      expect(moved.launches, 0);
      expect(r.got.layout(), Layout{r.placement});
      expect(numbers(r.got.full_tensor()), numbers(r.expected.local()));
      moved.launches = 0;
    }
    // Sharded indices: each rank adds its own; x is added once.
    DistributedTensor sum = ops::index_add(table, 0, at.redistribute({Shard(0)}), source.redistribute({Shard(0)}));
    expect(sum.layout(), Layout{Partial()});
    expect(numbers(sum.full_tensor()), numbers(ops::index_add(table, 0, at, source).local()));
  });
}

TEST_CASE("additions to one place happen in the order of indices") {
  OneRank one;
  std::vector<float> v{1e8f, 1.0f, -1e8f, 1.0f};
  DistributedTensor source = one(Tensor::of<float>({4}, v)), x = one(Tensor::of<float>({2}, {0.0f, 0.0f}));
  DistributedTensor at = one(ids({4}, {1, 1, 1, 1}));
  for (const DistributedTensor& y : {ops::index_add(x, 0, at, source), ops::scatter_add(x, 0, at, source)})
    CHECK(numbers(y.full_tensor()) == std::vector<double>{0, double(((1e8f + 1.0f) - 1e8f) + 1.0f)});
}

TEST_CASE("one_hot is as wide as it is told, and its classes can be sharded") {
  OneRank one;
  CHECK(numbers(ops::one_hot(one(ids({2}, {2, 0})), 3).full_tensor()) == std::vector<double>{0, 0, 1, 1, 0, 0});
  CHECK(ops::one_hot(one(ids({0, 2}, {})), 0).shape() == Shape{0, 2, 0});
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    DistributedTensor x = DistributedTensor::distribute(ids({2}, {2, 0}), mesh, Layout());
    Layout wanted{Shard(1)};
    DistributedTensor y = call(ops::one_hot_op, {&x}, ops::OneHot{3}, {&wanted});
    expect(y.layout(), wanted);
    expect(numbers(y.full_tensor()), std::vector<double>{0, 0, 1, 1, 0, 0});
  });
}

// --- in place: a key/value cache

TEST_CASE("index_copy_ writes rows into its first operand in place and returns it") {
  OneRank one;
  DistributedTensor cache = one({3, 5, 2}), rows = one({3, 2, 2}), at = one(Tensor::of<int64_t>({2}, {4, 1}));
  std::vector<double> before = numbers(cache.local()), source = numbers(rows.local());
  DistributedTensor other = cache;
  uint32_t version = cache.version();
  std::byte* memory = cache.local().bytes_data();
  DistributedTensor y = ops::index_copy_(cache, 1, at, rows);
  CHECK(y.id() == cache.id());
  CHECK(cache.version() > version);
  CHECK(cache.local().bytes_data() == memory);
  std::vector<double> after = numbers(other.local());
  for (size_t a = 0; a < 3; ++a)
    for (size_t j = 0; j < 5; ++j)
      for (size_t q = 0; q < 2; ++q) {
        double expected = j == 4 ? source[a * 4 + q] : j == 1 ? source[a * 4 + 2 + q] : before[a * 10 + j * 2 + q];
        CHECK(after[a * 10 + j * 2 + q] == expected);
      }
  // Of equal indices the last one counts.
  ops::index_copy_(cache, 1, one(Tensor::of<int64_t>({2}, {0, 0})), rows);
  CHECK(numbers(cache.local())[1] == source[3]);
  // Positions are values: a loop over them is one decision.
  size_t calls = cached_calls(*one.rank);
  for (int64_t i = 0; i < 4; ++i) ops::index_copy_(cache, 1, one(Tensor::of<int64_t>({2}, {i, i + 1})), rows);
  CHECK(cached_calls(*one.rank) == calls);
}

TEST_CASE("index_copy_ does not disturb who shares memory with what it writes") {
  OneRank one;
  DistributedTensor x = one({4, 2}), top = ops::narrow(x, 0, 0, 2), at = one(Tensor::of<int64_t>({2}, {1, 2}));
  ops::index_copy_(x, 0, at, top);  // from itself: a view keeps the old values
  CHECK(numbers(x.local()) == std::vector<double>{0, 1, 0, 1, 2, 3, 6, 7});
  CHECK(numbers(top.local()) == std::vector<double>{0, 1, 2, 3});
  DistributedTensor two = one({2, 2});
  CHECK_THROWS_WITH(ops::index_copy_(two, 0, at, two),
                    "[index_copy_] operands 0 and 2 are one tensor, which is written in place: give a copy of it");
  DistributedTensor y = one({4, 2});
  CHECK_THROWS_WITH(ops::index_copy_(y, 0, one(Tensor::of<int64_t>({2}, {1, 4})), top),
                    "[index_copy_] index 4 is outside [0,4) of dimension 0");
  CHECK(numbers(y.local()) == numbers(iota({4, 2})));
  CHECK_THROWS_WITH(ops::index_copy_(y, 0, one({2}), top), Contains("[index_copy_] indices are i64"));
  CHECK_THROWS_WITH(ops::index_copy_(y, 0, at, one({2, 2}, DType::f64)),
                    Contains("[index_copy_] element types differ"));
  CHECK_THROWS_WITH(ops::index_copy_(y, 0, at, one({3, 2})), Contains("[index_copy_] sizes of i differ"));
}

TEST_CASE("index_copy_ leaves its first operand in its layout, whatever that is") {
  for (int ranks : {2, 3})
    launch(ranks, [&](Rank& rank) {
      DeviceMesh mesh(rank, fmt::format("tp={}", ranks));
      Tensor whole = iota({4, 5, 3}), rows = iota({4, 2, 3});
      OneRank one;
      DistributedTensor expected =
          ops::index_copy_(one(whole.clone()), 1, one(Tensor::of<int64_t>({2}, {3, 0})), one(rows));
      for (const Placement& p : {Replicate(), Shard(0), Shard(1), Shard(2), Partial(), Partial(Reduce::max)})
        for (const Placement& q : {Replicate(), Shard(0), Shard(1), Shard(2), Partial()}) {
          DistributedTensor cache = DistributedTensor::distribute(whole.clone(), mesh, {p});
          DistributedTensor at = DistributedTensor::distribute(Tensor::of<int64_t>({2}, {3, 0}), mesh, Layout());
          ops::index_copy_(cache, 1, at, DistributedTensor::distribute(rows, mesh, {q}));
          expect(cache.layout(), Layout{p});
          expect(numbers(cache.full_tensor()), numbers(expected.local()));
        }
    });
}
