#include "ops/shape/slice.h"

#include <fmt/format.h>

#include "ops/cards.h"
#include "ops/family/kernel.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// `count` elements of dimension `dim` from `begin` on, `step` apart.
Tensor stepped(const Tensor& t, int dim, int64_t begin, int64_t count, int64_t step) {
  Tensor part = t.narrow(dim, count ? begin : 0, count ? (count - 1) * step + 1 : 0);
  Shape shape = part.shape(), strides = part.strides();
  shape[dim] = count, strides[dim] *= step;
  return part.as_strided(shape, strides);
}

// An error where the last of `length` elements is not there.
void check_part(const Context& c, int64_t length, int64_t size) {
  auto [dim, start, step] = c.attributes.as<Steps>();
  check(start >= 0 && step >= 1 && (length == 0 || start + (length - 1) * step < size),
        "[{}] {} elements, {} apart, from {} on are not within dimension {} of size {}", c.op, length, step, start, dim,
        size);
}

// "a[b]c->a[z]c": the part is whole as well, its elements fall to other ranks than in x.
Rule slice_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string from("abcdefgh", size_t(in[0]->dims())), to = from;
  const auto& part = a.as<Part>();
  auto d = size_t(part.dim);
  from.replace(d, 1, fmt::format("[{}]", from[d]));
  to.replace(d, 1, "[z]");
  Rule r{from + "->" + to};
  r.sizes = {{'z', part.length}};
  return r;
}
void slice_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const auto& part = c.attributes.as<Part>();
  check_part(c, part.length, in[0].size(int(part.dim)));
  out[0] = stepped(in[0], int(part.dim), part.start, part.length, part.step);
}

DistributedTensor slice_backward(const DistributedTensor& part, int64_t dim, int64_t start, int64_t step, int64_t size,
                                 const Layout* wanted) {
  return call(slice_backward_op, {&part}, PartOf{{dim, start, step}, size}, {wanted});
}
void slice_gradient(Gradient& g) {
  const auto& part = g.attributes().as<Part>();
  g.set(0, slice_backward(g.of_output(), part.dim, part.start, part.step, g.input_spec(0).shape[int(part.dim)],
                          g.wanted(0)));
}

// "a[z]c->abc": zeros around the part; any rank can make its range of b.
Rule slice_backward_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string to("abcdefgh", size_t(in[0]->dims())), from = to;
  const auto& whole = a.as<PartOf>();
  auto d = size_t(whole.dim);
  from.replace(d, 1, "[z]");
  Rule r{from + "->" + to};
  r.sizes = {{to[d], whole.size}};
  return r;
}
void slice_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const auto& whole = c.attributes.as<PartOf>();
  int dim = int(whole.dim);
  int64_t start = whole.start, step = whole.step, n = in[0].size(dim);
  Range here = c.range(char('a' + dim));
  check_part(c, n, c.size(char('a' + dim)));
  auto first_from = [&](int64_t i) { return std::clamp<int64_t>((i - start + step - 1) / step, 0, n); };
  int64_t begin = first_from(std::max(here.begin, start)), end = std::max(begin, first_from(std::max(here.end, start)));
  fill(out[0], 0);
  copy(in[0].narrow(dim, begin, end - begin),
       stepped(out[0], dim, start + begin * step - here.begin, end - begin, step));
}
void slice_backward_gradient(Gradient& g) {
  auto [dim, start, step] = g.attributes().as<Steps>();
  g.set(0, slice(g.of_output(), dim, start, start + g.input_spec(0).shape[int(dim)] * step, step));
}

// "abc->ac": the ranks that do not have the index leave zeros.
Rule select_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string from("abcdefgh", size_t(in[0]->dims())), to = from;
  to.erase(size_t(a.as<At>().dim), 1);
  Rule r{from + "->" + to};
  if (a.as<At>().any) r.reduce = {Reduce::max};
  return r;
}
DType select_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int) {
  check(in[0]->dtype != DType::boolean || a.as<At>().any, "[{}] of bool needs the attribute any=true", op);
  return in[0]->dtype;
}
void select_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int dim = int(c.attributes.as<At>().dim);
  int64_t index = c.attributes.as<At>().index, n = c.size(char('a' + dim));
  Range here = c.range(char('a' + dim));
  check(index >= 0 && index < n, "[select] index {} is outside [0,{}) of dimension {}", index, n, dim);
  if (index < here.begin || index >= here.end) {
    out[0] = Tensor::zeros(c.allocator, in[0].dtype(), out[0].shape());
    return;
  }
  Tensor one = in[0].narrow(dim, index - here.begin, 1);
  Shape strides = one.strides();
  strides.erase(dim);
  out[0] = one.as_strided(out[0].shape(), strides);
}
void select_gradient(Gradient& g) {
  const auto& at = g.attributes().as<At>();
  g.set(0, slice_backward(unsqueeze(g.of_output(), at.dim), at.dim, at.index, 1, g.input_spec(0).shape[int(at.dim)],
                          g.wanted(0)));
}

Part part(int64_t dim, int64_t start, int64_t length, int64_t step) { return {{dim, start, step}, length}; }
PartOf around(int64_t dim, int64_t start, int64_t step, int64_t size) { return {{dim, start, step}, size}; }

}  // namespace

