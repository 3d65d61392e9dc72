#include "ops/shape/rearrange.h"

#include <fmt/format.h>
#include <numeric>

#include "ops/cards.h"
#include "ops/family/dims.h"
#include "ops/family/samples.h"
#include "ops/functions.h"
#include "ops/shape/reading.h"

namespace dtensor::ops {
namespace {

// Dimension d of the output, where it is read anew: 'a' + d, sharded freely. That of the input is whole: 'i' + d.
Rule reading_rule(const Shape& x, const Shape& y, const std::vector<bool>& anew) {
  Rule r;
  int ahead = y.dims() - x.dims();
  for (int d = 0; d < y.dims(); ++d) {
    if (anew[size_t(d)]) r.sizes.emplace_back(char('a' + d), y[d]);
    if (d >= ahead) r.text += anew[size_t(d)] ? fmt::format("[{}]", char('i' + d)) : std::string(1, char('a' + d));
  }
  r.text += "->" + std::string("abcdefgh", size_t(y.dims()));
  return r;
}

// y[i, j, ...] = x[dim[0].at(i), dim[1].at(j), ...]
void read_anew(const Context& c, const Tensor& x, const Tensor& y, const std::vector<Reading>& dim) {
  std::vector<std::vector<int64_t>> offset(size_t(y.dims()));  // in x, for each index of a dimension
  for (int d = 0; d < y.dims(); ++d)
    for (int64_t i = 0; i < y.size(d); ++i) offset[size_t(d)].push_back(dim[size_t(d)].at(i) * dim[size_t(d)].stride);
  int last = y.dims() - 1;
  int64_t width = last < 0 ? 1 : y.size(last);
  for_all_types(c, y.dtype(), [&]<class T>() {
    int64_t grain = std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(width, 1));
    c.pool.parallel_for(rows_of(y), grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const T* source = x.data<T>();
        int64_t rest = row;
        for (int d = last - 1; d >= 0; rest /= y.size(d--)) source += offset[size_t(d)][size_t(rest % y.size(d))];
        T* to = y.data<T>() + row * width;
        for (int64_t i = 0; i < width; ++i) to[i] = source[last < 0 ? 0 : offset[size_t(last)][size_t(i)]];
      }
    });
  });
}

std::vector<bool> repeated(const Shape& x, const Dims& repeats) {
  std::vector<bool> anew;
  for (size_t d = 0; d < repeats.size(); ++d) anew.push_back(repeats[d] != 1 || d + size_t(x.dims()) < repeats.size());
  return anew;
}
Rule repeat_rule(std::span<const Shape* const> in, const Attributes& a) {
  const Dims& repeats = a.as<Repeat>().repeats;
  Shape to = repeats;
  for (int d = 0; d < in[0]->dims(); ++d) to[to.dims() - in[0]->dims() + d] *= (*in[0])[d];
  return reading_rule(*in[0], to, repeated(*in[0], repeats));
}
void repeat_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  read_anew(c, in[0], out[0], repeat_readings(c, in[0], out[0]));
}
// Sums over the new dimensions, then over the repeats of each dimension.
void repeat_gradient(Gradient& g) {
  const Dims& repeats = g.attributes().as<Repeat>().repeats;
  const Shape& x = g.input_spec(0).shape;
  size_t ahead = repeats.size() - size_t(x.dims());
  DistributedTensor d = g.of_output();
  if (ahead) {
    Dims front = Dims::filled(int(ahead), 0);
    std::iota(front.begin(), front.end(), 0);
    d = sum(d, front);
  }
  for (int k = 0; k < x.dims(); ++k) {
    if (repeats[ahead + size_t(k)] == 1) continue;
    Shape apart = d.shape();
    apart[k] = x[k];
    apart.insert(k, repeats[ahead + size_t(k)]);
    d = sum(reshape(d, apart), {k});
  }
  g.set(0, d);
}

std::vector<bool> among(const Shape& x, const Dims& dims) {
  std::vector<bool> anew(size_t(x.dims()));
  for (int64_t d : dims) anew[size_t(d)] = true;
  return anew;
}
Rule turned_rule(std::span<const Shape* const> in, const Attributes& a) {
  return reading_rule(*in[0], *in[0], among(*in[0], dims_of(a)));
}
void flip_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  read_anew(c, in[0], out[0], flip_readings(c, in[0], out[0]));
}
void flip_gradient(Gradient& g) { g.set(0, flip(g.of_output(), dims_of(g.attributes()))); }

void roll_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  read_anew(c, in[0], out[0], roll_readings(c, in[0], out[0]));
}
void roll_gradient(Gradient& g) {
  Roll back = g.attributes().as<Roll>();
  for (int64_t& s : back.shifts) s = -s;
  g.set(0, call(roll_op, {&g.of_output()}, back));
}

