#include "ops/shape/view.h"

#include <fmt/format.h>
#include <numeric>

#include "ops/cards.h"
#include "ops/family/dims.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// Names for the dimensions of both shapes. Where the strides of both, sorted, divide each other in turn, the shapes
// have common factors: every dimension is the product of those between its stride and its size times its stride.
class ViewRule {
 public:
  ViewRule(const Shape& from, const Shape& to) : from_(from), to_(to) {
    if (from == to) {
      for (int d = 0; d < from.dims(); ++d) text_[0] += next(), text_[1] += text_[0].back();
    } else if (common_factors()) {
      text_[0] = name(from, 0), text_[1] = name(to, 1);
      for (const One& o : ones_)  // a dimension of size 1 that goes: split, ranks without it would have nothing to show
        if (size_t at = text_[0].find(o.letter); text_[1].find(o.letter) == std::string::npos)
          text_[0].replace(at, 1, fmt::format("[{}]", o.letter));
    } else {  // nothing in common: whole on every rank
      for (int d = 0; d < from.dims(); ++d) text_[0] += fmt::format("[{}]", next());
      for (int d = 0; d < to.dims(); ++d) text_[1] += output_only(to[d]);
    }
  }

  Rule rule() const {
    Rule r{text_[0] + "->" + text_[1]};
    r.sizes = sizes_;
    return r;
  }

 private:
  char next() { return char('a' + count_++); }
  std::string output_only(int64_t size) {
    sizes_.emplace_back(next(), size);
    return fmt::format("[{}]", sizes_.back().first);
  }

  bool common_factors() {
    int64_t total = numel(from_);
    if (total == 0) return false;
    cuts_ = {1, total};
    for (const Shape* s : {&from_, &to_})
      for (int64_t n : contiguous_strides(*s)) cuts_.push_back(n);
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
    for (size_t i = 1; i < cuts_.size(); ++i)
      if (cuts_[i] % cuts_[i - 1]) return false;
    for (size_t i = 1; i < cuts_.size(); ++i) {
      letter_.push_back(next());
      sizes_.emplace_back(letter_.back(), cuts_[i] / cuts_[i - 1]);
    }
    return true;
  }

  // Dimensions of size 1 have no factor in common, unless both shapes have one in the same place: the same cut.
  std::string name(const Shape& s, int side) {
    std::string text;
    Shape strides = contiguous_strides(s);
    std::vector<std::pair<int64_t, int>> seen;  // per cut, the ones met
    for (int d = 0; d < s.dims(); ++d) {
      if (s[d] == 1) {
        int nth = 0;
        for (auto& [cut, n] : seen)
          if (cut == strides[d]) nth = ++n;
        if (nth == 0) seen.emplace_back(strides[d], 0);
        text += one(strides[d], nth, side);
        continue;
      }
      std::string factors;
      for (size_t i = cuts_.size() - 1; i > 0; --i)
        if (cuts_[i - 1] >= strides[d] && cuts_[i] <= strides[d] * s[d]) factors += letter_[i - 1];
      text += factors.size() == 1 ? factors : "(" + factors + ")";
    }
    return text;
  }

  std::string one(int64_t cut, int nth, int side) {
    if (side == 0) {
      ones_.push_back({cut, nth, next()});
      sizes_.emplace_back(ones_.back().letter, 1);
      return std::string(1, ones_.back().letter);
    }
    for (const One& o : ones_)
      if (o.cut == cut && o.nth == nth) return std::string(1, o.letter);
    return output_only(1);
  }

  struct One {
    int64_t cut;
    int nth;
    char letter;
  };
  const Shape &from_, &to_;
  std::string text_[2];
  int count_ = 0;
  std::vector<int64_t> cuts_;
  std::vector<char> letter_;  // of the factor between cut i and cut i + 1
  std::vector<One> ones_;
  std::vector<std::pair<char, int64_t>> sizes_;
};

