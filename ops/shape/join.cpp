#include "ops/shape/join.h"

#include <fmt/format.h>
#include <numeric>
#include <set>

#include "ops/cards.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

using Sizes = std::vector<int64_t>;
constexpr size_t max_pieces = 64, max_sizes = 18;  // of one call: operands of a card; letters from 'i' to 'z'

int joined_dim(const Attributes& a) { return int(a.as<Pieces>().dim); }
const Sizes& sizes_of(const Attributes& a) { return a.as<Pieces>().sizes; }
int64_t total(const Sizes& sizes) { return std::accumulate(sizes.begin(), sizes.end(), int64_t(0)); }

// The pieces of dimension 'b': "a[i]c,a[j]c". Equal sizes share a letter: it is whole, so it stands for its size only.
Rule pieces_rule(int dims, const Attributes& a) {
  Rule r;
  for (int64_t size : sizes_of(a)) {
    auto known = std::find_if(r.sizes.begin(), r.sizes.end(), [&](const auto& s) { return s.second == size; });
    if (known == r.sizes.end()) known = r.sizes.insert(known, {char('i' + r.sizes.size()), size});
    std::string piece("abcdefgh", size_t(dims));
    piece.replace(size_t(joined_dim(a)), 1, fmt::format("[{}]", known->first));
    r.text += (r.text.empty() ? "" : ",") + piece;
  }
  return r;
}

// Operands may be absent, but not all of them: zeros stand in their place.
Rule cat_rule(std::span<const Shape* const> in, const Attributes& a) {
  int dims = 0;
  for (const Shape* s : in)
    if (s) dims = std::max(dims, s->dims());
  Rule r = pieces_rule(dims, a);
  r.text += "->" + std::string("abcdefgh", size_t(dims));
  r.sizes.emplace_back(char('a' + joined_dim(a)), total(sizes_of(a)));
  std::vector<int> all(in.size());
  std::iota(all.begin(), all.end(), 0);
  r.passes = {moves(all)};
  return r;
}

void copy_split(const Context& c, const Tensor& from, const Tensor& to) {
  if (to.device() == Device::cuda) return copy(from, to);
  int along = 0;  // the longest dimension, split over threads
  for (int d = 0; d < to.dims(); ++d)
    if (to.size(d) > to.size(along)) along = d;
  int64_t n = to.size(along), rest = to.numel() / std::max<int64_t>(n, 1);
  c.pool.parallel_for(
      n, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(rest, 1)),
      [&](int64_t b, int64_t e, int) { copy(from.narrow(along, b, e - b), to.narrow(along, b, e - b)); });
}

void cat_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int dim = joined_dim(c.attributes);
  const Sizes& sizes = sizes_of(c.attributes);
  Range here = c.range(char('a' + dim));
  if (std::any_of(in.begin(), in.end(), [](const Tensor& t) { return !t.defined(); })) fill(out[0], 0);
  int64_t at = 0;
  for (size_t i = 0; i < in.size(); at += sizes[i++]) {
    int64_t begin = std::max(at, here.begin), size = std::min(at + sizes[i], here.end) - begin;
    if (!in[i].defined() || size <= 0) continue;
    check(in[i].size(dim) == sizes[i], "[{}] operand {} has {} of {} along dimension {}; it must be whole", c.op, i,
          in[i].size(dim), sizes[i], dim);
    copy_split(c, in[i].narrow(dim, begin - at, size), out[0].narrow(dim, begin - here.begin, size));
  }
}
void cat_gradient(Gradient& g) {
  auto pieces = call_all(split_op, {&g.of_output()}, g.attributes());
  for (size_t i = 0; i < pieces.size(); ++i)
    if (g.needs(int(i))) g.set(int(i), pieces[i]);
}

