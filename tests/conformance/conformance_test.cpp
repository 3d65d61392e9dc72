#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <iostream>

#include "dtensor/launch.h"
#include "ops/all.h"
#include "ops/family/kernel.h"
#include "ops/testing/check.h"
#include "ops/testing/simulation.h"
#include "tests/errors.h"

using namespace dtensor;
using SampleKind = SampleInput::Kind;

namespace {

// What the reports may contain: the beginning of an entry, and why it is so. An entry that is not here is new, and
// fails.
struct Known {
  std::string_view card, entry, reason;
};

constexpr Known not_offered[] = {
    {"attention_backward", "Partial(sum),Replicate,Replicate,Replicate,Replicate,Replicate,",
     "dout alone is cheaper to reduce than dq, dk and dv"},
    {"attention_backward", "Replicate,Replicate,Replicate,Partial(sum),Partial(sum),Replicate,",
     "dv does not depend on v and out: of use to nobody"},
    {"attention",
     "Replicate,Shard(t),Shard(t),Replicate,Replicate,Replicate,Replicate,Replicate,Replicate,Replicate,Shard(t)",
     "only where all that a query sees is on one rank, as a sample's documents are"},
    {"merge_attention", "Shard(d),Replicate,Shard(d),Replicate->Shard(d),Replicate",
     "attention has whole heads, and nobody else calls it"},
    {"gated_linear_attention_backward", "Replicate,",
     "some gradients do not depend on some operands: dout and dlast are cheaper to reduce"},
    {"state_scan_backward", "Replicate,Replicate,Replicate,Partial(sum)", "states come reduced: of use to nobody"},
    {"causal_convolution_backward", "", "dx does not depend on x, nor dweight on the weight: of use to nobody"},
    {"layer_norm_backward", "", "statistics and their sums come reduced: of use to nobody"},
    {"normalize", "", "as above"},
    {"norm_gradient_sums", "", "as above"},
    {"eq", "", "random numbers are never equal, but others are"},
    {"ne", "", "as above"},
    {"isfinite", "Partial(sum)->Replicate", "no sample has them: finite contributions may add up to infinity"},
    {"isinf", "Partial(sum)->Replicate", "as above"},
    {"isnan", "Partial(sum)->Replicate", "as above"},
};

constexpr Known other_bits[] = {
    {"sum", "b of sample 1",
     "of two dimensions the inner one is sharded: the parts are no subtrees of the sum over (outer, inner)"},
    {"sum", "b of sample 6", "as above"},
    {"sum", "c of sample 5", "as above"},
    {"prod", "b of sample 1", "as for sum"},
    {"prod", "b of sample 6", "as for sum"},
    {"prod", "c of sample 5", "as for sum"},
    {"norm_gradient_sums", "b of sample 1", "as for sum"},
    {"linear", "k of sample 0", "the bias is added by one rank, before the ranks' tree; without a bias the bits agree"},
    {"linear", "k of sample 2", "as above"},
    {"linear_add", "k of sample", "residual and bias are added by one rank, before the ranks' tree"},
    {"linear_weight_gradient", "B of sample 1", "the inner of two token dimensions is sharded, as for sum"},
    {"rms_norm_backward", "B of sample 0", "as above: norm weights under sequence sharding"},
    {"add_rms_norm_backward", "B of sample 0", "as above"},
    {"layer_norm_backward", "B of sample", "as above"},
    {"embedding_backward", "B of sample", "the inner of two token dimensions is sharded, as for sum"},
    {"index_add", "i of sample", "slices are added in the order of indices, in no tree"},
    {"scatter_add", "i of sample", "as above"},
    {"einsum", "b of sample 1", "two letters are contracted and the inner one is sharded, as for sum"},
    {"einsum", "b of sample 4", "as above"},
    {"attention_backward", "s of sample", "dk and dv under context parallelism agree to rounding"},
    {"gated_linear_attention", "d of sample", "sums over a head's keys or values are not the last thing that is done"},
    {"gated_linear_attention_backward", "d of sample", "as above"},
    {"gated_linear_attention_backward", "e of sample", "as above"},
    {"state_scan_backward", "e of sample", "as above"},
    {"attention_backward", "h of sample", "dk and dv of key heads that several ranks read agree to rounding"},
};

// Entries that the table lacks, and entries of the table that are no more; adds the others to `list` with their
// reasons.
template <size_t N>
void compare(const Op& op, const std::vector<std::string>& found, const Known (&table)[N], const char* what,
             std::string& list) {
  auto matches = [&](const Known& k, const std::string& f) { return k.card == op.name && f.starts_with(k.entry); };
  for (const std::string& f : found) {
    INFO(op.name << ", " << what << ": " << f);
    auto known = std::find_if(std::begin(table), std::end(table), [&](const Known& k) { return matches(k, f); });
    CHECK(known != std::end(table));
    if (known != std::end(table)) list += fmt::format("  {}: {}\n    {}\n", op.name, f, known->reason);
  }
  for (const Known& k : table) {
    INFO(op.name << ", no more " << what << ": " << k.entry);
    CHECK((k.card != op.name ||
           std::any_of(found.begin(), found.end(), [&](const std::string& f) { return matches(k, f); })));
  }
}

}  // namespace

