// Every CUDA kernel gives what the CPU's gives: on its card's samples, with each dimension set to 0, 1 and larger
// sizes, in f32, f64 and bf16, and from inputs of any strides.
#include <catch2/catch.hpp>
#include <map>
#include <numeric>

#include "ops/all.h"
#include "ops/cuda/kernels.h"
#include "ops/testing/simulation.h"

using namespace dtensor;
using Catch::Contains;
using testing::Case;

namespace {

// Cards that have no CUDA kernel, and why.
const std::map<std::string_view, std::string_view> not_on_cuda = {
    {"sort", "no sort is written for the device yet"},
    {"topk", "no sort is written for the device yet"},
};

// Operands that are f32 beside bf16 (statistics of rows), where the card's types do not say so.
const std::map<std::string_view, std::vector<size_t>> f32_beside_bf16 = {
    {"attention_backward", {5}}, {"gated_linear_attention", {3, 4}}, {"gated_linear_attention_backward", {1, 5, 6}},
    {"linear_state", {2}},       {"merge_attention", {0, 1, 3}},     {"cross_entropy_rows", {0, 1, 2, 4}},
    {"norm_root", {0, 1}},       {"norm_statistics", {0, 1}}};

// The largest size of a dimension. Products of many numbers leave the range of f32; heads have at most 256 elements;
// tiles of gated linear attention are whole for each head, and gla_test.cpp has its large sizes.
const std::map<std::string_view, int64_t> largest_size = {{"prod", 8},
                                                          {"attention", 64},
                                                          {"attention_backward", 64},
                                                          {"gated_linear_attention", 9},
                                                          {"gated_linear_attention_backward", 9},
                                                          {"linear_state", 9}};

struct Ranks {
  std::shared_ptr<Rank> cpu = Rank::single(), cuda = Rank::single(Device::cuda);
  DeviceMesh on_cpu{*cpu, "x=1"}, on_cuda{*cuda, "x=1"};
};

bool runs_on_cuda(const Op& op) { return !not_on_cuda.contains(op.name); }

// --- Inputs

using View = Tensor (*)(const Tensor&);
Tensor as_they_are(const Tensor& t) { return t; }
// From one element behind the beginning of memory on.
Tensor misaligned(const Tensor& t) {
  Tensor memory(t.allocator(), t.dtype(), {t.numel() + 1});
  Tensor view = memory.narrow(0, 1, t.numel()).view(t.shape());
  copy(t, view);
  return view;
}
// The same values, dimensions in memory the other way round.
Tensor reversed(const Tensor& t) {
  std::vector<int> order(size_t(t.dims()));
  std::iota(order.rbegin(), order.rend(), 0);
  return t.permute(order).clone().permute(order);
}
// The first slice of the last dimension, again and again.
Tensor repeated(const Tensor& t) {
  if (t.numel() == 0 || t.dims() == 0) return t;
  Shape strides = t.strides();
  strides[t.dims() - 1] = 0;
  return t.as_strided(t.shape(), strides);
}

Tensor converted(const Tensor& t, DType to) {
  DeviceMesh mesh(*Rank::single(), "x=1");
  return ops::cast(DistributedTensor::distribute(t, mesh, Layout()), to).local();
}
// Floating inputs become `type`, or f32 where the card wants it beside bf16.
std::vector<Tensor> inputs_of(const Case& c, DType type) {
  Case typed = c;
  auto convert = [&](size_t k, DType to) {
    Tensor& t = typed.inputs[k];
    if (t.defined() && is_floating(t.dtype())) t = converted(c.inputs[k], to);
  };
  for (size_t k = 0; k < c.inputs.size(); ++k) convert(k, type);
  if (type != DType::bf16) return typed.inputs;
  if (auto known = f32_beside_bf16.find(c.op.name); known != f32_beside_bf16.end())
    for (size_t k : known->second) convert(k, DType::f32);
  if (c.op.composite) return typed.inputs;
  for (size_t k = 0; k < c.inputs.size(); ++k) try {
      testing::Simulation(typed).output_type(0);
    } catch (const Error& e) {
      if (std::string(e.what()).find(fmt::format("operand {} is bf16", k)) != std::string::npos) convert(k, DType::f32);
    }
  return typed.inputs;
}

std::vector<Tensor> run(const Case& c, const std::vector<Tensor>& inputs, const DeviceMesh& mesh, View view) {
  std::vector<DistributedTensor> in;
  for (const Tensor& t : inputs)
    in.push_back(!t.defined() ? DistributedTensor()
                              : DistributedTensor::from_local(view(t.to(mesh.rank_state().allocator())), mesh, Layout(),
                                                              t.shape()));
  std::vector<const DistributedTensor*> pointers;
  for (const DistributedTensor& x : in) pointers.push_back(x.defined() ? &x : nullptr);
  std::vector<Tensor> out;
  for (const DistributedTensor& y : call_all(c.op, pointers, c.attributes)) out.push_back(y.local().cpu().contiguous());
  return out;
}

// --- Comparing

void compare(Ranks& ranks, const Case& c, DType type, View view, double tolerance) {
  INFO(c.op.name << " in " << name(type) << ", " << c.name);
  // The CPU has no bf16: it computes in f32 from the rounded inputs.
  std::vector<Tensor> inputs = inputs_of(c, type), on_cpu = inputs;
  if (type == DType::bf16)
    for (Tensor& t : on_cpu)
      if (t.defined() && t.dtype() == DType::bf16) t = converted(t, DType::f32);
  std::vector<Tensor> expected = run(c, on_cpu, ranks.on_cpu, view), got = run(c, inputs, ranks.on_cuda, view),
                      again = run(c, inputs, ranks.on_cuda, view);
  REQUIRE(got.size() == expected.size());
  for (size_t o = 0; o < got.size(); ++o) {
    INFO("output " << o);
    if (type != DType::bf16) REQUIRE(got[o].dtype() == expected[o].dtype());
    REQUIRE(testing::difference(converted(got[o], DType::f64), converted(expected[o], DType::f64), tolerance) == "");
    REQUIRE(testing::same_bits(got[o], again[o]));
  }
}

double tolerance_of(DType t) { return t == DType::f64 ? 1e-11 : t == DType::f32 ? 1e-5 : 0x1p-7; }

// Classes that do not exist are NaN on CUDA, and the CPU's backward pass does not look for them.
bool has_unknown_targets(const Case& c) {
  if (c.op.name != "cross_entropy_backward") return false;
  for (int64_t i = 0; i < c.inputs[3].numel(); ++i)
    if (element(c.inputs[3], i) >= double(c.inputs[0].shape().back())) return true;
  return false;
}

bool has_floats(const Case& c) {
  return std::any_of(c.inputs.begin(), c.inputs.end(),
                     [](const Tensor& t) { return t.defined() && is_floating(t.dtype()); });
}

}  // namespace

