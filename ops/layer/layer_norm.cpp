#include "ops/layer/layer_norm.h"

#include <fmt/format.h>
#include <cmath>

#include "ops/cards.h"
#include "ops/cpu/layer_norm.h"
#include "ops/cpu/rows.h"
#include "ops/family/dims.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

// How many of the last dimensions are normalized, and their names: "ab", or "[a][b]" where they are whole.
int normalized_dims_of(const Attributes& a) { return int(a.as<LastDims>().normalized_dims); }
std::string names(const Attributes& a, bool whole) {
  Dims dims;
  for (int d = 0; whole && d < normalized_dims_of(a); ++d) dims.push_back(d);
  return factors(normalized_dims_of(a), dims);
}

// Rows of this rank, elements of each, and of the whole row.
struct Size {
  int64_t rows, d, whole = 1, leaves;

  Size(const Context& c, const Tensor& x) {
    int n = normalized_dims_of(c.attributes);
    std::string factors = names(c.attributes, false);
    rows = rows_of(x, n), d = 1;
    for (int i = x.dims() - n; i < x.dims(); ++i) d *= x.size(i);
    for (char f : factors) whole *= c.size(f);
    leaves = c.leaves(factors);
  }
  int64_t grain() const { return std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)); }
};
// An error where operands with "..." and then the normalized dimensions, or only the former, differ in "...".
void check_sizes(const Context& c, In in, std::initializer_list<int> rows, std::initializer_list<int> statistics) {
  int n = normalized_dims_of(c.attributes);
  for (int i : rows) check_rows(c, in, {{*rows.begin(), n}, {i, n}});
  for (int i : statistics)
    if (in[size_t(i)].defined()) check_rows(c, in, {{*rows.begin(), n}, {i, 0}});
}
template <class T>
const T* data_of(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}
template <class T>
T rstd_of(T squares, T n, double eps) {
  return T(1) / std::sqrt(squares / n + T(eps));
}

// x, weight, bias -> y, and of each row the mean and 1 / sqrt(var + eps), which the gradient keeps
void layer_norm_kernel(const Context& c, In in, Out out) {
  Size s(c, in[0]);
  double eps = c.attributes.as<LayerNorm>().eps;
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *w = data_of<T>(in[1]), *b = data_of<T>(in[2]);
    T *y = out[0].data<T>(), *mean = out[1].data<T>(), *rstd = out[2].data<T>(), n = T(s.d);
    c.pool.parallel_for(s.rows, s.grain(), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = x + r * s.d;
        mean[r] = cpu::sum(s.d, row, s.leaves) / n;
        rstd[r] = rstd_of(cpu::centred_squares(s.d, row, mean[r], s.leaves), n, eps);
        cpu::normalize(s.d, row, mean[r], rstd[r], w, b, y + r * s.d);
      }
    });
  });
}
// x, weight, bias, mean, rstd -> y
void normalize_kernel(const Context& c, In in, Out out) {
  Size s(c, in[0]);
  check_sizes(c, in, {0}, {3, 4});
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *w = data_of<T>(in[1]), *b = data_of<T>(in[2]), *mean = data_of<T>(in[3]),
            *rstd = in[4].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(s.rows, s.grain(), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        cpu::normalize(s.d, x + r * s.d, mean ? mean[r] : T(0), rstd[r], w, b, y + r * s.d);
    });
  });
}
// sum (or absent: zeros), centred squares -> mean, rstd
void norm_statistics_kernel(const Context& c, In in, Out out) {
  if (in[0].defined()) check_rows(c, in, {{0, 0}, {1, 0}});
  double eps = c.attributes.as<NormStatistics>().eps;
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *sum = data_of<T>(in[0]), *squares = in[1].data<T>();
    T n = T(c.attributes.as<NormStatistics>().n);
    for (int64_t r = 0; r < in[1].numel(); ++r) {
      out[0].data<T>()[r] = sum ? sum[r] / n : T(0);
      out[1].data<T>()[r] = rstd_of(squares[r], n, eps);
    }
  });
}

