#include "ops/family/dims.h"

#include <fmt/format.h>
#include <numeric>

#include "dtensor/redistribute.h"
#include "ops/functions.h"

namespace dtensor::ops {

Dims normalized_dims(std::string_view who, const Dims& dims, int count) {
  Dims out;
  for (int64_t d : dims) out.push_back(normalize_dim(std::string(who).c_str(), d, std::max(count, 1)));
  std::sort(out.begin(), out.end());
  check(std::adjacent_find(out.begin(), out.end()) == out.end(), "[{}] a dimension is named twice in {}", who,
        fmt::join(dims, ","));
  if (!dims.empty() && count > 0) return out;
  Dims all = Dims::filled(count, 0);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::string factors(int count, const Dims& whole) {
  std::string text;
  for (int d = 0; d < count; ++d) {
    char name = char('a' + d);
    text += std::binary_search(whole.begin(), whole.end(), d) ? fmt::format("[{}]", name) : std::string(1, name);
  }
  return text;
}
std::string other_factors(int count, const Dims& dims) {
  std::string text;
  for (int d = 0; d < count; ++d)
    if (!std::binary_search(dims.begin(), dims.end(), d)) text += char('a' + d);
  return text;
}
std::string factors_in(const Dims& dims) {
  std::string text;
  for (int64_t d : dims) text += char('a' + d);
  return text;
}

Rule with_slices_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string kept = other_factors(in[0]->dims(), dims_of(a));
  return {factors(in[0]->dims()) + "," + kept + "->" + kept};
}

Rule onto_slices_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[1]->dims()), kept = other_factors(in[1]->dims(), dims_of(a)), text = kept + "," + all;
  for (size_t i = 2; i < in.size(); ++i) text += "," + kept;
  return {text + "->" + all};
}

Shape dropped_shape(const Shape& shape, const Dims& dims) {
  Shape s;
  for (int d = 0; d < shape.dims(); ++d)
    if (!std::binary_search(dims.begin(), dims.end(), d)) s.push_back(shape[d]);
  return s;
}
Shape kept_shape(const Shape& shape, const Dims& dims) {
  Shape s = shape;
  for (int64_t d : dims) s[int(d)] = 1;
  return s;
}
int64_t slice_size(const Shape& shape, const Dims& dims) {
  int64_t n = 1;
  for (int64_t d : dims) n *= shape[int(d)];
  return n;
}

bool sharded_along(const DistributedTensor& x, const Dims& dims) {
  return std::any_of(dims.begin(), dims.end(), [&](int64_t d) { return x.layout().split[size_t(d)].count > 0; });
}

std::vector<DistributedTensor> reduced(std::vector<DistributedTensor> list) {
  std::vector<DistributedTensor> partial;
  std::vector<Layout> to;
  for (const DistributedTensor& x : list) {
    if (!x.layout().partial) continue;
    partial.push_back(x);
    to.push_back(x.layout());
    to.back().partial = 0, to.back().reduce = Reduce::sum;
  }
  partial = redistribute(partial, to);
  size_t next = 0;
  for (DistributedTensor& x : list)
    if (x.layout().partial) x = partial[next++];
  return list;
}
DistributedTensor reduced(const DistributedTensor& x) { return reduced(std::vector{x})[0]; }

DistributedTensor exact(const DistributedTensor& x) { return cast(x, statistics_type(x.dtype())); }

DType rows_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, unsigned statistics,
                unsigned indices) {
  std::vector<const TensorSpec*> rows(in.begin(), in.end());
  for (size_t i = 0; i < in.size(); ++i)
    if ((statistics | indices) >> i & 1) rows[i] = nullptr;
  DType t = same_types(op, rows, a, 0);
  check(is_floating(t), "[{}] element type {} of {}: use cast() to a floating type", op, name(t),
        to_string((*std::find_if(in.begin(), in.end(), [](auto* x) { return x; }))->shape));
  for (size_t i = 0; i < in.size(); ++i) {
    if (!in[i] || rows[i]) continue;
    DType wanted = indices >> i & 1 ? DType::i64 : statistics_type(t);
    check(in[i]->dtype == wanted, "[{}] operand {} is {}{}, not {}: use cast()", op, i, name(in[i]->dtype),
          in[i]->shape, name(wanted));
  }
  return t;
}

std::vector<int> dims_last(int count, const Dims& dims) {
  std::vector<int> order;
  for (int d = 0; d < count; ++d)
    if (!std::binary_search(dims.begin(), dims.end(), d)) order.push_back(d);
  order.insert(order.end(), dims.begin(), dims.end());
  return order;
}

Slices slices_of(const Tensor& x, const Dims& dims) {
  int64_t n = slice_size(x.shape(), dims), count = numel(dropped_shape(x.shape(), dims));
  return {x.permute(dims_last(x.dims(), dims)).contiguous(), count, n};
}

}  // namespace dtensor::ops
