#include "ops/shape/gather.h"

#include <functional>

#include "ops/cards.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

int dim_of(const Attributes& a) { return int(a.as<AtIndex>().dim); }
char letter_of(const Attributes& a) { return char('a' + dim_of(a)); }  // of the indexed dimension

// "abc", and "aic": along dim as long as the indices.
struct Texts {
  std::string whole, indexed;
  Texts(const Shape& shape, const Attributes& a) : whole("abcdefgh", size_t(shape.dims())), indexed(whole) {
    indexed[size_t(dim_of(a))] = 'i';
  }
};

// A tensor as [outer, n, inner] around a dimension.
struct Around {
  int64_t outer = 1, n, inner = 1;
  Around(const Shape& s, int dim) : n(s[dim]) {
    for (int d = 0; d < dim; ++d) outer *= s[d];
    for (int d = dim + 1; d < s.dims(); ++d) inner *= s[d];
  }
};

void check_index(const Context& c, int64_t i) {
  int64_t n = c.size(letter_of(c.attributes));
  if (i < 0 || i >= n) fail("[{}] index {} is outside [0,{}) of dimension {}", c.op, i, n, dim_of(c.attributes));
}
void check_i64(std::string_view op, const TensorSpec& index) {
  check(index.dtype == DType::i64, "[{}] indices are i64, not {}{}", op, name(index.dtype), index.shape);
}

DType taken_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int) {
  check_i64(op, *in[1]);
  check(in[0]->dtype != DType::boolean || a.as<AtIndex>().any, "[{}] of bool needs the attribute any=true", op);
  return in[0]->dtype;
}
DType added_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  check_i64(op, *in[1]);
  check(in[2]->dtype != DType::boolean, "[{}] adds numbers, not {}{}; use cast()", op, name(in[2]->dtype),
        in[2]->shape);
  const TensorSpec* values[] = {in[0], in[2]};
  return same_types(op, values, a, output);
}
// What an absent x, all zeros, does not tell.
void add_size(Rule& r, const Attributes& a) {
  if (auto size = a.as<AtIndex>().size) r.sizes.emplace_back(letter_of(a), *size);
}

Rule index_select_rule(std::span<const Shape* const> in, const Attributes& a) {
  Texts t(*in[0], a);
  Rule r{t.whole + ",i->" + t.indexed};
  if (a.as<AtIndex>().any) r.reduce = {Reduce::max};
  return r;
}
Rule index_add_rule(std::span<const Shape* const> in, const Attributes& a) {
  Texts t(*in[2], a);
  Rule r{t.whole + ",i," + t.indexed + "->" + t.whole};
  add_size(r, a);
  return r;
}
Rule gather_rule(std::span<const Shape* const> in, const Attributes& a) {
  Texts t(*in[0], a);
  Rule r{t.whole + "," + t.indexed + "->" + t.indexed};
  if (a.as<AtIndex>().any) r.reduce = {Reduce::max};
  return r;
}
Rule scatter_add_rule(std::span<const Shape* const> in, const Attributes& a) {
  Texts t(*in[2], a);
  Rule r{t.whole + "," + t.indexed + "," + t.indexed + "->" + t.whole};
  add_size(r, a);
  return r;
}

void index_select_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Around x(in[0].shape(), dim_of(c.attributes));
  const int64_t *index = in[1].data<int64_t>(), k = in[1].numel();
  Range here = c.range(letter_of(c.attributes));
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    const T* from = in[0].data<T>();
    T* to = out[0].data<T>();
    c.pool.parallel_for(x.outer * k, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(x.inner, 1)),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t r = b; r < e; ++r) {
                            int64_t i = index[r % k];
                            check_index(c, i);
                            if (i >= here.begin && i < here.end)
                              std::copy_n(from + (r / k * x.n + i - here.begin) * x.inner, x.inner, to + r * x.inner);
                            else
                              std::fill_n(to + r * x.inner, x.inner, T(0));
                          }
                        });
  });
}