// CARD=matmul runs that card only.
TEST_CASE("law 2: soundness of every card, every strategy, forward and gradient") {
  const char* only = std::getenv("CARD");
  int cards = 0, strategies = 0, cases = 0;
  size_t failures = 0, open = 0, bits = 0;
  std::string open_list, bits_list;
  for (const Op* op : ops::cards()) {
    if (only && op->name != only) continue;
    testing::Report r = testing::check(*op);
    INFO(testing::to_string(r));
    CHECK(r.ok());
    compare(*op, r.not_offered, not_offered, "sound, not offered", open_list);
    compare(*op, r.other_bits, other_bits, "other bits", bits_list);
    ++cards, strategies += r.strategies, cases += r.cases;
    failures += r.failures.size(), open += r.not_offered.size(), bits += r.other_bits.size();
  }
  std::cout << fmt::format(
      "{} cards, {} strategies, {} cases: unsound {}\nsound, not offered: {}\n{}other bits: {}\n{}", cards, strategies,
      cases, failures, open, open_list, bits, bits_list);
  CHECK(cases > 0);
}

// The outputs of a case on one rank, whose kernels share this number of threads.
namespace {

std::vector<Tensor> with_threads(const testing::Case& c, int threads) {
  auto rank = Rank::single(Device::cpu, threads);
  DeviceMesh mesh(*rank, "x=1");
  std::vector<DistributedTensor> in;
  for (const Tensor& t : c.inputs)
    in.push_back(t.defined() ? DistributedTensor::distribute(t, mesh, Layout()) : DistributedTensor());
  std::vector<const DistributedTensor*> pointers;
  for (const DistributedTensor& x : in) pointers.push_back(x.defined() ? &x : nullptr);
  std::vector<Tensor> out;
  for (const DistributedTensor& y : call_all(c.op, pointers, c.attributes)) out.push_back(y.local().clone());
  return out;
}

// The samples of a card, as they are and with each factor so large that every thread gets a part.
std::vector<testing::Case> large_cases(const Op& op) {
  std::vector<testing::Case> cases = testing::cases_of(op, {}, 1);
  if (op.composite) return cases;
  for (size_t i = 0; i < op.sample.size(); ++i) {
    int64_t largest = 1;
    for (const Tensor& t : cases[i].inputs) largest = std::max(largest, t.defined() ? t.numel() : 0);
    BoundRule rule = testing::Simulation(cases[i]).rule();
    for (int f = 0; f < int(rule.factors().size()); ++f)
      if (auto c = testing::with_size(cases[i], f, rule.factors()[size_t(f)].size * (100000 / largest + 1), 1 + i))
        cases.push_back(std::move(*c));
  }
  return cases;
}

}  // namespace

