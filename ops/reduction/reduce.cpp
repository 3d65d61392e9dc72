#include "ops/reduction/reduce.h"

#include <cmath>
#include <functional>

#include "dtensor/local/tree.h"
#include "ops/cards.h"
#include "ops/cpu/rows.h"
#include "ops/family/dims.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// "abc->ac" for dims=1.
Rule reduce_rule(std::span<const Shape* const> in, const Attributes& a) {
  return {factors(in[0]->dims()) + "->" + other_factors(in[0]->dims(), dims_of(a))};
}

// x with the reduced dimensions all first or all last, contiguous: kept elements of the result, n terms of each.
struct Terms {
  Tensor x;
  int64_t kept, n;
  bool leading;

  Terms(const Context& c, const Tensor& from) {
    const Dims& dims = dims_of(c.attributes);
    std::vector<int> order = dims_last(from.dims(), dims);
    kept = numel(dropped_shape(from.shape(), dims)), n = slice_size(from.shape(), dims);
    leading = !dims.empty() && int(dims.size()) < from.dims() && dims.back() == int64_t(dims.size()) - 1;
    if (leading) std::rotate(order.begin(), order.end() - int64_t(dims.size()), order.end());
    x = from.permute(order).contiguous();
  }
  // f(begin, end) for ranges of the result, on the pool.
  template <class F>
  void parallel_for(const Context& c, F f) const {
    int64_t grain = std::max<int64_t>(64, pointwise_grain / std::max<int64_t>(n, 1) / 64 * 64);
    c.pool.parallel_for(kept, grain, [&](int64_t begin, int64_t end, int) { f(begin, end); });
  }
  // y = the sum of term(place in x).
  template <class F>
  void sum_integers(const Context& c, int64_t* y, F term) const {
    parallel_for(c, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        y[i] = 0;
        for (int64_t k = 0; k < n; ++k) y[i] = wrapping(std::plus<>{}, y[i], term(at(i, k)));
      }
    });
  }
  int64_t at(int64_t i, int64_t k) const { return leading ? k * kept + i : i * n + k; }
};

void sum_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Terms t(c, in[0]);
  if (in[0].dtype() == DType::i64) {
    const int64_t* x = t.x.data<int64_t>();
    return t.sum_integers(c, out[0].data<int64_t>(), [x](int64_t at) { return x[at]; });
  }
  int64_t l = c.leaves(factors_in(dims_of(c.attributes)));
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = t.x.data<T>();
    T* y = out[0].data<T>();
    t.parallel_for(c, [&](int64_t begin, int64_t end) {
      if (t.leading) return cpu::sum_rows(t.n, end - begin, x + begin, t.kept, y + begin, false, l);
      for (int64_t i = begin; i < end; ++i) y[i] = cpu::sum(t.n, x + i * t.n, l);
    });
  });
}
void count_nonzero_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Terms t(c, in[0]);
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    const T* x = t.x.data<T>();
    t.sum_integers(c, out[0].data<int64_t>(), [x](int64_t at) { return int64_t(x[at] != T(0)); });
  });
}
DType i64_type(std::string_view, std::span<const TensorSpec* const>, const Attributes&, int) { return DType::i64; }
DType product_and_count(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int output) {
  return output == 0 ? in[0]->dtype : DType::i64;
}
DType type_of_x(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int) {
  return in[1]->dtype;
}

// The product of term(k) over [0, n), as a tree of l leaves: the law of cpu::sum.
template <class T, class Term>
T product(int64_t n, int64_t l, Term term) {
  T part[64];
  int top = 0;
  for (int64_t leaf = 0, k = 0; leaf < l; ++leaf) {
    T p = 1;
    for (int64_t end = (leaf + 1) * n / l; k < end; ++k) p = wrapping(std::multiplies<>{}, p, term(k));
    for (int count = joins(leaf); count > 0; --count) p = wrapping(std::multiplies<>{}, p, part[--top]);
    part[top++] = p;
  }
  return part[0];
}

