#include "ops/reduction/order.h"

#include <fmt/format.h>
#include <algorithm>
#include <numeric>

#include "ops/cards.h"
#include "ops/family/dims.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

DType index_type(std::string_view, std::span<const TensorSpec* const>, const Attributes&, int) { return DType::i64; }
// Values, then indices.
DType value_and_index(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int output) {
  return output == 0 ? in[0]->dtype : DType::i64;
}

// Ascending, or descending; NaN is the largest of all.
template <class T>
bool before(T a, T b, bool descending) {
  if (descending) std::swap(a, b);
  return a < b || (b != b && a == a);
}
// The most extreme first: NaN first of all.
template <class T>
bool beyond(T a, T b, bool largest) {
  return (largest ? a > b : a < b) || (a != a && b == b);
}

// --- argmax

// x -> the index of the first extreme element
template <bool largest>
void arg_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t* y = out[0].data<int64_t>();
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    each_slice(c, s, [&](int64_t i, int) {
      const T* x = s.x.data<T>() + i * s.n;
      y[i] = 0;
      for (int64_t k = 1; k < s.n; ++k)
        if (beyond(x[k], x[y[i]], largest)) y[i] = k;
    });
  });
}

// The global index of element k of this rank's slice.
class GlobalIndex {
 public:
  explicit GlobalIndex(const Context& c) {
    for (char f : factors_in(dims_of(c.attributes))) parts_.push_back({c.range(f), c.size(f)});
  }
  int64_t operator()(int64_t k) const {
    int64_t index = 0, stride = 1;
    for (size_t d = parts_.size(); d-- > 0;) {
      index += (parts_[d].range.begin + k % parts_[d].range.size()) * stride;
      k /= parts_[d].range.size(), stride *= parts_[d].size;
    }
    return index;
  }

 private:
  struct Part {
    Range range;
    int64_t size;
  };
  std::vector<Part> parts_;
};

// x, extreme -> this rank's first global index of it; larger than any where it has none
void first_index_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  GlobalIndex global(c);
  int64_t* y = out[0].data<int64_t>();
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    const T* extreme = in[1].data<T>();
    each_slice(c, s, [&](int64_t i, int) {
      const T *x = s.x.data<T>() + i * s.n, m = extreme[i];
      int64_t k = std::find_if(x, x + s.n, [m](T v) { return v == m || (v != v && m != m); }) - x;
      y[i] = k < s.n ? global(k) : std::numeric_limits<int64_t>::max();
    });
  });
}

template <const Op& extreme_op>
std::vector<DistributedTensor> sharded_arg(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DistributedTensor &x = *in[0], m = reduced(call(extreme_op, {&x}, a));
  return {reduced(call(first_index_op, {&x, &m}, a))};
}

Rule arg_rule(std::span<const Shape* const> in, const Attributes& a) {
  return {factors(in[0]->dims(), dims_of(a)) + "->" + other_factors(in[0]->dims(), dims_of(a))};
}
Rule first_index_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string kept = other_factors(in[0]->dims(), dims_of(a));
  return {factors(in[0]->dims()) + "," + kept + "->" + kept};
}

DistributedTensor arg(const Op& whole, const Op& sharded, const DistributedTensor& x, std::optional<int64_t> dim,
                      bool keepdim) {
  check_defined(whole.name, x);
  Dims dims = normalized_dims(whole.name, dim ? Dims{*dim} : Dims{}, x.dims());
  check(slice_size(x.shape(), dims) > 0, "[{}] {} has no elements along {}", whole.name, x,
        dim ? fmt::format("dimension {}", *dim) : "all dimensions");
  DistributedTensor y = call(sharded_along(x, dims) ? sharded : whole, {&x}, Over{dims});
  return keepdim ? reshape(y, kept_shape(x.shape(), dims)) : y;
}

// --- sort, topk