TEST_CASE("law 6: threads split outputs, never sums, in every card") {
  const char* only = std::getenv("CARD");
  int cases = 0;
  for (const Op* op : ops::cards()) {
    if (only && op->name != only) continue;
    for (const testing::Case& large : large_cases(*op)) {
      testing::Case c = testing::as_f32(large);
      std::vector<Tensor> one = with_threads(c, 1);
      ++cases;
      for (int threads : {2, 3, 5}) {
        std::vector<Tensor> many = with_threads(c, threads);
        for (size_t o = 0; o < one.size(); ++o) {
          INFO(c.name << " of " << op->name << " with " << threads << " threads: output " << o);
          CHECK(testing::same_bits(one[o], many[o]));
        }
      }
    }
  }
  CHECK(cases > (only ? 0 : 500));
}

namespace {

// The outputs on two ranks, rounded to bf16, of inputs that are all sharded in the dimension `dim`, or as near as they
// can be; whole where dim < 0.
std::vector<Tensor> rounded_outputs(const testing::Case& c, DType dtype, int dim) {
  std::vector<Tensor> outputs;
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    std::vector<DistributedTensor> in;
    for (const Tensor& t : c.inputs) {
      bool sharded = t.defined() && dim >= 0 && t.dims() > 0;
      Layout layout = sharded ? Layout{Shard(std::min(dim, t.dims() - 1))} : Layout();
      DistributedTensor x = t.defined() ? DistributedTensor::distribute(t, mesh, layout) : DistributedTensor();
      in.push_back(x.defined() && is_floating(x.dtype()) ? ops::cast(x, dtype) : x);
    }
    std::vector<const DistributedTensor*> pointers;
    for (const DistributedTensor& x : in) pointers.push_back(x.defined() ? &x : nullptr);
    for (const DistributedTensor& y : call_all(c.op, pointers, c.attributes)) {
      Tensor whole = y.full_tensor();
      if (rank.rank() == 0) outputs.push_back(is_floating(whole.dtype()) ? whole.to(DType::bf16) : whole);
    }
  });
  return outputs;
}

}  // namespace

TEST_CASE("law 6: a card in bf16 is the card in float32, rounded once, in every layout") {
  const char* only = std::getenv("CARD");
  int cases = 0;
  for (const Op* op : ops::cards()) {
    if ((only && op->name != only) || op->composite) continue;
    for (const testing::Case& wide : testing::cases_of(*op, {}, 1)) {
      testing::Case c = wide;
      for (Tensor& t : c.inputs)
        if (t.defined() && is_floating(t.dtype())) t = t.to(DType::bf16);
      for (int dim = -1; dim < 3; ++dim) {
        std::vector<Tensor> half, single;
        std::string refused = testing::error_of([&] { half = rounded_outputs(c, DType::bf16, dim); });
        INFO(c.name << " of " << op->name << " in dimension " << dim << ": " << refused);
        if (!refused.empty()) continue;
        single = rounded_outputs(c, DType::f32, dim);
        ++cases;
        REQUIRE(half.size() == single.size());
        for (size_t o = 0; o < half.size(); ++o) {
          INFO("output " << o << ": " << half[o] << "\nnot " << single[o]);
          CHECK(testing::same_bits(half[o], single[o]));
        }
      }
    }
  }
  CHECK(cases > (only ? 0 : 500));
}

// A card that a user of the library might write: right, and then wrong in every way that the engine must notice.
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

void softmax_kernel(const Context& c, In in, Out out) {
  int64_t n = in[0].shape().back(), rows = rows_of(in[0]);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    T* y = out[0].data<T>();
    for (int64_t r = 0; r < rows; ++r, x += n, y += n) {
      T sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += y[i] = std::exp(x[i]);
      for (int64_t i = 0; i < n; ++i) y[i] /= sum;
    }
  });
}