void check_elements(const char* who, const Shape& from, const Shape& to) {
  check(numel(to) == numel(from), "[{}] {} elements of {} do not fit {}", who, numel(from), from, to);
}

Rule view_rule(std::span<const Shape* const> in, const Attributes& a) {
  Shape to = a.as<To>().shape;
  check_elements("view", *in[0], to);
  return ViewRule(*in[0], to).rule();
}

void view_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor y = in[0].view(out[0].shape());
  if (!y.defined())
    fail("[{}] the local part {} with strides {} has no view of shape {}: use reshape()", c.op, in[0].shape(),
         in[0].strides(), out[0].shape());
  out[0] = y;
}
void reshape_kernel(const Context&, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor y = in[0].view(out[0].shape());
  out[0] = y.defined() ? y : in[0].contiguous().view(out[0].shape());
}
void view_gradient(Gradient& g) { g.set(0, reshape(g.of_output(), g.input_spec(0).shape)); }

std::vector<int> order_of(const Attributes& a) {
  const Dims& dims = a.as<Over>().dims;
  return {dims.begin(), dims.end()};
}
Rule permute_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string from, to;
  for (int d = 0; d < in[0]->dims(); ++d) from += char('a' + d);
  for (int d : order_of(a)) to += char('a' + normalize_dim("permute", d, in[0]->dims()));
  check(std::is_permutation(from.begin(), from.end(), to.begin(), to.end()),
        "[permute] {} is no order of {} dimensions", fmt::join(order_of(a), ","), in[0]->dims());
  return {from + "->" + to};
}
void permute_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  std::vector<int> order = order_of(c.attributes);
  for (int& d : order) d = normalize_dim("permute", d, in[0].dims());
  out[0] = in[0].permute(order);
}
void permute_gradient(Gradient& g) {
  std::vector<int> order = order_of(g.attributes());
  Dims back = Dims::filled(int(order.size()), 0);
  for (size_t d = 0; d < order.size(); ++d) back[normalize_dim("permute", order[d], int(order.size()))] = int64_t(d);
  g.set(0, permute(g.of_output(), back));
}

Rule expand_rule(std::span<const Shape* const> in, const Attributes& a) {
  Shape to = a.as<To>().shape;
  int ahead = to.dims() - in[0]->dims();
  check(ahead >= 0, "[expand] {} has more dimensions than {}", *in[0], to);
  Rule r;
  std::string from, out;
  char next = 'a';
  for (int d = 0; d < to.dims(); ++d) {
    int64_t size = d < ahead ? 1 : (*in[0])[d - ahead];
    char c = next++;
    if (d >= ahead && size == to[d]) {
      from += c;
    } else {  // a new factor, on the output only
      check(size == 1, "[expand] dimension {} of {} is not 1 and differs from {}", d - ahead, *in[0], to);
      if (d >= ahead) from += fmt::format("[{}]", next++);
      r.sizes.emplace_back(c, to[d]);
    }
    out += c;
  }
  r.text = from + "->" + out;
  return r;
}
void expand_kernel(const Context&, std::span<const Tensor> in, std::span<Tensor> out) {
  out[0] = in[0].as_strided(out[0].shape(), broadcast_strides(in[0], out[0].shape()));
}
void expand_gradient(Gradient& g) { g.set(0, sum_to(g.of_output(), g.input_spec(0).shape)); }

// `sizes` with its -1, if any, replaced so that they multiply to n.
Shape complete(const char* who, const DistributedTensor& x, int64_t n, Shape sizes) {
  int64_t known = 1;
  int open = -1;
  for (int d = 0; d < sizes.dims(); ++d) {
    if (sizes[d] == -1 && open < 0)
      open = d;
    else if (sizes[d] < 0)
      fail("[{}] {} is no shape", who, sizes);
    else
      known *= sizes[d];
  }
  if (open >= 0) {
    check(known && n % known == 0, "[{}] {} does not divide into {}", who, x, sizes);
    sizes[open] = n / known;
  }
  return sizes;
}
Shape complete(const char* who, const DistributedTensor& x, const Shape& shape) {
  Shape to = complete(who, x, numel(x.shape()), shape);
  check_elements(who, x.shape(), to);
  return to;
}

