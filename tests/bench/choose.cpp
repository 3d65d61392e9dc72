// Host time of first decisions on a mesh of six axes, and of redistributions on 1,024 recorded ranks.
//
//     build/bench/choose
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "dtensor/creation.h"
#include "dtensor/redistribute.h"
#include "ops/all.h"
#include "placement/propagate.h"

using namespace dtensor;

namespace {

template <class F>
void time(const char* what, int times, F f) {
  auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) f();
  double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / times;
  std::printf("%-48s %10.1f us\n", what, us);
}

// Choices for operands in random layouts on six axes of two ranks: the median and the worst.
void choose_random(const char* what, const Op& op, const std::vector<Shape>& shapes) {
  MeshShape mesh = MeshShape::parse("pp=2,dr=2,ds=2,cp=2,tp=2,ep=2");
  std::mt19937 random(1);
  auto below = [&](int n) { return int(random() % unsigned(n)); };
  auto random_layout = [&](int dims) {
    Layout l;
    for (int a = 0; a < mesh.axes(); ++a) {
      int d = below(dims + 2);
      if (d < dims)
        l.split[size_t(d)].insert(below(l.split[size_t(d)].count + 1), a);
      else if (d > dims)
        l.partial |= axis_bit(a);
    }
    return l;
  };
  std::vector<const Shape*> inputs;
  for (const Shape& s : shapes) inputs.push_back(&s);
  BoundRule rule = bind_rule(op, inputs, {}, DType::f32);
  std::vector<double> us;
  for (int i = 0; i < 50; ++i) {
    std::vector<TensorSpec> specs;
    for (const Shape& s : shapes) specs.push_back({DType::f32, s, random_layout(s.dims())});
    std::vector<const TensorSpec*> operands;
    for (const TensorSpec& s : specs) operands.push_back(&s);
    auto begin = std::chrono::steady_clock::now();
    choose({rule, mesh, operands, {}, CostModel{}});
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(us.begin(), us.end());
  std::printf("%s, random layouts on six axes: median %.1f us, worst %.1f us of %zu\n", what, us[us.size() / 2],
              us.back(), us.size());
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
  auto two = tensor("f32[64,512,256] dr=Shard(0) tp=Partial ep=Partial");
  auto three = tensor("f32[64,512,256] dr=Shard(0) cp=Partial tp=Partial ep=Partial");
  time("relu of a Partial on two of six axes, first", 1, [&] { ops::relu(two); });
  time("relu of a Partial on three of six axes, first", 1, [&] { ops::relu(three); });
  choose_random("relu", ops::relu_op, {{64, 512, 256}});
  choose_random("mul", ops::mul_op, {{64, 512, 256}, {64, 512, 256}});
  choose_random("matmul", ops::matmul_op, {{64, 512, 256}, {256, 512}});
  choose_random("linear", ops::linear_op, {{64, 512, 256}, {512, 256}, {512}});
  choose_random("embedding", ops::embedding_op, {{64, 512}, {32000, 256}});

  auto rank = Rank::recorded(1024);
  DeviceMesh mesh(*rank, "dp=1024");
  auto y = DistributedTensor::empty(mesh, {DType::f32, {8192, 8192}, Layout{Shard(0)}});
  time("Shard(0) to Shard(1) at 1,024 ranks, first", 1, [&] { y.redistribute({Shard(1)}); });
  time("Shard(0) to Shard(1) at 1,024 ranks, cached", 10000, [&] { y.redistribute({Shard(1)}); });
  time("Shard(0) to Replicate at 1,024 ranks, first", 1, [&] { y.redistribute({Replicate()}); });
  time("Shard(0) to Replicate at 1,024 ranks, cached", 10000, [&] { y.redistribute({Replicate()}); });
}