void softmax_gradient(Gradient& g) {
  const DistributedTensor& y = g.output(0);
  DistributedTensor d = ops::mul(g.of_output(), y);
  g.set(0, ops::sub(d, ops::mul(y, ops::sum(d, {-1}, true))));
}
void softmax_gradient_of_input(Gradient& g) { g.set(0, ops::mul(g.of_output(), g.input(0))); }
void softmax_gradient_without_sum(Gradient& g) { g.set(0, ops::mul(g.of_output(), g.output(0))); }
// Right on one rank: takes this rank's part for the whole.
void softmax_gradient_local(Gradient& g) {
  const DistributedTensor& y = g.output(0);
  DistributedTensor d = ops::mul(g.of_output(), y);
  int64_t here = d.local().shape().empty() ? 1 : d.local().size(0), whole = d.shape().empty() ? 1 : d.size(0);
  g.set(0, ops::mul(ops::sub(d, ops::mul(y, ops::sum(d, {-1}, true))), whole ? double(here) / double(whole) : 1));
}

Op softmax(std::vector<int> keeps_outputs = {0}, std::vector<int> keeps_inputs = {}) {
  return {.name = "softmax",
          .rule = "...[n]->...[n]",
          .cpu = softmax_kernel,
          .gradient = softmax_gradient,
          .keeps = {.inputs = std::move(keeps_inputs), .outputs = std::move(keeps_outputs)},
          .sample = {{{{4, 5}}}, {{{2, 3, 6}}}}};
}

// The first failure, and whether it says so.
void check_fails(const Op& op, const std::string& text) {
  testing::Report r = testing::check(op);
  INFO(testing::to_string(r));
  REQUIRE(!r.ok());
  CHECK_THAT(testing::to_string(r), Catch::Contains(text));
}

struct OfWhole {
  bool global;
  static constexpr auto fields() { return std::tuple(field("global", &OfWhole::global)); }
};
void mean_kernel(const Context& c, In in, Out out) {
  bool global = c.attributes.as<OfWhole>().global;
  int64_t n = in[0].shape().back();
  for_floating(c, in[0].dtype(), [&]<class T>() {
    for (int64_t r = 0; r < rows_of(in[0]); ++r) {
      T sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += in[0].data<T>()[r * n + i];
      out[0].data<T>()[r] = n ? sum / T(global ? c.size('n') : n) : T(0);
    }
  });
}

template <int part>
void square_kernel(const Context& c, In in, Out out) {  // of the first half of the elements, or all; or another shape
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    for (int64_t i = 0; i < in[0].numel() / part; ++i) out[0].data<T>()[i] = x[i] * x[i];
  });
}
void product_kernel(const Context& c, In in, Out out) {  // b repeats: right for rows, not for columns
  for_floating(c, in[0].dtype(), [&]<class T>() {
    for (int64_t i = 0; i < out[0].numel(); ++i)
      out[0].data<T>()[i] = in[0].data<T>()[i % in[0].numel()] * in[1].data<T>()[i % in[1].numel()];
  });
}
void flattened_kernel(const Context& c, In in, Out out) {
  square_kernel<1>(c, in, out);
  out[0] = out[0].view({out[0].numel()});
}
void wide_kernel(const Context& c, In in, Out out) {  // right in float64 only
  square_kernel<1>(c, in, out);
  if (out[0].dtype() == DType::f32)
    for (int64_t i = 0; i < out[0].numel(); ++i) out[0].data<float>()[i] += 1e-2f;
}

}  // namespace

TEST_CASE("conformance passes a user's card that is right") {
  testing::Report r = testing::check(softmax());
  INFO(testing::to_string(r));
  CHECK(r.ok());
  CHECK(r.strategies == 2);
  CHECK(r.not_offered.empty());
  CHECK(r.other_bits.empty());
}

TEST_CASE("conformance catches a wrong rule") {
  Op op = softmax();
  op.rule = "...n->...n";  // the sum needs the whole row
  check_fails(op, "sample 0 f64[4,5]: Shard(1)->Shard(1) on 2 ranks is unsound: output 0: rank 0's part element");
  op = softmax();
  op.passes = {linear_in({0})};
  check_fails(op, "Partial(sum)->Partial(sum) on 2 ranks is unsound");
  op = softmax();
  op.passes = {monotone_in({0})};
  check_fails(op, "Partial(max)->Partial(max) on 2 ranks is unsound");
  check_fails({.name = "square", .rule = "...->...", .cpu = flattened_kernel, .sample = {{{{5, 3}}}}},
              "the kernel left output 0 with shape [15], not [5,3]");
}

