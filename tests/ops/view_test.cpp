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
  CHECK(numbers(ops::transpose(x, 0, 1).local()) == numbers(ops::permute(x, {1, 0}).full()));
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
  CHECK(numbers(y.full())[1] == 6);
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
    expect(numbers(y.full()), numbers(iota({24})));
  });
}