Rule split_rule(std::span<const Shape* const> in, const Attributes& a) {
  int64_t n = (*in[0])[joined_dim(a)];
  check(total(sizes_of(a)) == n, "[split] sizes {} do not sum to {}, dimension {} of {}", fmt::join(sizes_of(a), ","),
        n, joined_dim(a), *in[0]);
  Rule r = pieces_rule(in[0]->dims(), a);
  std::string from("abcdefgh", size_t(in[0]->dims()));
  from.replace(size_t(joined_dim(a)), 1, fmt::format("[{}]", char('a' + joined_dim(a))));
  r.text = from + "->" + r.text;
  return r;
}
void split_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Sizes& sizes = sizes_of(c.attributes);
  int64_t at = 0;
  for (size_t i = 0; i < out.size(); at += sizes[i++]) out[i] = in[0].narrow(joined_dim(c.attributes), at, sizes[i]);
}
void split_gradient(Gradient& g) {
  std::vector<const DistributedTensor*> pieces;
  for (size_t i = 0; i < sizes_of(g.attributes()).size(); ++i) pieces.push_back(&g.of_output(int(i)));
  g.set(0, call_all(cat_op, pieces, g.attributes(), {g.wanted(0)})[0]);
}

// How many neighbouring pieces one call can take.
size_t pieces_at_once(const Sizes& sizes) {
  bool few = std::set<int64_t>(sizes.begin(), sizes.end()).size() <= max_sizes;
  return few ? max_pieces : max_sizes;
}

// Views of views where there are too many pieces; only the first call can have to gather.
void split_into(const DistributedTensor& x, std::span<const int64_t> sizes, int64_t dim,
                std::vector<DistributedTensor>& pieces) {
  Sizes parts(sizes.begin(), sizes.end());
  size_t each = 1, most = pieces_at_once(parts);
  if (sizes.size() > most) {
    each = (sizes.size() + max_sizes - 1) / max_sizes;
    parts.clear();
    for (size_t i = 0; i < sizes.size(); i += each) {
      auto group = sizes.subspan(i, std::min(each, sizes.size() - i));
      parts.push_back(total({group.begin(), group.end()}));
    }
  }
  std::vector<DistributedTensor> list = call_all(split_op, {&x}, Pieces{dim, parts});
  if (each == 1)
    pieces.insert(pieces.end(), list.begin(), list.end());
  else
    for (size_t i = 0; i < list.size(); ++i)
      split_into(list[i], sizes.subspan(i * each, std::min(each, sizes.size() - i * each)), dim, pieces);
}

}  // namespace

const Op cat_op = {
    .name = "cat",
    .functions = {function<cat>("cat(x..., dim=0)", "the tensors one behind another"),
                  function<stack>("stack(x..., dim=0)", "the tensors along a new dimension")},
    .rule = cat_rule,
    .optional = {any_input},
    .strided = true,
    .cpu = cat_kernel,
    .cuda = cat_kernel,
    .gradient = cat_gradient,
    .sample = {{{{2, 4}, {3, 4}}, Pieces{0, {2, 3}}},
               {{{4, 2}, {4, 1}, {4, 2}}, Pieces{1, {2, 1, 2}}},
               {{{4, 2}, absent, {4, 3}}, Pieces{1, {2, 2, 3}}},
               {{{3}, {0}, {2}}, Pieces{0, {3, 0, 2}}},
               {{{2, 5, 3}}, Pieces{1, {5}}},
               {{ids({2, 4}), ids({3, 4})}, Pieces{0, {2, 3}}},
               {{{SampleInput::Kind::boolean, {4, 2}}, {SampleInput::Kind::boolean, {4, 3}}}, Pieces{1, {2, 3}}}}};
const Op split_op = {
    .name = "split",
    .functions = {function("split(x, split_size= | split_sizes=, dim=0)", "pieces along dim; views",
                           [](Arguments& a) -> List {
                             return a.has("split_sizes")
                                        ? split(a.tensor(0), a.list("split_sizes"), a.integer("dim", 0))
                                        : split(a.tensor(0), a.integer("split_size"), a.integer("dim", 0));
                           }),
                  function<chunk>("chunk(x, chunks=, dim=0)", "at most that many pieces along dim; views")},
    .rule = split_rule,
    .passes = {moves({0})},
    .strided = true,
    .view = true,
    .cpu = split_kernel,
    .gradient = split_gradient,
    .sample = {{{{5, 4}}, Pieces{0, {2, 2, 1}}},
               {{{4, 5, 3}}, Pieces{1, {1, 4}}},
               {{{4, 5}}, Pieces{1, {0, 5}}},
               {{{3}}, Pieces{0, {3}}},
               {{ids({5, 3})}, Pieces{0, {4, 1}}}}};