void prod_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Terms t(c, in[0]);
  int64_t l = c.leaves(factors_in(dims_of(c.attributes)));
  for_numbers(c, in[0].dtype(), [&]<class T>() {
    const T* x = t.x.data<T>();
    T* y = out[0].data<T>();
    t.parallel_for(c, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = product<T>(t.n, l, [&](int64_t k) { return x[t.at(i, k)]; });
    });
  });
}
// x -> the product of what is not zero, and how often zero is there
void prod_parts_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Terms t(c, in[0]);
  int64_t l = c.leaves(factors_in(dims_of(c.attributes)));
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = t.x.data<T>();
    T* y = out[0].data<T>();
    int64_t* zeros = out[1].data<int64_t>();
    t.parallel_for(c, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        zeros[i] = 0;
        y[i] = product<T>(t.n, l, [&](int64_t k) {
          T v = x[t.at(i, k)];
          zeros[i] += v == 0;
          return v == 0 ? T(1) : v;
        });
      }
    });
  });
}
// dy, x, product of what is not zero, zeros -> dx = dy * the product of the others
void prod_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Slices s = slices_of(in[1], dims_of(c.attributes));
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = s.x.data<T>(), *p = in[2].data<T>();
    const int64_t* zeros = in[3].data<int64_t>();
    write_slices(c, out[0], dims_of(c.attributes), [&](Tensor& to) {
      T* dx = to.data<T>();
      each_slice(c, s, [&](int64_t i, int) {
        for (int64_t k = i * s.n; k < (i + 1) * s.n; ++k) {
          T others = x[k] == 0 ? (zeros[i] == 1 ? p[i] : T(0)) : zeros[i] == 0 ? p[i] / x[k] : T(0);
          dx[k] = dy[i] * others;
        }
      });
    });
  });
}
void prod_gradient(Gradient& g) {
  const DistributedTensor& x = g.input(0);
  auto parts = reduced(call_all(prod_parts_op, {&x}, g.attributes()));
  g.set(0, call(prod_backward_op, {&g.of_output(), &x, &parts[0], &parts[1]}, g.attributes(), {g.wanted(0)}));
}

// The larger, NaN before all, and what nothing is smaller than; the smaller likewise.
struct Largest {
  template <class T>
  static constexpr T none = std::is_floating_point_v<T> ? -std::numeric_limits<T>::infinity()
                                                        : std::numeric_limits<T>::lowest();
  template <class T>
  static T row(int64_t n, const T* x) {
    return cpu::max(n, x);
  }
  template <class T>
  static bool before(T a, T b) {
    return a > b;
  }
};
struct Smallest {
  template <class T>
  static constexpr T none = std::is_floating_point_v<T> ? std::numeric_limits<T>::infinity()
                                                        : std::numeric_limits<T>::max();
  template <class T>
  static T row(int64_t n, const T* x) {
    return cpu::min(n, x);
  }
  template <class T>
  static bool before(T a, T b) {
    return a < b;
  }
};

template <class Which>
void extreme_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Terms t(c, in[0]);
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    const T* x = t.x.data<T>();
    T* y = out[0].data<T>();
    t.parallel_for(c, [&](int64_t begin, int64_t end) {
      if constexpr (std::is_floating_point_v<T>)
        if (!t.leading) {
          for (int64_t i = begin; i < end; ++i) y[i] = Which::row(t.n, x + i * t.n);
          return;
        }
      std::fill(y + begin, y + end, Which::template none<T>);
      for (int64_t k = 0; k < t.n; ++k)
        for (int64_t i = begin; i < end; ++i) {
          T v = x[t.at(i, k)];
          if (Which::before(v, y[i]) || v != v) y[i] = v;
        }
      if constexpr (std::is_floating_point_v<T>)
        for (int64_t i = begin; i < end; ++i) y[i] += 0;  // no -0: which zero comes first depends on the mesh
    });
  });
}