// dy, x, weight, mean, rstd -> this rank's sums over a row of dy*weight, and of that times the normalized x
void norm_gradient_sums_kernel(const Context& c, In in, Out out) {
  Size s(c, in[1]);
  check_sizes(c, in, {1, 0}, {3, 4});
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = in[1].data<T>(), *w = data_of<T>(in[2]), *mean = data_of<T>(in[3]),
            *rstd = in[4].data<T>();
    T *sum = out[0].data<T>(), *along = out[1].data<T>();
    c.pool.parallel_for(s.rows, s.grain(), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        cpu::normalize_gradient_sums(s.d, dy + r * s.d, x + r * s.d, mean ? mean[r] : T(0), rstd[r], w, s.leaves,
                                     sum + r, along + r);
    });
  });
}
// dy, x, weight, mean, rstd and, where the row is sharded, those sums -> dx, dweight, dbias
void layer_norm_backward_kernel(const Context& c, In in, Out out) {
  Size s(c, in[1]);
  check_sizes(c, in, {1, 0}, {3, 4, 5, 6});
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = in[1].data<T>(), *w = data_of<T>(in[2]), *mean = data_of<T>(in[3]),
            *rstd = in[4].data<T>(), *sums = data_of<T>(in[5]), *alongs = data_of<T>(in[6]);
    T *dx = out[0].data<T>(), n = T(s.whole);
    c.pool.parallel_for(s.rows, s.grain(), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        int64_t at = r * s.d;
        T m = mean ? mean[r] : T(0), sum = 0, along;
        if (sums)
          sum = sums[r], along = alongs[r];
        else
          cpu::normalize_gradient_sums(s.d, dy + at, x + at, m, rstd[r], w, s.leaves, &sum, &along);
        if (!mean) sum = 0;  // nothing was subtracted
        cpu::normalize_gradient(s.d, dy + at, x + at, m, rstd[r], w, sum / n, along / n, dx + at);
      }
    });
    if (out.size() == 1) return;
    int64_t l = c.leaves_of_dots();
    c.pool.parallel_for(s.d, 64, [&](int64_t begin, int64_t end, int) {
      cpu::normalize_gradient_affine(s.rows, s.d, begin, end, dy, x, mean, rstd, l, out[1].data<T>(), out[2].data<T>());
    });
  });
}

// "...[a],[a],[a]->...[a],...,..."
Rule layer_norm_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string d = names(a, true);
  Rule r{fmt::format("...{0},{0},{0}->...{0},...,...", d)};
  if (in[1]) r.passes = {passes(in[2] ? std::vector{1, 2} : std::vector{1}, Reduce::sum).only_to({0})};
  return r;
}
Rule normalize_rule(std::span<const Shape* const> in, const Attributes& a) {
  Rule r{fmt::format("...{0},{0},{0},...,...->...{0}", names(a, false))};
  if (in[1]) r.passes = {passes(in[2] ? std::vector{1, 2} : std::vector{1}, Reduce::sum)};
  if (!in[2]) r.passes.push_back(passes({4}, Reduce::sum));
  return r;
}
Rule norm_gradient_sums_rule(std::span<const Shape* const>, const Attributes& a) {
  return {fmt::format("...{0},...{0},{0},...,...->...,...", names(a, false))};
}
Rule layer_norm_backward_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string d = names(a, !in[5]);
  bool affine = a.as<LayerNormBackward>().affine;
  Rule r{fmt::format("...{0},...{0},{0},...,...,...,...->...{0}{1}", d, affine ? fmt::format(",{0},{0}", d) : "")};
  r.passes = {linear_in(in[5] ? std::vector{0, 5, 6} : std::vector{0})};
  if (in[2] && !in[5]) r.passes.push_back(passes({2}, Reduce::sum).only_to({0}));
  return r;
}
LastDims dims_only(const Attributes& a) { return a.as<LastDims>(); }
LayerNormBackward backward_of(const Attributes& a, bool affine) { return {a.as<LastDims>(), affine}; }
const DistributedTensor* present(const DistributedTensor& x) { return x.defined() ? &x : nullptr; }