namespace {
constexpr const Op* join_ops[] = {&cat_op, &split_op};
}  // namespace
const Cards join_cards = join_ops;

DistributedTensor cat(const std::vector<DistributedTensor>& tensors, int64_t dim) {
  for (size_t i = 0; i < tensors.size(); ++i) check_defined("cat", tensors[i], i);
  check(!tensors.empty(), "[cat] no tensors: at least one is needed");
  int d = normalize_dim("cat", dim, tensors[0].dims());
  if (tensors.size() == 1) return tensors[0];
  Sizes sizes;
  for (const DistributedTensor& t : tensors) {
    check(t.dims() == tensors[0].dims(), "[cat] {} and {}: all have as many dimensions", tensors[0], t);
    sizes.push_back(t.shape()[d]);
  }
  size_t at_once = pieces_at_once(sizes);
  std::vector<DistributedTensor> groups;
  std::vector<const DistributedTensor*> list;
  if (tensors.size() > at_once) {
    for (size_t i = 0; i < tensors.size(); i += at_once)
      groups.push_back(
          cat({tensors.begin() + int64_t(i), tensors.begin() + int64_t(std::min(i + at_once, tensors.size()))}, d));
    return cat(groups, d);
  }
  for (const DistributedTensor& t : tensors) list.push_back(&t);
  return call_all(cat_op, list, Pieces{d, sizes})[0];
}
DistributedTensor stack(const std::vector<DistributedTensor>& tensors, int64_t dim) {
  for (size_t i = 0; i < tensors.size(); ++i) check_defined("stack", tensors[i], i);
  check(!tensors.empty(), "[stack] no tensors: at least one is needed");
  int d = normalize_dim("stack", dim, tensors[0].dims() + 1);
  std::vector<DistributedTensor> list;
  for (const DistributedTensor& t : tensors) {
    check(t.shape() == tensors[0].shape(), "[stack] {} and {}: all have one shape", tensors[0], t);
    list.push_back(unsqueeze(t, d));
  }
  return cat(list, d);
}

std::vector<DistributedTensor> split(const DistributedTensor& x, const std::vector<int64_t>& sizes, int64_t dim) {
  check_defined("split", x);
  int d = normalize_dim("split", dim, x.dims());
  auto fits = [n = x.shape()[d]](int64_t size) { return size >= 0 && size <= n; };  // so that the sum does not overflow
  check(!sizes.empty() && std::all_of(sizes.begin(), sizes.end(), fits) && total(sizes) == x.shape()[d],
        "[split] sizes {} do not sum to {}, dimension {} of {}", fmt::join(sizes, ","), x.shape()[d], dim, x);
  if (sizes.size() == 1) return {x};
  std::vector<DistributedTensor> list;
  split_into(x, sizes, d, list);
  return list;
}
std::vector<DistributedTensor> split(const DistributedTensor& x, int64_t size, int64_t dim) {
  check_defined("split", x);
  int64_t n = x.shape()[normalize_dim("split", dim, x.dims())];
  check(size > 0 || (size == 0 && n == 0), "[split] pieces of {} along dimension {} of {}", size, dim, x);
  Sizes sizes(n ? size_t(largest_piece(n, std::min(size, n))) : 1, size);
  sizes.back() = n - size * int64_t(sizes.size() - 1);
  return split(x, sizes, dim);
}
std::vector<DistributedTensor> chunk(const DistributedTensor& x, int64_t chunks, int64_t dim) {
  check_defined("chunk", x);
  int64_t n = x.shape()[normalize_dim("chunk", dim, x.dims())];
  check(chunks > 0, "[chunk] {} into {} chunks: at least one is needed", x, chunks);
  return n ? split(x, largest_piece(n, std::min(chunks, n)), dim) : split(x, Sizes(size_t(chunks), 0), dim);
}

}  // namespace dtensor::ops