// The same card under another name, for errors and logs.
Op named(Op op, std::string_view name, Function function) {
  op.name = name, op.functions = {function};
  return op;
}
DistributedTensor show(const Op& op, const DistributedTensor& x, const Shape& shape) {
  return x.shape() == shape ? x : call(op, {&x}, To{shape});
}

const std::vector<Sample> views = {
    {{{4, 12}}, To{{4, 4, 3}}}, {{{4, 4, 3}}, To{{4, 12}}},        {{{2, 3, 4}}, To{{6, 4}}}, {{{4, 6}}, To{{6, 4}}},
    {{{1, 8}}, To{{1, 2, 4}}},  {{{5, 1, 3}}, To{{5, 3}}},         {{{0, 3}}, To{{3, 0}}},    {{{}}, To{{1, 1}}},
    {{{1, 1}}, To{{}}},         {{{8, 1, 6}}, To{{2, 4, 1, 2, 3}}}};

}  // namespace

const Op view_op = {
    .name = "view",
    .functions = {function<view>("view(x, shape=)", "the same elements under another shape, without moving them")},
    .rule = view_rule,
    .passes = {moves({0})},
    .strided = true,
    .view = true,
    .stays = true,
    .cpu = view_kernel,
    .gradient = view_gradient,
    .sample = views};
const Op unflatten_op = named(view_op, "unflatten",
                              function<unflatten>("unflatten(x, dim=, sizes=)", "a dimension as several; a view")),
         squeeze_op = named(view_op, "squeeze",
                            function<squeeze>("squeeze(x, dim=all)", "without dimensions of size 1; a view")),
         unsqueeze_op = named(view_op, "unsqueeze",
                              function<unsqueeze>("unsqueeze(x, dim=)", "with a new dimension of size 1; a view"));
const Op reshape_op = {
    .name = "reshape",
    .functions = {function<reshape>("reshape(x, shape=)", "the same elements under another shape"),
                  function<flatten>("flatten(x, start_dim=0, end_dim=-1)", "some dimensions as one")},
    .rule = view_rule,
    .passes = {moves({0})},
    .strided = true,
    .view = true,
    .cpu = reshape_kernel,
    .gradient = view_gradient,
    .sample = views};
const Op permute_op = {
    .name = "permute",
    .functions = {function<permute>("permute(x, dims=)", "the dimensions in another order; a view"),
                  function<transpose>("transpose(x, dim0=, dim1=)", "two dimensions exchanged; a view")},
    .rule = permute_rule,
    .passes = {moves({0})},
    .strided = true,
    .view = true,
    .cpu = permute_kernel,
    .gradient = permute_gradient,
    .sample = {{{{4, 5, 3}}, Over{{2, 0, 1}}}, {{{0, 5}}, Over{{1, 0}}}}};
const Op expand_op = {.name = "expand",
                      .functions = {function<expand>("expand(x, shape=)", "dimensions of size 1 repeated; a view")},
                      .rule = expand_rule,
                      .passes = {moves({0})},
                      .strided = true,
                      .view = true,
                      .cpu = expand_kernel,
                      .gradient = expand_gradient,
                      .sample = {{{{5, 1}}, To{{5, 3}}},
                                 {{{3}}, To{{5, 3}}},
                                 {{{}}, To{{4}}},
                                 {{{2, 1, 5}}, To{{3, 2, 4, 5}}},
                                 {{{0, 1}}, To{{0, 3}}},
                                 {{{4, 1}}, To{{4, 0}}}}};

namespace {
constexpr const Op* view_ops[] = {&view_op,    &unflatten_op, &squeeze_op, &unsqueeze_op,
                                  &reshape_op, &permute_op,   &expand_op};
}  // namespace
const Cards view_cards = view_ops;