void gather_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Around x(in[0].shape(), dim_of(c.attributes)), y(in[1].shape(), dim_of(c.attributes));
  const int64_t* index = in[1].data<int64_t>();
  Range here = c.range(letter_of(c.attributes));
  for_all_types(c, in[0].dtype(), [&]<class T>() {
    const T* from = in[0].data<T>();
    T* to = out[0].data<T>();
    c.pool.parallel_for(y.outer * y.n, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(y.inner, 1)),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t r = b; r < e; ++r)
                            for (int64_t q = 0; q < y.inner; ++q) {
                              int64_t i = index[r * y.inner + q];
                              check_index(c, i);
                              bool mine = i >= here.begin && i < here.end;
                              to[r * y.inner + q] = mine ? from[(r / y.n * x.n + i - here.begin) * x.inner + q] : T(0);
                            }
                        });
  });
}

// out = x, or zeros; then for each of the n slices of source, in order, out[index] += slice. Columns (outer, inner) are
// split over threads. `index_at(outer, j, inner)` is where an element's index stands.
template <class T, class IndexAt>
void add_slices(const Context& c, std::span<const Tensor> in, const Tensor& out, IndexAt index_at) {
  Around to(out.shape(), dim_of(c.attributes)), from(in[2].shape(), dim_of(c.attributes));
  const int64_t* index = in[1].data<int64_t>();
  const T* source = in[2].data<T>();
  T* y = out.data<T>();
  if (in[0].defined())
    copy(in[0], out);
  else
    fill(out, 0);
  Range here = c.range(letter_of(c.attributes));
  int64_t grain = std::max<int64_t>(16, pointwise_grain / std::max<int64_t>(from.n, 1));
  c.pool.parallel_for(to.outer * to.inner, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t a = begin / to.inner; a * to.inner < end; ++a) {
      int64_t first = std::max<int64_t>(begin - a * to.inner, 0), last = std::min(end - a * to.inner, to.inner);
      for (int64_t j = 0; j < from.n; ++j)
        for (int64_t q = first; q < last; ++q) {
          int64_t i = index[index_at(a, j, q)];
          check_index(c, i);
          if (i < here.begin || i >= here.end) continue;
          T& sum = y[(a * to.n + i - here.begin) * to.inner + q];
          sum = wrapping(std::plus<>{}, sum, source[(a * from.n + j) * from.inner + q]);
        }
    }
  });
}
void index_add_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_numbers(c, out[0].dtype(),
              [&]<class T>() { add_slices<T>(c, in, out[0], [](int64_t, int64_t j, int64_t) { return j; }); });
}
void scatter_add_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Around index(in[1].shape(), dim_of(c.attributes));
  for_numbers(c, out[0].dtype(), [&]<class T>() {
    add_slices<T>(c, in, out[0], [&](int64_t a, int64_t j, int64_t q) { return (a * index.n + j) * index.inner + q; });
  });
}

// Both of x, at an index: what was taken is added back there.
void taken_gradient(Gradient& g, const Op& add) {
  int dim = dim_of(g.attributes());
  if (g.needs(0))
    g.set(0, call(add, {nullptr, &g.input(1), &g.of_output()}, AtIndex{.dim = dim, .size = g.input_spec(0).shape[dim]},
                  {g.wanted(0)}));
}
void added_gradient(Gradient& g, const Op& take) {
  if (g.needs(0)) g.set(0, g.of_output());
  if (g.needs(2)) g.set(2, call(take, {&g.of_output(), &g.input(1)}, AtIndex{dim_of(g.attributes())}, {g.wanted(2)}));
}
void index_select_gradient(Gradient& g) { taken_gradient(g, index_add_op); }
void gather_gradient(Gradient& g) { taken_gradient(g, scatter_add_op); }
void index_add_gradient(Gradient& g) { added_gradient(g, index_select_op); }
void scatter_add_gradient(Gradient& g) { added_gradient(g, gather_op); }