// x, y -> how many elements of x equal y
void ties_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Terms t(c, in[0]);
  for_numbers(c, in[0].dtype(), [&]<class T>() {
    const T *x = t.x.data<T>(), *y = in[1].data<T>();
    T* count = out[0].data<T>();
    t.parallel_for(c, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t n = 0;
        for (int64_t k = 0; k < t.n; ++k) n += x[t.at(i, k)] == y[i];
        count[i] = T(n);
      }
    });
  });
}
// dy / ties, x, y -> dx: where x equals y. Elsewhere 0 * (dy / ties), which is NaN where y is, as in PyTorch.
void amax_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Slices s = slices_of(in[1], dims_of(c.attributes));
  for_numbers(c, in[1].dtype(), [&]<class T>() {
    const T *share = in[0].data<T>(), *x = s.x.data<T>(), *y = in[2].data<T>();
    write_slices(c, out[0], dims_of(c.attributes), [&](Tensor& to) {
      T* dx = to.data<T>();
      each_slice(c, s, [&](int64_t i, int) {
        for (int64_t k = i * s.n; k < (i + 1) * s.n; ++k) dx[k] = share[i] * T(x[k] == y[i]);
      });
    });
  });
}
void extreme_gradient(Gradient& g) {
  const DistributedTensor &x = g.input(0), y = reduced(g.output(0)),
                          ties = reduced(call(ties_op, {&x, &y}, g.attributes())), share = div(g.of_output(), ties);
  g.set(0, call(amax_backward_op, {&share, &x, &y}, g.attributes(), {g.wanted(0)}));
}

Rule two_outputs_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string kept = other_factors(in[0]->dims(), dims_of(a));
  return {factors(in[0]->dims()) + "->" + kept + "," + kept};
}

// Threads have subtrees of the sum, and what they leave is joined as the tree goes on: the law of cpu::sum, in f64.
void sum_squares_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t n = in[0].numel(), l = c.leaves_of_dots(), parts = 1;
  while (parts < l && parts * pointwise_grain < n) parts *= 2;
  std::vector<double> part(static_cast<size_t>(parts));
  for_floating(c, in[0].dtype(), [&]<class T>() {
    c.pool.parallel_for(parts, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        part[size_t(i)] = cpu::sum_squares_f64(n, in[0].data<T>(), l, i * (l / parts), (i + 1) * (l / parts));
    });
  });
  for (; parts > 1; parts /= 2)
    for (int64_t i = 0; i < parts / 2; ++i) part[size_t(i)] = part[size_t(2 * i)] + part[size_t(2 * i + 1)];
  *out[0].data<double>() = part[0];
}

DType f64_type(std::string_view, std::span<const TensorSpec* const>, const Attributes&, int) { return DType::f64; }

void sum_gradient(Gradient& g) {
  const Shape& shape = g.input_spec(0).shape;
  g.set(0, expand(reshape(g.of_output(), kept_shape(shape, dims_of(g.attributes()))), shape));
}
void sum_squares_gradient(Gradient& g) {
  DistributedTensor d = cast(g.of_output(), g.input_spec(0).dtype);
  g.set(0, mul(mul(g.input(0), d), 2));
}

DistributedTensor reduce(const Op& op, const DistributedTensor& x, const Dims& dims, bool keepdim,
                         std::string_view who) {
  check_defined(who, x);
  Dims all = normalized_dims(who, dims, x.dims());
  DistributedTensor y = call(op, {&x}, Over{all});
  return keepdim ? reshape(y, kept_shape(x.shape(), all)) : y;
}
DistributedTensor extreme(const Op& op, const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined(op.name, x);
  for (int64_t d : normalized_dims(op.name, dims, x.dims()))
    check(x.size(d) > 0, "[{}] dimension {} of {} has no elements, of which none is an extreme one", op.name, d, x);
  return reduce(op, x, dims, keepdim, op.name);
}

