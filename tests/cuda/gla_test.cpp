// Gated linear attention on CUDA gives what the CPU's gives: over many chunks and tiles, whatever the gates are.
#include "ops/layer/gla.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "ops/functions.h"
#include "ops/testing/simulation.h"

using namespace dtensor;

namespace {

struct Sizes {
  int64_t rows, keys, values;
};

Tensor wave(const Shape& shape, double seed) {
  std::vector<double> v;
  for (int64_t i = 0; i < numel(shape); ++i) v.push_back(std::sin(1.3 + seed + 2.3 * double(i) * (1 + 0.01 * seed)));
  return Tensor::of<double>(shape, v);
}

// What an operand of the type is rounded to, in a type that the CPU computes in.
struct Operands {
  DType type, wide;  // of q, k, v and their gradients; of gates and states
  std::vector<Tensor> sequences, wides;

  // Gates are in (-strength, 0).
  Operands(DType t, const Sizes& s, double strength) : type(t), wide(t == DType::bf16 ? DType::f32 : t) {
    const int64_t b = 2, h = 3;
    Shape keys{b, s.rows, h, s.keys}, values{b, s.rows, h, s.values}, states{b, h, s.keys, s.values};
    sequences = {wave(keys, 1), wave(keys, 2), wave(values, 3), wave(values, 4)};  // q, k, v, dout
    wides = {wave(keys, 5), wave(states, 6), wave(states, 7)};                     // g, the first state, dlast
    double* g = wides[0].data<double>();
    for (int64_t i = 0; i < wides[0].numel(); ++i) g[i] = -strength * (0.5 + 0.5 * g[i]);
  }

  // out, last, dk, dv, dg, dq and dfirst, in f64. With `computed`, from the same values in another type.
  std::vector<Tensor> results(const DeviceMesh& mesh, DType computed) const {
    auto rank = Rank::single();
    DeviceMesh host(*rank, "x=1");
    auto on = [&](const Tensor& t, DType rounded, DType to) {
      DistributedTensor x = ops::cast(DistributedTensor::distribute(t, host, Layout()), rounded);
      Tensor local = (to == rounded ? x : ops::cast(x, to)).local();
      return DistributedTensor::from_local(local.to(mesh.rank_state().allocator()), mesh, Layout(), t.shape());
    };
    DType of_wide = computed == DType::bf16 ? DType::f32 : computed;
    std::vector<DistributedTensor> x, y;
    for (const Tensor& t : sequences) x.push_back(on(t, type, computed));
    for (const Tensor& t : wides) y.push_back(on(t, wide, of_wide));
    ops::GatedLinear attributes{0.3};
    auto all = call_all(ops::gated_linear_attention_op, {&x[0], &x[1], &x[2], &y[0], &y[1]}, attributes);
    for (DistributedTensor& d : call_all(ops::gated_linear_attention_backward_op,
                                         {&x[3], &y[2], &x[0], &x[1], &x[2], &y[0], &y[1]}, attributes))
      all.push_back(d);
    std::vector<Tensor> result;
    for (const DistributedTensor& t : all)
      result.push_back(
          ops::cast(DistributedTensor::distribute(t.local().cpu().contiguous(), host, Layout()), DType::f64).local());
    return result;
  }
};

// Relative to the largest, but of what is all but 0.
double difference(const Tensor& a, const Tensor& b) {
  double most = 0, scale = 1e-6;
  for (int64_t i = 0; i < a.numel(); ++i) {
    double x = element(a, i), y = element(b, i);
    most = std::max(most, std::isnan(x) ? 1e9 : std::abs(x - y)), scale = std::max(scale, std::abs(y));
  }
  return most / scale;
}

}  // namespace

TEST_CASE("gated linear attention on CUDA is the CPU's in f64, over chunks and tiles, whatever the gates") {
  auto cpu = Rank::single(), cuda = Rank::single(Device::cuda);
  DeviceMesh on_cpu(*cpu, "x=1"), on_cuda(*cuda, "x=1");
  const char* const names[] = {"out", "last", "dk", "dv", "dg", "dq", "dfirst"};
  for (auto [type, tolerance] : {std::pair(DType::f64, 1e-11), {DType::f32, 1e-5}, {DType::bf16, 0.01}})
    for (const Sizes& s : {Sizes{1, 1, 1}, {64, 64, 64}, {65, 70, 3}, {150, 5, 66}})
      for (double strength : {1e-3, 8.0, 1e4}) {
        INFO(name(type) << ", " << s.rows << " rows of " << s.keys << " keys and " << s.values << " values, gates to -"
                        << strength);
        Operands operands(type, s, strength);
        std::vector<Tensor> expected = operands.results(on_cpu, DType::f64), got = operands.results(on_cuda, type);
        REQUIRE(got.size() == 7);
        for (size_t i = 0; i < got.size(); ++i) {
          INFO(names[i]);
          CHECK(difference(got[i], expected[i]) < tolerance);
        }
      }
}