// The first of each slice in order, as many as the outputs have, with their places.
void sort_slices(const Context& c, In in, Out out, bool descending) {
  const Dims& dims = dims_of(c.attributes);
  Slices s = slices_of(in[0], dims);
  int64_t k = std::min(s.n, slice_size(out[0].shape(), dims));
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    write_slices(c, out[0], dims, [&](Tensor& values) {
      write_slices(c, out[1], dims, [&](Tensor& indices) {
        each_slice(c, s, [&](int64_t i, int worker) {
          const T* x = s.x.data<T>() + i * s.n;
          int64_t* order = c.scratch(worker).get<int64_t>(cpu::Slot::caller, s.n);
          std::iota(order, order + s.n, 0);
          auto less = [&](int64_t a, int64_t b) {
            return before(x[a], x[b], descending) || (a < b && !before(x[b], x[a], descending));
          };
          if (k < s.n)
            std::partial_sort(order, order + k, order + s.n, less);
          else
            std::sort(order, order + s.n, less);
          std::copy_n(order, k, indices.data<int64_t>() + i * k);
          for (int64_t j = 0; j < k; ++j) values.data<T>()[i * k + j] = x[order[j]];
        });
      });
    });
  });
}
void sort_kernel(const Context& c, In in, Out out) { sort_slices(c, in, out, c.attributes.as<Sort>().descending); }
void topk_kernel(const Context& c, In in, Out out) { sort_slices(c, in, out, c.attributes.as<TopK>().largest); }

// "a[b]c->a[b]c,a[b]c"
Rule sort_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims(), dims_of(a));
  return {all + "->" + all + "," + all};
}
// "a[b]c->a[z]c,a[z]c"
Rule topk_rule(std::span<const Shape* const> in, const Attributes& a) {
  int64_t k = a.as<TopK>().k, n = slice_size(*in[0], dims_of(a));
  check(k >= 0 && k <= n && (k || in[0]->dims()), "[topk] k={} of {} elements along dimension {} of {}", k, n,
        fmt::join(dims_of(a), ","), *in[0]);
  std::string from = factors(in[0]->dims(), dims_of(a)), to = from;
  if (in[0]->dims()) to[from.find('[') + 1] = 'z';
  Rule r{from + "->" + to + "," + to};
  if (in[0]->dims()) r.sizes = {{'z', k}};
  return r;
}

// What was taken from a place is added back there.
void taken_gradient(Gradient& g) {
  const Dims& dims = dims_of(g.attributes());
  if (dims.empty()) return g.set(0, g.of_output());  // of a tensor without dimensions
  int64_t size = g.input_spec(0).shape[int(dims[0])];
  g.set(0, call(scatter_add_op, {nullptr, &g.output(1), &g.of_output()}, AtIndex{.dim = dims[0], .size = size},
                {g.wanted(0)}));
}

std::tuple<DistributedTensor, DistributedTensor> pair(std::vector<DistributedTensor> list) {
  return {list[0], list[1]};
}

using Kind = SampleInput::Kind;
Sort sorted(const Dims& d, bool descending) { return {{d}, descending}; }
TopK first(const Dims& d, int64_t k, bool largest) { return {{d}, k, largest}; }
const std::vector<Sample> arg_samples = {{{{4, 5, 3}}, over({1})},   {{{4, 5}}, over({1})},
                                         {{{5, 3}}, over({0, 1})},   {{{Kind::index, {4, 7}, 3}}, over({1})},
                                         {{{0, 5}}, over({1})},      {{{}}, over({})},
                                         {{{4, 5, 3}}, over({0, 2})}};

}  // namespace

const Op argmax_op = {
    .name = "argmax",
    .functions = {function<argmax>("argmax(x, dim=none, keepdim=false)", "the index of the first largest element")},
    .rule = arg_rule,
    .types = index_type,
    .strided = true,
    .cpu = arg_kernel<true>,
    .sample = arg_samples};
const Op argmin_op = {
    .name = "argmin",
    .functions = {function<argmin>("argmin(x, dim=none, keepdim=false)", "the index of the first smallest element")},
    .rule = arg_rule,
    .types = index_type,
    .strided = true,
    .cpu = arg_kernel<false>,
    .sample = arg_samples};