// Where it is sharded, each rank copies what falls into its range.
Rule index_copy_rule(std::span<const Shape* const> in, const Attributes& a) {
  Texts t(*in[0], a);
  t.indexed.replace(size_t(dim_of(a)), 1, "[i]");
  return {t.whole + ",[i]," + t.indexed + "->" + t.whole};
}
DType copied_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  check_i64(op, *in[1]);
  const TensorSpec* values[] = {in[0], in[2]};
  return same_types(op, values, a, output);
}
// All indices are checked before anything is written.
void index_copy_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Around to(out[0].shape(), dim_of(c.attributes)), from(in[2].shape(), dim_of(c.attributes));
  const int64_t* index = in[1].data<int64_t>();
  for (int64_t j = 0; j < from.n; ++j) check_index(c, index[j]);
  Range here = c.range(letter_of(c.attributes));
  for_all_types(c, out[0].dtype(), [&]<class T>() {
    const T* source = in[2].data<T>();
    T* y = out[0].data<T>();
    int64_t grain = std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(from.n * from.inner, 1));
    c.pool.parallel_for(to.outer, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t a = begin; a < end; ++a)
        for (int64_t j = 0; j < from.n; ++j)
          if (index[j] >= here.begin && index[j] < here.end)
            std::copy_n(source + (a * from.n + j) * from.inner, to.inner,
                        y + (a * to.n + index[j] - here.begin) * to.inner);
    });
  });
}

Rule one_hot_rule(std::span<const Shape* const>, const Attributes& a) {
  Rule r{"...->...v"};
  r.sizes = {{'v', a.as<OneHot>().num_classes}};
  return r;
}
DType one_hot_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check(in[0]->dtype == DType::i64, "[{}] classes are i64, not {}{}", op, name(in[0]->dtype), in[0]->shape);
  return DType::i64;
}
void one_hot_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const int64_t* x = in[0].data<int64_t>();
  int64_t *y = out[0].data<int64_t>(), n = out[0].shape().back();
  Range here = c.range('v');
  std::fill_n(y, out[0].numel(), 0);
  for (int64_t i = 0; i < in[0].numel(); ++i) {
    check(x[i] >= 0 && x[i] < c.size('v'), "[one_hot] class {} is outside [0,{})", x[i], c.size('v'));
    if (x[i] >= here.begin && x[i] < here.end) y[i * n + x[i] - here.begin] = 1;
  }
}

AtIndex along(int64_t dim) { return {dim}; }
const AtIndex of_bool{.dim = 1, .any = true}, of_seven{.dim = 1, .size = 7};

}  // namespace

const Op index_select_op = {
    .name = "index_select",
    .functions = {function<index_select>("index_select(x, dim=, index)", "the slices of x at the indices")},
    .rule = index_select_rule,
    .passes = {moves({0})},
    .types = taken_type,
    .cpu = index_select_kernel,
    .gradient = index_select_gradient,
    .keeps = {.inputs = {1}},
    .sample = {{{{4, 7, 3}, ids({5}, 7)}, along(1)},
               {{{5}, ids({8}, 5)}, along(0)},
               {{{4, 7}, ids({0}, 7)}, along(1)},
               {{ids({4, 3}, 9), ids({5}, 4)}, along(0)},
               {{flags({4, 3}), ids({5}, 3)}, of_bool}}};
const Op index_add_op = {.name = "index_add",
                         .functions = {function<index_add>("index_add(x, dim=, index, source)",
                                                           "x with the slices of source added at the indices")},
                         .rule = index_add_rule,
                         .passes = {linear_in({0, 2})},
                         .added = {0},
                         .types = added_type,
                         .optional = {0},
                         .cpu = index_add_kernel,
                         .gradient = index_add_gradient,
                         .keeps = {.inputs = {1}},
                         .sample = {{{{4, 7, 3}, ids({5}, 7), {4, 5, 3}}, along(1)},
                                    {{absent, ids({5}, 7), {4, 5}}, of_seven},
                                    {{{5}, ids({8}, 5), {8}}, along(0)},
                                    {{ids({4, 3}, 9), ids({5}, 4), ids({5, 3}, 9)}, along(0)}}};
