// The pages' C++ compiles as it is written (see blocks.awk), runs, and prints what the page says.
#include <catch2/catch.hpp>
#include <iostream>
#include <sstream>

#include "dtensor/creation.h"
#include "dtensor/launch.h"

using namespace dtensor;

void sharded_tensors_1();
void sharded_tensors_2(Rank&, const DeviceMesh&, DistributedTensor, DistributedTensor);
void sharded_tensors_3(Rank&, const DeviceMesh&, DistributedTensor, DistributedTensor);
void sharded_tensors_4(Rank&, const DeviceMesh&, DistributedTensor, DistributedTensor);
void sharded_tensors_5(Rank&, const DeviceMesh&, DistributedTensor, DistributedTensor);
void sharded_tensors_6(Rank&, const DeviceMesh&, DistributedTensor, DistributedTensor);
void readme_1();

namespace {

template <class F>
std::string printed(F f) {
  std::ostringstream text;
  std::streambuf* before = std::cout.rdbuf(text.rdbuf());
  f();
  std::cout.rdbuf(before);
  return text.str();
}

}  // namespace

TEST_CASE("docs: sharded tensors") {
  CHECK(printed(sharded_tensors_1) ==
        "f32[2,2] dp=Shard(0) tp=Shard(1)\n"
        "rank 0 at [0,0]: f32[1,1]\n"
        "[[1.]]\n"
        "4\n");
  for (auto fragment :
       {sharded_tensors_2, sharded_tensors_3, sharded_tensors_4, sharded_tensors_5, sharded_tensors_6}) {
    auto rank = Rank::recorded(4);
    DeviceMesh mesh(*rank, "dp=2,tp=2");
    printed([&] { fragment(*rank, mesh, ones(mesh, "f32[2,2] dp=Shard(0)"), ones(mesh, "f32[2,2] tp=Shard(1)")); });
  }
}

TEST_CASE("docs: README") {
  CHECK(printed(readme_1) ==
        "f32[1,1] tp=Partial(sum)\n"
        "rank 0 at [0,0]: f32[1,1]\n"
        "[[1.]]\n"
        "f32[1,1] tp=Replicate\n"
        "rank 0 at [0,0]: f32[1,1]\n"
        "[[10.]]\n"
        "         all_reduce     tp            24 B  f32[1,1] tp=Partial(sum) -> tp=Replicate  \n");
}