using Kind = SampleInput::Kind;
const std::vector<Sample> samples = {
    {{{4, 5}}, Over{Dims{1}}},    {{{4, 5, 3}}, Over{Dims{0, 1}}}, {{{4, 5, 3}}, Over{Dims{1}}},
    {{{7}}, Over{Dims{0}}},       {{{1, 5}}, Over{Dims{0}}},       {{{4, 5, 3}}, Over{Dims{0, 2}}},
    {{{4, 5}}, Over{Dims{0, 1}}}, {{{4, 0}}, Over{Dims{1}}},       {{{}}, Over{Dims{}}}};
std::vector<Sample> with(std::vector<Sample> list, std::initializer_list<Kind> kinds) {
  for (Kind kind : kinds) list.push_back({{{kind, {4, 5}, 9}}, Over{Dims{0}}});
  return list;
}

}  // namespace

const Op sum_op = {
    .name = "sum",
    .functions = {function<sum>("sum(x, dim=all, keepdim=false)", "the sum; of integers and bool in i64"),
                  function<mean>("mean(x, dim=all, keepdim=false)", "the mean")},
    .rule = reduce_rule,
    .passes = {linear_in({0})},
    .strided = true,
    .cpu = sum_kernel,
    .gradient = sum_gradient,
    .sample = with(samples, {Kind::index})};
const Op count_nonzero_op = {
    .name = "count_nonzero",
    .functions = {function<count_nonzero>("count_nonzero(x, dim=all)", "how many elements differ from zero")},
    .rule = reduce_rule,
    .types = i64_type,
    .strided = true,
    .cpu = count_nonzero_kernel,
    .sample = with({}, {Kind::index, Kind::boolean})};
const Op prod_op = {
    .name = "prod",
    .functions = {function<prod>("prod(x, dim=all, keepdim=false)", "the product; of integers and bool in i64")},
    .rule = reduce_rule,
    .passes = {passes({0}, Reduce::product)},
    .reduce = {Reduce::product},
    .strided = true,
    .cpu = prod_kernel,
    .gradient = prod_gradient,
    .keeps = {.inputs = {0}},
    .sample = with(samples, {Kind::index})};
const Op prod_parts_op = {.name = "prod_parts",
                          .rule = two_outputs_rule,
                          .reduce = {Reduce::product, Reduce::sum},
                          .types = product_and_count,
                          .strided = true,
                          .cpu = prod_parts_kernel,
                          .sample = {{{{4, 5, 3}}, Over{Dims{1}}}, {{{7}}, Over{Dims{0}}}}};
const Op prod_backward_op = {.name = "prod_backward",
                             .rule = onto_slices_rule,
                             .passes = {linear_in({0}), passes({2}, Reduce::sum)},
                             .types = type_of_x,
                             .cpu = prod_backward_kernel,
                             .sample = {{{{4, 3}, {4, 5, 3}, {4, 3}, {Kind::index, {4, 3}, 2}}, Over{Dims{1}}}}};
// Not monotone in the sense of a card: a Partial(min) of several elements does not pass.
const Op amax_op = {
    .name = "amax",
    .functions = {function<amax>("amax(x, dim=all, keepdim=false)", "the largest element; NaN where there is one"),
                  function<any>("any(x, dim=all, keepdim=false)", "whether any element differs from zero")},
    .rule = reduce_rule,
    .passes = {passes({0}, Reduce::max)},
    .reduce = {Reduce::max},
    .strided = true,
    .cpu = extreme_kernel<Largest>,
    .gradient = extreme_gradient,
    .keeps = {.inputs = {0}, .outputs = {0}},
    .sample = with(samples, {Kind::index, Kind::boolean})};