const Op gather_op = {
    .name = "gather",
    .functions = {function<gather>("gather(x, dim=, index)", "the elements of x at the indices along dim")},
    .rule = gather_rule,
    .passes = {moves({0})},
    .types = taken_type,
    .cpu = gather_kernel,
    .gradient = gather_gradient,
    .keeps = {.inputs = {1}},
    .sample = {{{{4, 7, 3}, ids({4, 5, 3}, 7)}, along(1)},
               {{{5}, ids({8}, 5)}, along(0)},
               {{{4, 7}, ids({4, 0}, 7)}, along(1)},
               {{ids({4, 3}, 9), ids({5, 3}, 4)}, along(0)},
               {{flags({4, 3}), ids({4, 5}, 3)}, of_bool}}};
const Op scatter_add_op = {
    .name = "scatter_add",
    .functions = {function<scatter_add>("scatter_add(x, dim=, index, source)",
                                        "x with the elements of source added at the indices along dim")},
    .rule = scatter_add_rule,
    .passes = {linear_in({0, 2})},
    .added = {0},
    .types = added_type,
    .optional = {0},
    .cpu = scatter_add_kernel,
    .gradient = scatter_add_gradient,
    .keeps = {.inputs = {1}},
    .sample = {{{{4, 7, 3}, ids({4, 5, 3}, 7), {4, 5, 3}}, along(1)},
               {{absent, ids({4, 5}, 7), {4, 5}}, of_seven},
               {{{5}, ids({8}, 5), {8}}, along(0)},
               {{ids({4, 3}, 9), ids({5, 3}, 4), ids({5, 3}, 9)}, along(0)}}};
const Op index_copy_op = {
    .name = "index_copy_",
    .functions = {function<index_copy_>("index_copy_(x, dim=, index, source)",
                                        "writes the slices of source over those of x at the indices, in place")},
    .rule = index_copy_rule,
    .passes = {moves({0, 2})},
    .types = copied_type,
    .writes = {0},
    .cpu = index_copy_kernel,
    .sample = {{{{4, 7, 3}, ids({2}, 7), {4, 2, 3}}, along(1)},
               {{{5}, ids({8}, 5), {8}}, along(0)},
               {{{4, 7}, ids({0}, 7), {4, 0}}, along(1)},
               {{ids({4, 3}, 9), ids({1}, 4), ids({1, 3}, 9)}, along(0)},
               {{flags({4, 3}), ids({2}, 3), flags({4, 2})}, along(1)}}};
const Op one_hot_op = {
    .name = "one_hot",
    .functions = {function<one_hot>("one_hot(x, num_classes=)", "1 at the class, 0 elsewhere")},
    .rule = one_hot_rule,
    .types = one_hot_type,
    .cpu = one_hot_kernel,
    .sample = {{{ids({4, 3}, 5)}, OneHot{5}}, {{ids({0}, 5)}, OneHot{2}}, {{ids({}, 5)}, OneHot{7}}}};

namespace {
constexpr const Op* gather_ops[] = {&index_select_op, &index_add_op,   &index_copy_op,
                                    &gather_op,       &scatter_add_op, &one_hot_op};
}  // namespace
const Cards gather_cards = gather_ops;

namespace {

AtIndex taking(const DistributedTensor& x, int64_t dim) {
  AtIndex a = along(dim);
  a.any = x.dtype() == DType::boolean;
  return a;
}

int checked_dim(const char* who, const DistributedTensor& x, int64_t dim, const DistributedTensor& index) {
  int d = normalize_dim(who, dim, x.dims());
  check(index.dims() == x.dims(), "[{}] {} and index {}: both have as many dimensions", who, x, index);
  for (int k = 0; k < x.dims(); ++k)
    check(k == d || index.shape()[k] <= x.shape()[k], "[{}] index {} is larger than {} in dimension {}", who, index, x,
          k);
  return d;
}
int checked_dim_1d(const char* who, const DistributedTensor& x, int64_t dim, const DistributedTensor& index) {
  check(index.dims() == 1, "[{}] index {}: it has one dimension; flatten() it", who, index);
  return normalize_dim(who, dim, x.dims());
}

// Zeros behind the elements of a dimension.
DistributedTensor padded(const DistributedTensor& x, int64_t dim, int64_t size) {
  return call(slice_backward_op, {&x}, PartOf{{dim, 0, 1}, size});
}

}  // namespace