void set_affine(Gradient& g, const std::vector<DistributedTensor>& d) {
  for (int i = 1; i < int(d.size()); ++i)
    if (g.needs(i)) g.set(i, d[size_t(i)]);
}
void layer_norm_gradient(Gradient& g) {
  const DistributedTensor *x = &g.input(0), *w = present(g.input(1)), *mean = &g.output(1), *rstd = &g.output(2);
  auto d = call_all(layer_norm_backward_op, {&g.of_output(), x, w, mean, rstd, nullptr, nullptr},
                    backward_of(g.attributes(), g.needs(1) || g.needs(2)));
  g.set(0, d[0]);
  set_affine(g, d);
}

// x, weight, bias -> y, mean, rstd; without `centre` RMS normalization: no bias, no mean
template <bool centre>
std::vector<DistributedTensor> sharded(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DistributedTensor &x = *in[0], *bias = centre ? in[2] : nullptr;
  Dims dims;
  for (int d = x.dims() - normalized_dims_of(a); d < x.dims(); ++d) dims.push_back(d);
  DistributedTensor precise = exact(x), s = centre ? reduced(sum(precise, dims)) : DistributedTensor(),
                    squares = reduced(call(centred_squares_op, {&precise, present(s)}, Over{dims}));
  auto statistics = call_all(norm_statistics_op, {present(s), &squares},
                             NormStatistics{slice_size(x.shape(), dims), a.as<LayerNorm>().eps});
  const DistributedTensor *mean = centre ? &statistics[0] : nullptr, *rstd = &statistics[1];
  statistics.insert(statistics.begin(), call(normalize_op, {&x, in[1], bias, mean, rstd}, dims_only(a)));
  if (!centre) statistics.erase(statistics.begin() + 1);
  return statistics;
}
template <bool centre>
void sharded_gradient(Gradient& g) {
  const DistributedTensor *dy = &g.of_output(), *x = &g.input(0), *w = present(g.input(1)),
                          *mean = centre ? &g.output(1) : nullptr, *rstd = &g.output(centre ? 2 : 1);
  auto sums = reduced(call_all(norm_gradient_sums_op, {dy, x, w, mean, rstd}, dims_only(g.attributes())));
  bool affine = g.needs(1) || (centre && g.needs(2));
  auto d =
      call_all(layer_norm_backward_op, {dy, x, w, mean, rstd, &sums[0], &sums[1]}, backward_of(g.attributes(), affine));
  if (!centre && affine) d.pop_back();  // no bias
  g.set(0, d[0]);
  set_affine(g, d);
}

using Kind = SampleInput::Kind;
SampleInput positive(Shape s) { return {Kind::positive, s}; }
LayerNorm norm_of(int64_t dims) { return {{dims}, 1e-5}; }
LayerNormBackward gradient_of(int64_t dims, bool affine) { return {{dims}, affine}; }
const std::vector<Sample> samples = {{{{4, 3, 6}, {6}, {6}}, norm_of(1)},       {{{4, 6}, {6}, absent}, norm_of(1)},
                                     {{{4, 6}, absent, {6}}, norm_of(1)},       {{{4, 6}, absent, absent}, norm_of(1)},
                                     {{{2, 3, 4}, {3, 4}, {3, 4}}, norm_of(2)}, {{{0, 5}, {5}, {5}}, norm_of(1)}};

}  // namespace

const Op layer_norm_op = {
    .name = "layer_norm",
    .functions = {function<layer_norm>("layer_norm(x, normalized_shape=, weight=none, bias=none, eps=1e-5)",
                                       "(x - mean) / sqrt(var + eps) * weight + bias, over the last dimensions")},
    .rule = layer_norm_rule,
    .types = row_types<0b000, 0b110>,
    .optional = {1, 2},
    .cpu = layer_norm_kernel,
    .gradient = layer_norm_gradient,
    .keeps = {.inputs = {0, 1}, .outputs = {1, 2}},
    .sample = samples};
const Op layer_norm_backward_op = {
    .name = "layer_norm_backward",
    .rule = layer_norm_backward_rule,
    .types = row_types<0b1111000, 0b000>,
    .optional = {2, 3, 5, 6},
    .cpu = layer_norm_backward_kernel,
    .sample = {{{{4, 3, 6}, {4, 3, 6}, {6}, {4, 3}, positive({4, 3}), absent, absent}, gradient_of(1, true)},
               {{{4, 6}, {4, 6}, absent, {4}, positive({4}), absent, absent}, gradient_of(1, false)},
               {{{4, 3, 6}, {4, 3, 6}, {6}, {4, 3}, positive({4, 3}), {4, 3}, {4, 3}}, gradient_of(1, true)},
               {{{4, 2, 3}, {4, 2, 3}, {2, 3}, absent, positive({4}), {4}, {4}}, gradient_of(2, true)}}};
