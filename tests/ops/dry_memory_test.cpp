// What a dry run says about memory.
#include <catch2/catch.hpp>

#include "dtensor/creation.h"
#include "ops/all.h"
#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

struct Memory {
  std::vector<int64_t> in_use;
  int64_t peak = 0;
  bool operator==(const Memory&) const = default;
};

// A program that has views, copies of views, collectives of every kind and writing in place.
Memory program(Rank& rank, const char* axes) {
  DeviceMesh mesh(rank, axes);
  Memory seen;
  auto note = [&] {
    mesh.communicator(mesh.shape().all()).barrier();  // a collective's tensors are let go by whoever is last
    seen.in_use.push_back(rank.allocator()->bytes_in_use());
  };
  {
    DistributedTensor x = empty(mesh, "f32[8,6,10] x=Shard(0)"), w = empty(mesh, "f32[20,10] x=Shard(1)");
    note();
    DistributedTensor y = ops::transpose(x, 0, 1);
    note();  // a view is for nothing
    y = ops::slice(y, 2, 1, 6);
    DistributedTensor z = ops::gelu(y);  // of a copy of what is strided
    note();
    z = ops::reshape(ops::transpose(z, 1, 2), {30, 8});  // a view, or a copy where there is none
    note();
    x = DistributedTensor(), y = DistributedTensor();
    note();
    DistributedTensor product = ops::matmul(z, ops::transpose(z, 0, 1));
    note();
    z = z.redistribute("x=Shard(1)");
    note();
    w = w.redistribute("x=Shard(0)");
    note();
    product = product.redistribute("x=Replicate");
    DistributedTensor partial = ops::sum(w, {0});
    note();
    partial = partial.redistribute("x=Shard(0)").redistribute("x=Replicate");
    note();
    DistributedTensor handle = product;
    handle.copy_(product + product);
    note();
    Tensor held = product.local().narrow(0, 0, 1);
    product = handle = DistributedTensor();
    note();
  }
  note();
  seen.peak = rank.allocator()->peak_bytes();
  return seen;
}

}  // namespace

TEST_CASE("law 8: the memory of a dry run is the run's, on the CPU") {
  for (const char* mesh : {"x=1", "x=2", "x=3", "x=16"}) {
    int world = MeshShape::parse(mesh).world();
    Memory real;
    launch(world,
           [&](Rank& rank) {
             Memory mine = program(rank, mesh);
             if (rank.rank() == 0) real = mine;
           },
           {.threads = 1});
    auto rank = Rank::recorded(world);
    Memory dry = program(*rank, mesh);
    INFO(mesh);
    CHECK(dry.in_use == real.in_use);
    CHECK(dry.in_use.back() == 0);
    CHECK(dry.peak == real.peak);
  }
}

TEST_CASE("law 8: a placeholder counts nothing until it is materialized") {
  auto program = [](Rank& rank) {
    DeviceMesh mesh(rank, "x=1");
    SpecHandle spec = mesh.intern({DType::f32, {10, 10}, {}});
    DistributedTensor x = DistributedTensor::empty(mesh, spec, Tensor::placeholder(DType::f32, {10, 10}));
    DistributedTensor y = ops::transpose(x, 0, 1);
    int64_t born = rank.allocator()->bytes_in_use();
    x.materialize();
    return std::pair(born, rank.allocator()->bytes_in_use());
  };
  auto real = Rank::single(), dry = Rank::recorded(1);
  CHECK(program(*real) == std::pair<int64_t, int64_t>(0, 400));
  CHECK(program(*dry) == std::pair<int64_t, int64_t>(0, 400));
}