TEST_CASE("conformance catches a kernel that takes its part for the whole") {
  Op op{.name = "mean",
        .rule = "...n->...",
        .passes = {linear_in({0})},
        .cpu = mean_kernel,
        .sample = {{{{4, 6}}, OfWhole{true}}}};
  testing::Report r = testing::check(op);
  INFO(testing::to_string(r));
  CHECK(r.ok());
  op.sample[0].attributes = OfWhole{false};
  check_fails(op, "Shard(1)->Partial(sum) on 2 ranks is unsound");
}

TEST_CASE("conformance catches a wrong gradient") {
  Op op = softmax();
  op.gradient = softmax_gradient_without_sum;
  check_fails(op, "the gradient of input 0 element 0 of [4,5] is");
  op.gradient = softmax_gradient_local;
  check_fails(op, "on x=2,y=2:");
  op.gradient = [](Gradient& g) { g.output(0); };
  check_fails(op, "the gradient of input 0 is never set");
}

TEST_CASE("conformance catches a missing keep, and one that nothing reads") {
  check_fails(softmax({}), "[softmax] the gradient reads output 0, which is not in .keeps");
  Op op = softmax();
  op.gradient = softmax_gradient_of_input;
  check_fails(op, "[softmax] the gradient reads input 0, which is not in .keeps");
  check_fails(softmax({0}, {0}), "keeps input 0, which the gradient never reads");
}

TEST_CASE(
    "conformance catches kernels that leave elements unwritten, misread strides, do not broadcast, or are wrong in "
    "float32") {
  check_fails({.name = "square", .rule = "...->...", .cpu = square_kernel<2>, .sample = {{{{5, 3}}}}},
              "the kernel does not write all of output 0");
  check_fails({.name = "square", .rule = "...->...", .strided = true, .cpu = square_kernel<1>, .sample = {{{{5, 3}}}}},
              "from strided inputs (turned), output 0");
  check_fails({.name = "product",
               .rule = "...,...->...",
               .passes = {linear_in({0}), linear_in({1})},
               .cpu = product_kernel,
               .sample = {{{{5, 3}, {5, 3}}}}},
              "with dimension 1 of input 0 broadcast, output 0 element 1");
  check_fails({.name = "square", .rule = "...->...", .cpu = wide_kernel, .sample = {{{{5, 3}}}}},
              "in float32, output 0");
  check_fails({.name = "square", .rule = "...->...", .cpu = square_kernel<1>}, "the card has no sample");
}

TEST_CASE("conformance finds what is sound and not offered, and parts with other bits") {
  // Linear, which the card does not say; and factor n could be sharded.
  auto sum = [](const Context& c, In in, Out out) {
    int64_t n = in[0].shape().back();
    for_floating(c, in[0].dtype(), [&]<class T>() {
      for (int64_t r = 0; r < rows_of(in[0]); ++r) {
        T s = 0;
        for (int64_t i = 0; i < n; ++i) s += in[0].data<T>()[r * n + i];
        out[0].data<T>()[r] = s;
      }
    });
  };
  testing::Report r = testing::check({.name = "total", .rule = "...[n]->...", .cpu = sum, .sample = {{{{4, 5}}}}});
  CHECK(r.ok());
  CHECK(r.not_offered == std::vector<std::string>{"Partial(sum)->Partial(sum)", "Shard(n)->Partial(sum)"});
  r = testing::check(
      {.name = "total", .rule = "...n->...", .passes = {linear_in({0})}, .cpu = sum, .sample = {{{{4, 5}}}}});
  CHECK(r.ok());
  CHECK(r.not_offered.empty());
  CHECK(r.other_bits == std::vector<std::string>{"n of sample 0 f64[4,5]: output 0"});
}