TEST_CASE("every card has a CUDA kernel, or a reason why not") {
  for (const Op* op : ops::cards()) {
    INFO(op->name);
    if (!op->composite) CHECK(runs_on_cuda(*op) == (op->view || op->cuda || cuda::find_kernel(*op)));
  }
  for (const auto& [name, reason] : not_on_cuda) CHECK(ops::find(name).name == name);
}

// One section per card: -c NAME runs it alone.
TEST_CASE("CUDA kernels agree with the CPU's on samples of cards") {
  Ranks ranks;
  for (const Op* op : ops::cards()) {
    if (!runs_on_cuda(*op)) continue;
    DYNAMIC_SECTION(std::string(op->name)) {
      auto limit = largest_size.find(op->name);
      int64_t largest = limit == largest_size.end() ? 257 : limit->second;
      for (const Case& c : testing::cases_of(*op, {0, 1, 8, largest}, 1)) {
        if (has_unknown_targets(c)) continue;
        for (DType type : {DType::f32, DType::f64, DType::bf16}) {
          compare(ranks, c, type, as_they_are, tolerance_of(type));
          if (!has_floats(c)) break;
          if (type == DType::f64) continue;
          compare(ranks, c, type, misaligned, tolerance_of(type));
          if (!op->strided || op->stays) continue;
          compare(ranks, c, type, reversed, tolerance_of(type));
          compare(ranks, c, type, repeated, tolerance_of(type));
        }
      }
    }
  }
}

namespace {

const double infinity = std::numeric_limits<double>::infinity();
const std::vector<double> special = {0.0,      -0.0,      1,   -1,   0.5,   -0.5, 1.5,   -2.5, 3,   -0.3,
                                     infinity, -infinity, NAN, 1e10, -1e10, 88.5, -88.5, -103, 19.5};

// Whether every dimension is one of "...".
bool is_elementwise(const Case& c) {
  if (!c.op.strided || c.op.view || c.op.composite || c.attributes.values().has("dims")) return false;
  testing::Simulation s(c);
  return std::all_of(s.rule().factors().begin(), s.rule().factors().end(),
                     [](const Factor& f) { return f.name <= 'Z'; });
}

// All pairs of special values, and some triples.
std::vector<Tensor> specials(const Case& c) {
  size_t n = special.size();
  std::vector<Tensor> inputs;
  for (const Tensor& t : c.inputs) {
    size_t k = inputs.size();
    if (!t.defined() || !is_floating(t.dtype())) {
      inputs.push_back(t.defined() ? t.as_strided({int64_t(n * n)}, {0}).clone() : t);
      continue;
    }
    std::vector<float> v;
    for (size_t i = 0; i < n * n; ++i)
      v.push_back(float(special[k == 0 ? i % n : k == 1 ? i / n : (i * 7 + i / n) % n]));
    inputs.push_back(Tensor::of<float>({int64_t(n * n)}, v));
  }
  return inputs;
}

// Each element up to its own size, and the sign of zeros.
std::string mismatch(const Tensor& got, const Tensor& expected) {
  for (int64_t i = 0; i < got.numel(); ++i) {
    double x = element(got, i), y = element(expected, i);
    bool same = std::isnan(y) ? std::isnan(x)
                : x == y      ? y != 0 || std::signbit(x) == std::signbit(y)
                              : std::abs(x - y) <= 2e-6 * std::max(std::abs(y), 1e-3);
    if (!same) return fmt::format("element {} is {}, not {}", i, x, y);
  }
  return "";
}

}  // namespace

TEST_CASE("element-wise CUDA kernels agree with the CPU's at infinities, NaN, zeros and large numbers") {
  Ranks ranks;
  int cards = 0;
  for (const Op* op : ops::cards()) {
    if (!runs_on_cuda(*op)) continue;
    std::vector<Case> cases = testing::cases_of(*op, {}, 1);
    cards += is_elementwise(cases[0]);
    for (const Case& c : cases) {
      if (!is_elementwise(c) || !has_floats(c)) continue;
      INFO(op->name << ", " << c.name);
      std::vector<Tensor> inputs = specials(c), expected = run(c, inputs, ranks.on_cpu, as_they_are),
                          got = run(c, inputs, ranks.on_cuda, as_they_are);
      for (size_t o = 0; o < got.size(); ++o) CHECK(mismatch(got[o], expected[o]) == "");
    }
  }
  CHECK(cards > 50);
}