const Op sharded_layer_norm_op = {.name = "sharded_layer_norm",
                                  .optional = {1, 2},
                                  .composite = sharded<true>,
                                  .gradient = sharded_gradient<true>,
                                  .keeps = {.inputs = {0, 1}, .outputs = {1, 2}},
                                  .sample = samples};
const Op sharded_rms_norm_op = {
    .name = "sharded_rms_norm",
    .composite = sharded<false>,
    .gradient = sharded_gradient<false>,
    .keeps = {.inputs = {0, 1}, .outputs = {1}},
    .sample = {{{{4, 3, 6}, {6}}, norm_of(1)}, {{{1, 5}, {5}}, norm_of(1)}, {{{0, 5}, {5}}, norm_of(1)}}};
const Op normalize_op = {.name = "normalize",
                         .rule = normalize_rule,
                         .types = row_types<0b11000, 0b0>,
                         .optional = {1, 2, 3},
                         .cpu = normalize_kernel,
                         .sample = {{{{4, 3, 6}, {6}, {6}, {4, 3}, positive({4, 3})}, norm_of(1)},
                                    {{{4, 2, 3}, {2, 3}, absent, absent, positive({4})}, norm_of(2)}}};
const Op norm_statistics_op = {.name = "norm_statistics",
                               .rule = "...,...->...,...",
                               .passes = {passes({0}, Reduce::sum).only_to({0})},
                               .types = statistics_types<>,
                               .optional = {0},
                               .cpu = norm_statistics_kernel,
                               .sample = {{{{4, 3}, positive({4, 3})}, NormStatistics{5, 1e-5}},
                                          {{absent, positive({4})}, NormStatistics{5, 1e-5}}}};
const Op norm_gradient_sums_op = {.name = "norm_gradient_sums",
                                  .rule = norm_gradient_sums_rule,
                                  .passes = {linear_in({0})},
                                  .types = row_types<0b11000, 0b11>,
                                  .optional = {2, 3},
                                  .cpu = norm_gradient_sums_kernel,
                                  .sample = {{{{4, 3, 6}, {4, 3, 6}, {6}, {4, 3}, positive({4, 3})}, norm_of(1)},
                                             {{{4, 2, 3}, {4, 2, 3}, absent, absent, positive({4})}, norm_of(2)}}};

namespace {
constexpr const Op* layer_norm_ops[] = {&layer_norm_op,        &layer_norm_backward_op, &sharded_layer_norm_op,
                                        &sharded_rms_norm_op,  &normalize_op,           &norm_statistics_op,
                                        &norm_gradient_sums_op};
}  // namespace
const Cards layer_norm_cards = layer_norm_ops;

DistributedTensor layer_norm(const DistributedTensor& x, const Shape& normalized_shape, const DistributedTensor& weight,
                             const DistributedTensor& bias, double eps) {
  check_defined("layer_norm", x);
  int n = normalized_shape.dims();
  check(n > 0 && x.dims() >= n && std::equal(normalized_shape.begin(), normalized_shape.end(), x.shape().end() - n),
        "[layer_norm] normalized_shape {} is not the end of {}", normalized_shape, x);
  for (const DistributedTensor* p : {&weight, &bias})
    check(!p->defined() || p->shape() == normalized_shape, "[layer_norm] {} {} is not of normalized_shape {}",
          p == &weight ? "weight" : "bias", p->defined() ? to_string(*p) : "", normalized_shape);
  Dims dims;
  for (int d = x.dims() - n; d < x.dims(); ++d) dims.push_back(d);
  return call(sharded_along(x, dims) ? sharded_layer_norm_op : layer_norm_op, {&x, &weight, &bias},
              LayerNorm{{n}, eps});
}

}  // namespace dtensor::ops