const Op amin_op = {
    .name = "amin",
    .functions = {function<amin>("amin(x, dim=all, keepdim=false)", "the smallest element; NaN where there is one"),
                  function<all>("all(x, dim=all, keepdim=false)", "whether all elements differ from zero")},
    .rule = reduce_rule,
    .passes = {passes({0}, Reduce::min)},
    .reduce = {Reduce::min},
    .strided = true,
    .cpu = extreme_kernel<Smallest>,
    .gradient = extreme_gradient,
    .keeps = {.inputs = {0}, .outputs = {0}},
    .sample = with(samples, {Kind::index, Kind::boolean})};
const Op ties_op = {.name = "ties",
                    .rule = with_slices_rule,
                    .cpu = ties_kernel,
                    .sample = {{{{Kind::index, {4, 5, 3}, 3}, {Kind::index, {4, 3}, 3}}, Over{Dims{1}}}}};
const Op amax_backward_op = {
    .name = "amax_backward",
    .rule = onto_slices_rule,
    .passes = {linear_in({0})},
    .cpu = amax_backward_kernel,
    .sample = {{{{Kind::index, {4, 3}, 9}, {Kind::index, {4, 5, 3}, 3}, {Kind::index, {4, 3}, 3}}, Over{Dims{1}}}}};
const Op sum_squares_op = {.name = "sum_squares",
                           .rule = "...->",
                           .types = f64_type,
                           .cpu = sum_squares_kernel,
                           .gradient = sum_squares_gradient,
                           .keeps = {.inputs = {0}},
                           .sample = {{{{5, 3}}}, {{{0}}}}};

namespace {
constexpr const Op* reduce_ops[] = {&sum_op,  &count_nonzero_op, &prod_op, &prod_parts_op,    &prod_backward_op,
                                    &amax_op, &amin_op,          &ties_op, &amax_backward_op, &sum_squares_op};
}  // namespace
const Cards reduce_cards = reduce_ops;

DistributedTensor sum(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined("sum", x);
  return reduce(x.dtype() == DType::boolean ? count_nonzero_op : sum_op, x, dims, keepdim, "sum");
}
DistributedTensor mean(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined("mean", x);
  check(is_floating(x.dtype()), "[mean] element type {} of {}: use cast() to a floating type", name(x.dtype()), x);
  Dims all = normalized_dims("mean", dims, x.dims());
  return mul(reduce(sum_op, x, all, keepdim, "mean"), 1 / double(slice_size(x.shape(), all)));
}
DistributedTensor prod(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined("prod", x);
  return reduce(prod_op, x.dtype() == DType::boolean ? cast(x, DType::i64) : x, dims, keepdim, "prod");
}
DistributedTensor amax(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  return extreme(amax_op, x, dims, keepdim);
}
DistributedTensor amin(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  return extreme(amin_op, x, dims, keepdim);
}
DistributedTensor any(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined("any", x);
  return reduce(amax_op, cast(x, DType::boolean), dims, keepdim, "any");
}
DistributedTensor all(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined("all", x);
  return reduce(amin_op, cast(x, DType::boolean), dims, keepdim, "all");
}
DistributedTensor count_nonzero(const DistributedTensor& x, const Dims& dims) {
  return reduce(count_nonzero_op, x, dims, false, "count_nonzero");
}
DistributedTensor sum_squares(const DistributedTensor& x) { return call(sum_squares_op, {&x}); }

DistributedTensor sum_to(const DistributedTensor& x, const Shape& shape) {
  check_defined("sum_to", x);
  if (x.shape() == shape) return x;
  Dims dims;
  int ahead = x.dims() - shape.dims();
  for (int d = 0; d < x.dims(); ++d)
    if (d < ahead || (shape[d - ahead] == 1 && x.shape()[d] != 1)) dims.push_back(d);
  DistributedTensor y = dims.empty() ? x : sum(x, dims);
  return reshape(y, shape);
}

}  // namespace dtensor::ops