DistributedTensor view(const DistributedTensor& x, const Shape& shape) {
  check_defined("view", x);
  return call(view_op, {&x}, To{complete("view", x, shape)});
}
DistributedTensor reshape(const DistributedTensor& x, const Shape& shape) {
  check_defined("reshape", x);
  return show(reshape_op, x, complete("reshape", x, shape));
}
DistributedTensor flatten(const DistributedTensor& x, int64_t start_dim, int64_t end_dim) {
  check_defined("flatten", x);
  int dims = std::max(x.dims(), 1);  // without dimensions: as one of size 1
  int first = normalize_dim("flatten", start_dim, dims), last = normalize_dim("flatten", end_dim, dims);
  check(first <= last, "[flatten] start_dim {} lies behind end_dim {} in {}", start_dim, end_dim, x);
  const Shape& from = x.shape();
  Shape to(from.begin(), from.begin() + first);
  to.push_back(std::accumulate(from.begin() + first, from.begin() + std::min(last + 1, x.dims()), int64_t(1),
                               std::multiplies<>()));
  for (int d = last + 1; d < x.dims(); ++d) to.push_back(from[d]);
  return reshape(x, to);
}
DistributedTensor unflatten(const DistributedTensor& x, int64_t dim, const Shape& sizes) {
  check_defined("unflatten", x);
  int d = normalize_dim("unflatten", dim, x.dims());
  Shape parts = complete("unflatten", x, x.shape()[d], sizes);
  check(!sizes.empty() && numel(parts) == x.shape()[d],
        "[unflatten] sizes {} do not multiply to {}, dimension {} of {}", sizes, x.shape()[d], d, x);
  Shape to = x.shape();
  to.erase(d);
  for (int k = 0; k < parts.dims(); ++k) to.insert(d + k, parts[k]);
  return show(unflatten_op, x, to);
}
DistributedTensor squeeze(const DistributedTensor& x, const Dims& dims) {
  check_defined("squeeze", x);
  Dims gone = normalized_dims("squeeze", dims, x.dims());
  Shape to;
  for (int d = 0; d < x.dims(); ++d)
    if (x.shape()[d] != 1 || !std::binary_search(gone.begin(), gone.end(), d)) to.push_back(x.shape()[d]);
  return show(squeeze_op, x, to);
}
DistributedTensor unsqueeze(const DistributedTensor& x, int64_t dim) {
  check_defined("unsqueeze", x);
  Shape to = x.shape();
  to.insert(normalize_dim("unsqueeze", dim, x.dims() + 1), 1);
  return show(unsqueeze_op, x, to);
}
DistributedTensor permute(const DistributedTensor& x, const Dims& dims) { return call(permute_op, {&x}, Over{dims}); }
DistributedTensor transpose(const DistributedTensor& x, int64_t dim0, int64_t dim1) {
  check_defined("transpose", x);
  int dims = std::max(x.dims(), 1);  // without dimensions: as one of size 1
  Dims order = Dims::filled(dims, 0);
  std::iota(order.begin(), order.end(), 0);
  std::swap(order[normalize_dim("transpose", dim0, dims)], order[normalize_dim("transpose", dim1, dims)]);
  return permute(x, Dims(order.begin(), order.begin() + x.dims()));
}
DistributedTensor expand(const DistributedTensor& x, const Shape& shape) {
  check_defined("expand", x);
  Shape to = shape;
  int ahead = to.dims() - x.dims();
  for (int d = 0; d < to.dims(); ++d) {
    if (to[d] == -1 && d >= ahead) to[d] = x.shape()[d - ahead];
    check(to[d] >= 0, "[expand] {} is no shape for {}: -1 keeps the size of a dimension that is there", shape, x);
  }
  return show(expand_op, x, to);
}

}  // namespace dtensor::ops