// Of each row the columns before a cut (tril) or from it on (triu).
template <bool lower>
void triangle_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Range rows = c.range('r'), columns = c.range('c');
  int64_t diagonal = clamped_diagonal(c);
  int64_t n = out[0].shape().back(), height = out[0].size(out[0].dims() - 2);
  for_all_types(c, out[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(rows_of(out[0]), std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(n, 1)),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t r = b; r < e; ++r) {
                            int64_t first = rows.begin + r % height + diagonal + lower;  // column of the cut
                            int64_t cut = std::clamp<int64_t>(first - columns.begin, 0, n);
                            int64_t from = lower ? 0 : cut, to = lower ? cut : n;
                            std::fill(y + r * n, y + (r + 1) * n, T(0));
                            std::copy(x + r * n + from, x + r * n + to, y + r * n + from);
                          }
                        });
  });
}
void tril_gradient(Gradient& g) { g.set(0, tril(g.of_output(), g.attributes().as<Diagonal>().diagonal)); }
void triu_gradient(Gradient& g) { g.set(0, triu(g.of_output(), g.attributes().as<Diagonal>().diagonal)); }

const std::vector<Sample> triangles = {
    {{{5, 5}}, Diagonal{0}}, {{{4, 7}}, Diagonal{2}},      {{{2, 6, 4}}, Diagonal{-1}},   {{{3, 3}}, Diagonal{-2}},
    {{{0, 3}}, Diagonal{0}}, {{ids({4, 5})}, Diagonal{1}}, {{flags({4, 5})}, Diagonal{0}}};

// y has `ahead` dimensions more than x.
std::vector<Reading> readings(const Context& c, const Tensor& x, const Tensor& y, const std::vector<bool>& anew) {
  std::vector<Reading> list(size_t(y.dims()));
  for (int d = 0, ahead = y.dims() - x.dims(); d < y.dims(); ++d) {
    if (d < ahead) continue;
    Reading& r = list[size_t(d)];
    r.stride = x.strides()[d - ahead], r.size = x.size(d - ahead);
    if (anew[size_t(d)]) r.first = c.range(char('a' + d)).begin;
  }
  return list;
}
// Of dimensions that keep their size.
void check_whole(const Context& c, const Tensor& x, const std::vector<bool>& anew) {
  for (int d = 0; d < x.dims(); ++d)
    check(!anew[size_t(d)] || x.size(d) == c.size(char('a' + d)), "[{}] dimension {} of the input must be whole", c.op,
          d);
}

}  // namespace

std::vector<Reading> repeat_readings(const Context& c, const Tensor& x, const Tensor& y) {
  return readings(c, x, y, repeated(x.shape(), c.attributes.as<Repeat>().repeats));
}
std::vector<Reading> flip_readings(const Context& c, const Tensor& x, const Tensor& y) {
  const Dims& dims = dims_of(c.attributes);
  check_whole(c, x, among(x.shape(), dims));
  std::vector<Reading> turned = readings(c, x, y, among(x.shape(), dims));
  for (int64_t d : dims) turned[size_t(d)].backwards = true;
  return turned;
}
std::vector<Reading> roll_readings(const Context& c, const Tensor& x, const Tensor& y) {
  const Dims &dims = dims_of(c.attributes), &shifts = c.attributes.as<Roll>().shifts;
  check_whole(c, x, among(x.shape(), dims));
  std::vector<Reading> rolled = readings(c, x, y, among(x.shape(), dims));
  for (size_t k = 0; k < dims.size(); ++k) {
    Reading& r = rolled[size_t(dims[k])];
    if (r.size) r.first = (r.first - shifts[k] % r.size + r.size) % r.size;
  }
  return rolled;
}
int64_t clamped_diagonal(const Context& c) {
  return std::clamp(c.attributes.as<Diagonal>().diagonal, -c.size('r') - 1, c.size('c') + 1);
}

const Op repeat_op = {.name = "repeat",
                      .functions = {function<repeat>("repeat(x, repeats=)", "x behind itself along each dimension")},
                      .rule = repeat_rule,
                      .passes = {moves({0})},
                      .strided = true,
                      .cpu = repeat_kernel,
                      .gradient = repeat_gradient,
                      .sample = {{{{4, 3}}, Repeat{{1, 2}}},
                                 {{{4, 3}}, Repeat{{2, 3, 1}}},
                                 {{{5}}, Repeat{{1, 2}}},
                                 {{{}}, Repeat{{3}}},
                                 {{{4, 3}}, Repeat{{0, 1}}},
                                 {{ids({2, 3})}, Repeat{{2, 2}}}}};
