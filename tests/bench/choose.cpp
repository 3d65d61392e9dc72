// Host time of first decisions on a mesh of six axes, and of redistributions on 1,024 recorded ranks.
//
//     build/bench/choose
#include <chrono>
#include <cstdio>

#include "dtensor/creation.h"
#include "dtensor/redistribute.h"
#include "ops/all.h"

using namespace dtensor;

namespace {

template <class F>
void time(const char* what, int times, F f) {
  auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) f();
  double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / times;
  std::printf("%-48s %10.1f us\n", what, us);
}

}  // namespace

int main() {
  auto many = Rank::recorded(64);
  DeviceMesh six(*many, "pp=2,dr=2,ds=2,cp=2,tp=2,ep=2");
  auto tensor = [&](const char* spec) { return DistributedTensor::empty(six, parse_spec(spec, six.shape())); };
  auto x = tensor("f32[64,512,256] dr=Shard(0) ds=Shard(0) cp=Shard(1)"), w = tensor("f32[512,256] tp=Shard(0)");
  auto q = tensor("f32[64,32,512,64] dr=Shard(0) ds=Shard(0) tp=Shard(1) cp=Shard(2)");
  auto sum = tensor("f32[64,512,256] dr=Shard(0) ds=Shard(0) cp=Shard(1) tp=Partial");
  time("linear, first on six axes", 1, [&] { ops::linear(x, w); });
  time("attention, first on six axes", 1, [&] { ops::scaled_dot_product_attention(q, q, q, {.causal = true}); });
  time("relu of a Partial, first on six axes", 1, [&] { ops::relu(sum); });
  time("mul of two Partial, first on six axes", 1, [&] { ops::mul(sum, sum); });

  auto rank = Rank::recorded(1024);
  DeviceMesh mesh(*rank, "dp=1024");
  auto y = DistributedTensor::empty(mesh, {DType::f32, {8192, 8192}, Layout{Shard(0)}});
  time("Shard(0) to Shard(1) at 1,024 ranks, first", 1, [&] { y.redistribute({Shard(1)}); });
  time("Shard(0) to Shard(1) at 1,024 ranks, cached", 10000, [&] { y.redistribute({Shard(1)}); });
  time("Shard(0) to Replicate at 1,024 ranks, first", 1, [&] { y.redistribute({Replicate()}); });
  time("Shard(0) to Replicate at 1,024 ranks, cached", 10000, [&] { y.redistribute({Replicate()}); });
}
