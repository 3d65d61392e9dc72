#include <random>

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("views share storage, and say what does not fit") {
  OneRank one;
  DistributedTensor x = one({4, 6});
  for (const DistributedTensor& y : {ops::view(x, {2, 2, 6}), ops::view(x, {-1}), ops::permute(x, {1, 0}),
                                     ops::transpose(x, -1, 0), ops::expand(one({6}), {4, 6})}) {
    INFO(to_string(y));
    CHECK(numel(y.shape()) == 24);
  }
  CHECK(ops::view(x, {8, 3}).local().shares_storage(x.local()));
  CHECK(ops::transpose(x, 0, 1).local().shares_storage(x.local()));
  CHECK(numbers(ops::transpose(x, 0, 1).local()) == numbers(ops::permute(x, {1, 0}).full_tensor()));
  CHECK(numbers(ops::transpose(x, 0, 1).local())[1] == 6);
  CHECK(ops::view(x, {3, -1}).shape() == Shape{3, 8});
  CHECK_THROWS_WITH(ops::view(x, {5, -1}), Contains("[view] f32[4,6]") && Contains("does not divide into [5,-1]"));
  CHECK_THROWS_WITH(ops::view(x, {5, 5}), Contains("[view] 24 elements of [4,6] do not fit [5,5]"));
  CHECK_THROWS_WITH(ops::permute(x, {0, 0}), Contains("[permute] 0,0 is no order of 2 dimensions"));
  CHECK_THROWS_WITH(ops::expand(x, {4, 12}), Contains("[expand] dimension 1 of [4,6] is not 1"));
}

TEST_CASE("reshape copies where strides do not allow a view") {
  OneRank one;
  DistributedTensor t = ops::transpose(one({4, 6}), 0, 1);
  CHECK_THROWS_WITH(
      ops::view(t, {24}),
      Contains("[view] the local part [6,4] with strides [1,6] has no view of shape [24]: use reshape()"));
  DistributedTensor y = ops::reshape(t, {24});
  CHECK(numbers(y.full_tensor())[1] == 6);
  CHECK(!y.local().shares_storage(t.local()));
}

TEST_CASE("a sharded dimension that leads its group stays sharded in a view") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor x = DistributedTensor::distribute(iota({4, 12}), mesh, {Shard(1)});
    DistributedTensor heads = ops::view(x, {4, 6, 2});
    expect(heads.layout(), Layout{Shard(1)});
    expect(ops::view(heads, {4, 12}).layout(), Layout{Shard(1)});
    expect(ops::view(x.redistribute({Shard(0)}), {2, 2, 12}).layout(), Layout{Shard(0)});
  });
}

TEST_CASE("a view that cannot keep its sharding is an error that says what to do, where reshape communicates") {
  CHECK_THROWS_WITH(launch(2,
                           [](Rank& rank) {
                             DeviceMesh mesh(rank, "tp=2");
                             ops::view(DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(1)}), {4, 3, 2});
                           }),
                    Contains("[view] f32[4,6] tp=Shard(1) (shape=4,3,2) cannot keep its sharding on mesh tp=2") &&
                        Contains("redistribute to tp="));
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor x = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(1)});
    Moved moved(rank);
    DistributedTensor y = ops::reshape(x, {4, 3, 2});
    expect(moved.launches, 1);
    expect(numbers(y.full_tensor()), numbers(iota({24})));
  });
}

TEST_CASE("flatten, unflatten, squeeze, unsqueeze and expand: shapes, and errors that show the values") {
  OneRank one;
  DistributedTensor x = one({4, 6}), ones = one({1, 3, 1}), scalar = one(Shape{});
  struct Row {
    DistributedTensor got;
    Shape expected;
  };
  for (const Row& r : {Row{ops::flatten(x), {24}}, Row{ops::flatten(one({2, 3, 4}), -2), {2, 12}},
                       Row{ops::flatten(scalar), {1}}, Row{ops::flatten(one({0, 3}), 0, 0), {0, 3}},
                       Row{ops::unflatten(x, 1, {-1, 2}), {4, 3, 2}}, Row{ops::unflatten(one({0}), 0, {0, 2}), {0, 2}},
                       Row{ops::squeeze(ones), {3}}, Row{ops::squeeze(ones, {-1, 1}), {1, 3}},
                       Row{ops::squeeze(one({1, 1})), {}}, Row{ops::unsqueeze(x, -1), {4, 6, 1}},
                       Row{ops::unsqueeze(scalar, 0), {1}}, Row{ops::expand(ones, {2, -1, -1, 5}), {2, 1, 3, 5}}}) {
    INFO(to_string(r.got));
    CHECK(r.got.shape() == r.expected);
    CHECK(r.got.local().shape() == r.expected);
  }
  CHECK(ops::unsqueeze(ops::squeeze(ops::unflatten(x, 1, {1, 6})), 0).local().shares_storage(x.local()));
  CHECK(ops::squeeze(x).id() == x.id());

  CHECK_THROWS_WITH(ops::reshape(x, {5, 5}), Contains("[reshape] 24 elements of [4,6] do not fit [5,5]"));
  CHECK_THROWS_WITH(ops::flatten(x, 1, 0), Contains("[flatten] start_dim 1 lies behind end_dim 0 in f32[4,6]"));
  CHECK_THROWS_WITH(ops::unflatten(x, 1, {4, 2}),
                    Contains("[unflatten] sizes [4,2] do not multiply to 6, dimension 1 of f32[4,6]"));
  CHECK_THROWS_WITH(ops::unflatten(x, 1, {4, -1}), Contains("[unflatten] f32[4,6]") && Contains("[4,-1]"));
  CHECK(ops::transpose(scalar, 0, -1).shape() == Shape{});
  CHECK_THROWS_WITH(ops::transpose(scalar, 0, 1), Contains("[transpose] dimension 1 is out of range"));
  CHECK_THROWS_WITH(ops::squeeze(scalar, {0, -1}), Contains("[squeeze] a dimension is named twice in 0,-1"));
  CHECK_THROWS_WITH(ops::squeeze(x, {2}), Contains("[squeeze] dimension 2 is out of range for 2 dimensions"));
  CHECK_THROWS_WITH(ops::unsqueeze(x, 3), Contains("[unsqueeze] dimension 3 is out of range for 3 dimensions"));
  CHECK_THROWS_WITH(ops::expand(x, {6}), Contains("[expand] [4,6] has more dimensions than [6]"));
  CHECK_THROWS_WITH(ops::expand(x, {-1, 4, 6}), Contains("[expand] [-1,4,6] is no shape for f32[4,6]"));
}