const Op slice_op = {
    .name = "slice",
    .functions = {function<slice>("slice(x, dim=0, start=none, end=none, step=1)",
                                  "x[start:end:step] along dim; a view"),
                  function<narrow>("narrow(x, dim=, start=, length=)", "length elements of dim from start on; a view")},
    .rule = slice_rule,
    .passes = {moves({0})},
    .strided = true,
    .view = true,
    .cpu = slice_kernel,
    .gradient = slice_gradient,
    .sample = {{{{4, 7}}, part(1, 2, 3, 1)},
               {{{4, 7}}, part(1, 1, 3, 2)},
               {{{7, 4}}, part(0, 6, 1, 5)},
               {{{4, 5}}, part(1, 5, 0, 1)},
               {{{SampleInput::Kind::index, {5, 3}, 9}}, part(0, 1, 2, 2)}}};
const Op slice_backward_op = {.name = "slice_backward",
                              .rule = slice_backward_rule,
                              .passes = {moves({0})},
                              .strided = true,
                              .cpu = slice_backward_kernel,
                              .cuda = slice_backward_kernel,
                              .gradient = slice_backward_gradient,
                              .sample = {{{{4, 3}}, around(1, 2, 1, 7)},
                                         {{{3, 4}}, around(0, 1, 2, 7)},
                                         {{{4, 1}}, around(1, 6, 1, 7)},
                                         {{{4, 0}}, around(1, 5, 1, 5)},
                                         {{{SampleInput::Kind::index, {2, 3}, 9}}, around(0, 1, 3, 5)}}};
const Op select_op = {
    .name = "select",
    .functions = {function<select>("select(x, dim=, index=)", "x without dim, at index of it; a view")},
    .rule = select_rule,
    .passes = {moves({0})},
    .types = select_type,
    .strided = true,
    .view = true,
    .cpu = select_kernel,
    .gradient = select_gradient,
    .sample = {{{{4, 5, 3}}, At{1, 4}},
               {{{4, 5}}, At{0, 0}},
               {{{6}}, At{0, 3}},
               {{{SampleInput::Kind::index, {5, 3}, 9}}, At{0, 2}},
               {{{SampleInput::Kind::boolean, {5, 3}}}, At{0, 2, true}}}};

namespace {
constexpr const Op* slice_ops[] = {&slice_op, &slice_backward_op, &select_op};
}  // namespace
const Cards slice_cards = slice_ops;

DistributedTensor slice(const DistributedTensor& x, int64_t dim, std::optional<int64_t> start,
                        std::optional<int64_t> end, int64_t step) {
  check_defined("slice", x);
  int d = normalize_dim("slice", dim, x.dims());
  if (step < 1)
    fail("[slice] step {} along dimension {} of {}: it is at least 1; flip() turns a dimension round", step, dim, x);
  int64_t n = x.shape()[d];
  auto bound = [&](int64_t i) { return std::clamp<int64_t>(i < 0 ? i + n : i, 0, n); };
  int64_t first = bound(start.value_or(0)), behind = std::max(first, bound(end.value_or(n)));
  if (first == 0 && behind == n && step == 1) return x;
  int64_t length = behind == first ? 0 : (behind - first - 1) / step + 1;
  return call(slice_op, {&x}, part(d, first, length, length > 1 ? step : 1));
}
DistributedTensor narrow(const DistributedTensor& x, int64_t dim, int64_t start, int64_t length) {
  check_defined("narrow", x);
  int64_t n = x.shape()[normalize_dim("narrow", dim, x.dims())], first = start < 0 ? start + n : start;
  if (first < 0 || length < 0 || length > n - first)
    fail("[narrow] {} elements from {} on are not within dimension {} of {}", length, start, dim, x);
  return slice(x, dim, first, first + length);
}
DistributedTensor select(const DistributedTensor& x, int64_t dim, int64_t index) {
  check_defined("select", x);
  int d = normalize_dim("select", dim, x.dims());
  int64_t n = x.shape()[d];
  if (index < -n || index >= n) fail("[select] index {} is not within dimension {} of {}", index, dim, x);
  return call(select_op, {&x}, At{d, index < 0 ? index + n : index, x.dtype() == DType::boolean});
}

DistributedTensor index(const DistributedTensor& x, const std::vector<Index>& indices) {
  check_defined("index", x);
  int named = 0, ellipses = 0, d = 0;
  for (const Index& i : indices) {
    named += std::holds_alternative<int64_t>(i) || std::holds_alternative<Slice>(i);
    ellipses += std::holds_alternative<Ellipsis>(i);
  }
  check(named <= x.dims(), "[index] {} indices for {}", named, x);
  check(ellipses <= 1, "[index] {} ellipses for {}; one is enough", ellipses, x);
  DistributedTensor y = x;
  for (const Index& i : indices) {
    if (const auto* at = std::get_if<int64_t>(&i))
      y = select(y, d, *at);
    else if (const auto* s = std::get_if<Slice>(&i))
      y = slice(y, d++, s->start, s->end, s->step);
    else if (std::holds_alternative<NewAxis>(i))
      y = unsqueeze(y, d++);
    else
      d += x.dims() - named;
  }
  return y;
}

}  // namespace dtensor::ops