DistributedTensor index_select(const DistributedTensor& x, int64_t dim, const DistributedTensor& index) {
  check_defined("index_select", x);
  check_defined("index_select", index, 1);
  int d = checked_dim_1d("index_select", x, dim, index);
  return call(index_select_op, {&x, &index}, taking(x, d));
}
DistributedTensor index_add(const DistributedTensor& x, int64_t dim, const DistributedTensor& index,
                            const DistributedTensor& source) {
  check_defined("index_add", x);
  check_defined("index_add", index, 1);
  check_defined("index_add", source, 2);
  int d = checked_dim_1d("index_add", x, dim, index);
  return call(index_add_op, {&x, &index, &source}, along(d));
}
DistributedTensor index_copy_(const DistributedTensor& x, int64_t dim, const DistributedTensor& index,
                              const DistributedTensor& source) {
  check_defined("index_copy_", x);
  check_defined("index_copy_", index, 1);
  check_defined("index_copy_", source, 2);
  int d = checked_dim_1d("index_copy_", x, dim, index);
  return call(index_copy_op, {&x, &index, &source}, along(d));
}
DistributedTensor gather(const DistributedTensor& x, int64_t dim, const DistributedTensor& index) {
  check_defined("gather", x);
  check_defined("gather", index, 1);
  if (x.dims() == 0 && index.dims() == 0)  // as of one dimension of size 1
    return squeeze(gather(unsqueeze(x, 0), dim, unsqueeze(index, 0)));
  int d = checked_dim("gather", x, dim, index);
  DistributedTensor from = x;
  for (int k = 0; k < x.dims(); ++k)
    if (k != d) from = slice(from, k, 0, index.shape()[k]);
  return call(gather_op, {&from, &index}, taking(x, d));
}
DistributedTensor scatter_add(const DistributedTensor& x, int64_t dim, const DistributedTensor& index,
                              const DistributedTensor& source) {
  check_defined("scatter_add", x);
  check_defined("scatter_add", index, 1);
  check_defined("scatter_add", source, 2);
  if (x.dims() == 0 && index.dims() == 0 && source.dims() == 0)  // as of one dimension of size 1
    return squeeze(scatter_add(unsqueeze(x, 0), dim, unsqueeze(index, 0), unsqueeze(source, 0)));
  int d = checked_dim("scatter_add", x, dim, index);
  check(source.dims() == x.dims(), "[scatter_add] {} and source {}: both have as many dimensions", x, source);
  DistributedTensor at = index, from = source;
  for (int k = 0; k < x.dims(); ++k) {
    check(index.shape()[k] <= source.shape()[k], "[scatter_add] index {} is larger than source {} in dimension {}",
          index, source, k);
    from = slice(from, k, 0, index.shape()[k]);
  }
  if (numel(index.shape()) == 0) return x;
  for (int k = 0; k < x.dims(); ++k) {  // zeros are added where index ends before x: at 0, which is there
    if (k == d || index.shape()[k] == x.shape()[k]) continue;
    at = padded(at, k, x.shape()[k]), from = padded(from, k, x.shape()[k]);
  }
  return call(scatter_add_op, {&x, &at, &from}, along(d));
}
DistributedTensor one_hot(const DistributedTensor& x, int64_t num_classes) {
  check(num_classes >= 0, "[one_hot] num_classes={}: the number of classes is told, not found in the data",
        num_classes);
  return call(one_hot_op, {&x}, OneHot{num_classes});
}

}  // namespace dtensor::ops