const Op flip_op = {
    .name = "flip",
    .functions = {function<flip>("flip(x, dims=)", "dimensions from back to front")},
    .rule = turned_rule,
    .passes = {moves({0})},
    .strided = true,
    .cpu = flip_kernel,
    .gradient = flip_gradient,
    .sample = {{{{4, 5}}, Over{{1}}}, {{{4, 5, 3}}, Over{{0, 2}}}, {{{}}, Over{{}}}, {{flags({4, 5})}, Over{{0}}}}};
const Op roll_op = {
    .name = "roll",
    .functions = {function("roll(x, shifts=, dims=flattened)", "the elements moved along dimensions, round the end",
                           [](Arguments& a) -> List {
                             return {roll(a.tensor(0), a.list("shifts"), a.list("dims", std::vector<int64_t>()))};
                           })},
    .rule = turned_rule,
    .passes = {moves({0})},
    .strided = true,
    .cpu = roll_kernel,
    .gradient = roll_gradient,
    .sample = {
        {{{4, 5}}, Roll{{{1}}, {2}}}, {{{4, 5, 3}}, Roll{{{0, 2}}, {-1, 7}}}, {{ids({4, 5})}, Roll{{{0}}, {-9}}}}};
const Op tril_op = {.name = "tril",
                    .functions = {function<tril>("tril(x, diagonal=0)", "the lower triangle, zeros elsewhere")},
                    .rule = "...rc->...rc",
                    .passes = {moves({0})},
                    .cpu = triangle_kernel<true>,
                    .gradient = tril_gradient,
                    .sample = triangles};
const Op triu_op = {.name = "triu",
                    .functions = {function<triu>("triu(x, diagonal=0)", "the upper triangle, zeros elsewhere")},
                    .rule = "...rc->...rc",
                    .passes = {moves({0})},
                    .cpu = triangle_kernel<false>,
                    .gradient = triu_gradient,
                    .sample = triangles};

namespace {
constexpr const Op* rearrange_ops[] = {&repeat_op, &flip_op, &roll_op, &tril_op, &triu_op};
}  // namespace
const Cards rearrange_cards = rearrange_ops;

DistributedTensor repeat(const DistributedTensor& x, const std::vector<int64_t>& repeats) {
  check_defined("repeat", x);
  bool fits = repeats.size() >= size_t(x.dims()) && repeats.size() <= size_t(max_dims) &&
              std::all_of(repeats.begin(), repeats.end(), [](int64_t n) { return n >= 0; });
  check(fits, "[repeat] repeats {} for {}: one for each dimension, none negative, at most {}", fmt::join(repeats, ","),
        x, max_dims);
  for (int d = 0; d < x.dims(); ++d)
    if (int64_t size; __builtin_mul_overflow(x.size(d), repeats[repeats.size() - size_t(x.dims() - d)], &size))
      fail("[repeat] repeats {} make dimension {} of {} longer than can be counted", fmt::join(repeats, ","), d, x);
  return call(repeat_op, {&x}, Repeat{repeats});
}

DistributedTensor flip(const DistributedTensor& x, const Dims& dims) {
  check_defined("flip", x);
  Dims turned = dims.empty() ? dims : normalized_dims("flip", dims, x.dims());
  return turned.empty() ? x : call(flip_op, {&x}, Over{turned});
}
DistributedTensor roll(const DistributedTensor& x, const std::vector<int64_t>& shifts,
                       const std::vector<int64_t>& dims) {
  check_defined("roll", x);
  if (dims.empty() && shifts.size() == 1) return reshape(roll(flatten(x), shifts, {0}), x.shape());
  check(dims.size() == shifts.size(), "[roll] {} shifts and {} dims: one shift for each dimension", shifts.size(),
        dims.size());
  Dims order, sorted, total;  // a dimension may be named again
  for (int64_t d : dims) order.push_back(normalize_dim("roll", d, x.dims()));
  for (int64_t d = 0; d < x.dims(); ++d) {
    int64_t sum = 0, named = 0;
    for (size_t k = 0; k < order.size(); ++k)
      if (order[k] == d) sum += shifts[k] % std::max<int64_t>(x.size(int(d)), 1), ++named;
    if (named) sorted.push_back(d), total.push_back(sum);
  }
  return call(roll_op, {&x}, Roll{{sorted}, total});
}
DistributedTensor tril(const DistributedTensor& x, int64_t diagonal) { return call(tril_op, {&x}, Diagonal{diagonal}); }
DistributedTensor triu(const DistributedTensor& x, int64_t diagonal) { return call(triu_op, {&x}, Diagonal{diagonal}); }

}  // namespace dtensor::ops