const Op sharded_argmax_op = {.name = "sharded_argmax", .composite = sharded_arg<amax_op>, .sample = arg_samples};
const Op sharded_argmin_op = {.name = "sharded_argmin", .composite = sharded_arg<amin_op>, .sample = arg_samples};
const Op first_index_op = {.name = "first_index",
                           .rule = first_index_rule,
                           .reduce = {Reduce::min},
                           .types = index_type,
                           .cpu = first_index_kernel,
                           .sample = {{{{Kind::index, {4, 9, 3}, 3}, {Kind::index, {4, 3}, 3}}, over({1})},
                                      {{{Kind::index, {4, 5}, 9}, {Kind::index, {}, 9}}, over({0, 1})}}};
const Op sort_op = {
    .name = "sort",
    .functions = {function<sort>("sort(x, dim=-1, descending=false, stable=true)",
                                 "the elements in order, and their indices"),
                  function<argsort>("argsort(x, dim=-1, descending=false, stable=true)", "the indices that sort x")},
    .rule = sort_rule,
    .types = value_and_index,
    .strided = true,
    .cpu = sort_kernel,
    .gradient = taken_gradient,
    .keeps = {.outputs = {1}},
    .sample = {{{{4, 5, 3}}, sorted({1}, false)},
               {{{4, 5}}, sorted({1}, true)},
               {{{Kind::index, {5, 4}, 3}}, sorted({0}, true)},
               {{{Kind::boolean, {5, 4}}}, sorted({0}, false)},
               {{{3, 0}}, sorted({1}, false)},
               {{{}}, sorted({}, false)}}};
const Op topk_op = {.name = "topk",
                    .functions = {function<topk>("topk(x, k=, dim=-1, largest=true, sorted=true)",
                                                 "the k largest or smallest elements, and their indices")},
                    .rule = topk_rule,
                    .types = value_and_index,
                    .strided = true,
                    .cpu = topk_kernel,
                    .gradient = taken_gradient,
                    .keeps = {.outputs = {1}},
                    .sample = {{{{4, 5, 3}}, first({1}, 2, true)},
                               {{{4, 5}}, first({1}, 5, false)},
                               {{{5, 4}}, first({0}, 0, true)},
                               {{{Kind::index, {5, 4}, 3}}, first({0}, 3, true)},
                               {{{}}, first({}, 1, true)}}};

namespace {
constexpr const Op* order_ops[] = {&argmax_op, &argmin_op, &sharded_argmax_op, &sharded_argmin_op, &first_index_op,
                                   &sort_op,   &topk_op};
}  // namespace
const Cards order_cards = order_ops;

DistributedTensor argmax(const DistributedTensor& x, std::optional<int64_t> dim, bool keepdim) {
  return arg(argmax_op, sharded_argmax_op, x, dim, keepdim);
}
DistributedTensor argmin(const DistributedTensor& x, std::optional<int64_t> dim, bool keepdim) {
  return arg(argmin_op, sharded_argmin_op, x, dim, keepdim);
}

std::tuple<DistributedTensor, DistributedTensor> sort(const DistributedTensor& x, int64_t dim, bool descending, bool) {
  check_defined("sort", x);
  return pair(call_all(sort_op, {&x}, sorted(normalized_dims("sort", {dim}, x.dims()), descending)));
}
DistributedTensor argsort(const DistributedTensor& x, int64_t dim, bool descending, bool) {
  check_defined("argsort", x);
  return call_all(sort_op, {&x}, sorted(normalized_dims("argsort", {dim}, x.dims()), descending))[1];
}
std::tuple<DistributedTensor, DistributedTensor> topk(const DistributedTensor& x, int64_t k, int64_t dim, bool largest,
                                                      bool) {
  check_defined("topk", x);
  Dims dims = normalized_dims("topk", {dim}, x.dims());
  return pair(call_all(topk_op, {&x}, first(dims, k, largest)));
}

}  // namespace dtensor::ops