TEST_CASE("a sharded size stays sharded when it is split into a size that the ranks divide") {
  launch(4, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=4");
    DistributedTensor x = DistributedTensor::distribute(iota({8, 16}), mesh, {Shard(1)});
    DistributedTensor heads = ops::view(x, {8, 4, 4});
    expect(heads.layout(), Layout{Shard(1)});
    expect(ops::unflatten(x, 1, {4, 4}).layout(), Layout{Shard(1)});
    expect(ops::flatten(heads, 1).layout(), Layout{Shard(1)});
    expect(ops::unsqueeze(x, 0).layout(), Layout{Shard(2)});
    expect(numbers(heads.full_tensor()), numbers(iota({128})));
  });
  CHECK_THROWS_WITH(launch(4,
                           [](Rank& rank) {
                             DeviceMesh mesh(rank, "tp=4");
                             auto x = DistributedTensor::distribute(iota({8, 12}), mesh, {Shard(1)});
                             ops::unflatten(x, 1, {6, 2});
                           }),
                    Contains("[unflatten] f32[8,12] tp=Shard(1) (shape=8,6,2) cannot keep its sharding"));
}

namespace {

// A shape of `n` elements: its divisors one after another, with dimensions of size 1 between.
Shape random_shape(int64_t n, std::minstd_rand& random) {
  Shape s;
  while (s.dims() < 6 && (n > 1 || random() % 3 == 0)) {
    std::vector<int64_t> divisors;
    for (int64_t d = 1; d <= n; ++d)
      if (n % d == 0) divisors.push_back(d);
    int64_t d = s.dims() == 5 ? n : divisors[random() % divisors.size()];
    s.push_back(d), n /= d;
  }
  return s;
}

Layout random_layout(int axes, int dims, std::minstd_rand& random) {
  Layout l;
  for (int a = 0; a < axes; ++a) {
    int axis = axes == 2 && random() % 2 ? 1 - a : a, kind = int(random() % 5);
    if (l[axis] != Placement(Replicate())) continue;
    if (kind == 0)
      l = l.with(axis, Partial());
    else if (kind > 1 && dims > 0)
      l = l.with_innermost(axis, int(random() % size_t(dims)));
  }
  return l;
}

}  // namespace

TEST_CASE("view is right or refused, and reshape always right: random shapes, layouts and meshes") {
  int kept = 0, refused = 0;
  for (const char* text : {"x=2", "x=3", "x=4", "x=2,y=2", "x=2,y=3"}) {
    MeshShape shape = MeshShape::parse(text);
    launch(shape.world(), [&](Rank& rank) {
      DeviceMesh mesh(rank, shape);
      for (unsigned seed = 1; seed <= 150; ++seed) {
        std::minstd_rand random(seed * 7919);
        random.discard(8);
        constexpr int64_t counts[] = {0, 1, 6, 8, 12, 24, 36, 64, 120};
        int64_t n = counts[random() % 9];
        Shape from = n ? random_shape(n, random) : Shape{3, 0, 2}, to = n ? random_shape(n, random) : Shape{0, 6};
        Layout layout = random_layout(shape.axes(), from.dims(), random);
        auto x = DistributedTensor::distribute(iota(from), mesh, layout);
        auto check_values = [&](const DistributedTensor& y, const char* what) {
          if (y.shape() != to || numbers(y.full_tensor()) != numbers(iota({n})))
            fail("seed {} on {}: {} of {} to {} is wrong", seed, text, what, to_string(x), to_string(to));
        };
        check_values(ops::reshape(x, to), "reshape");
        DistributedTensor y;
        try {
          Moved moved(rank);
          y = ops::view(x, to);
          if (moved.launches) fail("seed {} on {}: view of {} moves {}", seed, text, to_string(x), moved.log);
        } catch (const Error& e) {
          if (std::string(e.what()).find("cannot keep its sharding") == std::string::npos) throw;
          if (rank.rank() == 0) ++refused;
          continue;
        }
        if (rank.rank() == 0) ++kept;
        check_values(y, "view");
      }
    });
  }
  INFO(kept << " kept, " << refused << " refused");
  CHECK(kept > 100);
  CHECK(refused > 100);
}
