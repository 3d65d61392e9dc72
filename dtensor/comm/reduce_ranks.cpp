#include "dtensor/comm/reduce_ranks.h"

#include "dtensor/cuda/local.h"

namespace dtensor {
namespace {

// NaN wins, as in a sum. Integers wrap around, as unsigned ones do by definition.
template <class T>
T combine(Reduce r, T a, T b) {
  using Wrapping = std::conditional_t<std::is_same_v<T, int64_t>, uint64_t, T>;
  switch (r) {
    case Reduce::product:
      return T(Wrapping(a) * Wrapping(b));
    case Reduce::min:
      return b < a || b != b ? b : a;
    case Reduce::max:
      return a < b || b != b ? b : a;
    default:
      return T(Wrapping(a) + Wrapping(b));
  }
}

// out[0..n) = the reduction of in[first..first+ranks)[at..at+n): law 6, the halves of n ranks are the first n/2 and the
// rest.
template <class T>
void tree(const std::vector<const T*>& in, size_t first, size_t ranks, int64_t at, int64_t n, Reduce r, T* out) {
  constexpr int64_t block = 512;
  if (ranks == 1) {
    std::copy_n(in[first] + at, n, out);
    return;
  }
  size_t half = ranks / 2;
  for (int64_t i = 0; i < n; i += block) {
    int64_t m = std::min(block, n - i);
    T left[block], right[block];
    const T *a = in[first] + at + i, *b = in[first + half] + at + i;
    if (half > 1) tree(in, first, half, at + i, m, r, left), a = left;
    if (ranks - half > 1) tree(in, first + half, ranks - half, at + i, m, r, right), b = right;
    for (int64_t k = 0; k < m; ++k) out[i + k] = combine(r, a[k], b[k]);
  }
}

template <class T>
void reduce_on_host(std::span<const Tensor* const> in, int64_t at, int64_t n, Reduce r, std::byte* out) {
  std::vector<const T*> typed;
  for (const Tensor* t : in) typed.push_back(reinterpret_cast<const T*>(t->bytes_data()));
  T* result = reinterpret_cast<T*>(out);
  tree(typed, 0, typed.size(), at, n, r, result);
  if (r == Reduce::avg)
    for (int64_t i = 0; i < n; ++i) result[i] = T(result[i] / T(in.size()));
}

// Sums of bf16 are taken in float32 and rounded once.
void reduce_bf16_on_host(std::span<const Tensor* const> in, int64_t at, int64_t n, Reduce r, std::byte* out) {
  std::vector<std::vector<float>> wide;
  std::vector<const float*> typed;
  for (const Tensor* t : in) {
    const auto* from = reinterpret_cast<const BFloat16*>(t->bytes_data()) + at;
    typed.push_back(wide.emplace_back(from, from + n).data());
  }
  std::vector<float> sum(static_cast<size_t>(n));
  tree(typed, 0, typed.size(), 0, n, r, sum.data());
  float scale = r == Reduce::avg ? float(in.size()) : 1;
  auto* result = reinterpret_cast<BFloat16*>(out);
  for (int64_t i = 0; i < n; ++i) result[i] = BFloat16(sum[size_t(i)] / scale);
}

// Of `contributions` in all. A launch takes a few tensors, so the halves of more are reduced first.
void reduce_on_device(const Tensor& like, std::span<const void* const> in, int64_t n, Reduce r, int64_t contributions,
                      void* out) {
  cuda::StreamHandle stream = like.allocator()->stream();
  if (in.size() <= size_t(cuda::max_reduced))
    return cuda::reduce_tree(stream, like.dtype(), r, int(in.size()), in.data(), n, out, contributions);
  Reduce part = r == Reduce::avg ? Reduce::sum : r;
  Tensor left(like.allocator(), like.dtype(), {n}), right(like.allocator(), like.dtype(), {n});
  reduce_on_device(like, in.first(in.size() / 2), n, part, contributions, left.bytes_data());
  reduce_on_device(like, in.subspan(in.size() / 2), n, part, contributions, right.bytes_data());
  const void* halves[] = {left.bytes_data(), right.bytes_data()};
  cuda::reduce_tree(stream, like.dtype(), r, 2, halves, n, out, contributions);
}

}  // namespace

void reduce_ranks(std::span<const Tensor* const> ranks, int64_t at, int64_t n, Reduce reduce, const Tensor& out,
                  int64_t out_at) {
  const int64_t item = itemsize(out.dtype());
  std::byte* to = out.bytes_data() + out_at * item;
  if (out.device() == Device::cuda) {
    std::vector<const void*> in;
    for (const Tensor* t : ranks) in.push_back(t->bytes_data() + at * item);
    return reduce_on_device(out, in, n, reduce, int64_t(in.size()), to);
  }
  switch (out.dtype()) {
    case DType::f32:
      return reduce_on_host<float>(ranks, at, n, reduce, to);
    case DType::f64:
      return reduce_on_host<double>(ranks, at, n, reduce, to);
    case DType::i64:
      return reduce_on_host<int64_t>(ranks, at, n, reduce, to);
    case DType::boolean:
      return reduce_on_host<uint8_t>(ranks, at, n, reduce == Reduce::sum ? Reduce::max : reduce, to);
    case DType::bf16:
      return reduce_bf16_on_host(ranks, at, n, reduce, to);
  }
}

}  // namespace dtensor
