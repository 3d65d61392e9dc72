// What the dispatcher says of calls on CUDA.
#include <catch2/catch.hpp>

#include "ops/all.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("CUDA: a program's own card does not run a library kernel because of its name") {
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(Tensor::of<float>({2}, {-1, 1}), mesh, Layout());
  CHECK(element(ops::relu(x).local().cpu(), 0) == 0);
  const Op own = {.name = "relu", .rule = "...->...", .cpu = ops::relu_op.cpu}, copy = ops::relu_op;
  CHECK_THROWS_WITH(call(own, {&x}), "[relu] has no kernel for cuda");
  CHECK_THROWS_WITH(call(copy, {&x}), "[relu] has no kernel for cuda");
}

TEST_CASE("CUDA: an operand in host memory, or of another rank's device or stream, is an error that says what to do") {
  auto rank = Rank::single(Device::cuda), other = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "x=1");
  Tensor host = Tensor::of<float>({2}, {-1, 1}), elsewhere = host.to(other->allocator());
  auto at = [&](const Tensor& t) { return DistributedTensor::empty(mesh, mesh.intern({DType::f32, {2}, {}}), t); };
  DistributedTensor x = at(host.to(rank->allocator()));
  CHECK(element(ops::add(x, x).local().cpu(), 1) == 2);
  CHECK_THROWS_WITH(ops::add(x, at(host)),
                    "[add] operand 1, f32[2] x=Replicate, is on cpu and this rank's kernels on cuda; bring its part "
                    "here, .to(rank.allocator())");
  CHECK_THROWS_WITH(ops::relu(at(elsewhere)), Contains("[relu] operand 0") &&
                                                  Contains("is on another device or stream of cuda") &&
                                                  Contains(".to(rank.allocator())"));
}
