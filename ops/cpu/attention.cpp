#include "ops/cpu/attention.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "ops/cpu/gemm.h"
#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/vector-inl.h"

#ifndef DTENSOR_CPU_ATTENTION_ONCE
#define DTENSOR_CPU_ATTENTION_ONCE
namespace dtensor::cpu {
/// Scores of `rows` query rows and one block of keys, key_block apart. Row i sees the first
/// min(first_visible + i*(causal ? 1 : 0), keys) of them.
struct Tile {
  int64_t rows, keys, first_visible;
  bool causal;
  int64_t visible(int64_t i) const { return std::min(keys, causal ? first_visible + i : keys); }
};

template <class T>
struct AttentionKernels {
  /// scores -> exp(scale*scores - max) with the running maximum; rescales `sum` and the rows of `out` when that grows.
  void (*softmax)(const Tile&, double scale, T* scores, T* max, T* sum, int64_t head_dim, T* out, int64_t out_stride);
  /// out /= sum; sum becomes lse.
  void (*finish)(int64_t rows, int64_t head_dim, const T* max, T* sum, T* out, int64_t out_stride);
  /// delta[i] = sum(dout * out).
  void (*delta)(int64_t rows, int64_t head_dim, const T* out, int64_t out_stride, const T* dout, int64_t dout_stride,
                T* delta);
  /// scores -> p = exp(scale*scores - lse), dp -> the gradient p * (dp - delta) * scale of the scores.
  void (*gradient)(const Tile&, double scale, const T* lse, const T* delta, T* scores, T* dp);
};
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {

/// v, with -inf in the lanes from `count` on.
template <class D>
HWY_INLINE Vec<D> hide(D d, Vec<D> v, int64_t count) {
  if (count >= lanes<D>) return v;
  const Vec<D> hidden = hn::Set(d, -std::numeric_limits<Lane<D>>::infinity());
  return hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(std::max<int64_t>(count, 0))), v, hidden);
}

template <class T>
void softmax_tile(const Tile& tile, double scale, T* scores, T* max, T* sum, int64_t head_dim, T* out,
                  int64_t out_stride) {
  const Tag<T> d;
  constexpr T inf = std::numeric_limits<T>::infinity();
  const auto factor = splat(d, scale);
  for (int64_t i = 0; i < tile.rows; i++, scores += key_block, out += out_stride) {
    const int64_t visible = tile.visible(i);
    auto best = hn::Set(d, -inf);
    for (int64_t j = 0; j < key_block; j += lanes<Tag<T>>)
      best = hn::Max(best, hide(d, hn::LoadU(d, scores + j), visible - j));
    const T largest = static_cast<T>(scale) * hn::GetLane(hn::MaxOfLanes(d, best));
    if (largest > max[i]) {
      const auto shrink = exp(d, hn::Set(d, max[i] - largest));
      max[i] = largest;
      sum[i] *= hn::GetLane(shrink);
      each(d, head_dim,
           [=](int64_t j, int64_t m) HWY_ATTR { store(d, hn::Mul(shrink, load(d, out + j, m)), out + j, m); });
    }
    const auto base = hn::Set(d, max[i] == -inf ? T(0) : max[i]);
    Vec<Tag<T>> part[16 / lanes<Tag<T>>];  // the 16 partial sums of a leaf, as in rows.h
    for (auto& s : part) s = hn::Zero(d);
    for (int64_t j = 0; j < key_block; j += lanes<Tag<T>>) {
      const auto p = exp(d, hn::MulSub(hide(d, hn::LoadU(d, scores + j), visible - j), factor, base));
      hn::StoreU(p, d, scores + j);
      auto& s = part[j % 16 / lanes<Tag<T>>];
      s = hn::Add(s, p);
    }
    sum[i] += add_partial_sums(d, part);
  }
}

template <class T>
void finish_rows(int64_t rows, int64_t head_dim, const T* max, T* sum, T* out, int64_t out_stride) {
  const Tag<T> d;
  for (int64_t i = 0; i < rows; i++, out += out_stride) {
    if (sum[i] == 0) continue;  // nothing seen: out is 0, and log(0) = -inf
    const auto scale = hn::Set(d, T(1) / sum[i]);
    each(d, head_dim,
         [=](int64_t j, int64_t m) HWY_ATTR { store(d, hn::Mul(scale, load(d, out + j, m)), out + j, m); });
  }
  each(d, rows, [=](int64_t i, int64_t m) HWY_ATTR {
    store(d, hn::Add(load(d, max + i, m), log(d, load(d, sum + i, m))), sum + i, m);
  });
}

template <class T>
void delta_rows(int64_t rows, int64_t head_dim, const T* out, int64_t out_stride, const T* dout, int64_t dout_stride,
                T* delta) {
  const Tag<T> d;
  for (int64_t i = 0; i < rows; i++, out += out_stride, dout += dout_stride)
    delta[i] = sum_of(d, head_dim, leaves(head_dim), [=](int64_t j, int64_t m, auto s) HWY_ATTR {
      return hn::MulAdd(load(d, out + j, m), load(d, dout + j, m), s);
    });
}

template <class T>
void gradient_tile(const Tile& tile, double scale, const T* lse, const T* delta, T* scores, T* dp) {
  const Tag<T> d;
  constexpr T inf = std::numeric_limits<T>::infinity();
  const auto factor = splat(d, scale);
  for (int64_t i = 0; i < tile.rows; i++, scores += key_block, dp += key_block) {
    const auto base = hn::Set(d, lse[i] == -inf ? inf : lse[i]), mean = hn::Set(d, delta[i]);
    for (int64_t j = 0; j < key_block; j += lanes<Tag<T>>) {
      const auto p = exp(d, hn::MulSub(hide(d, hn::LoadU(d, scores + j), tile.visible(i) - j), factor, base));
      hn::StoreU(p, d, scores + j);
      hn::StoreU(hn::Mul(hn::Mul(p, hn::Sub(hn::LoadU(d, dp + j), mean)), factor), d, dp + j);
    }
  }
}

template <class T>
constexpr AttentionKernels<T> attention_kernels{softmax_tile<T>, finish_rows<T>, delta_rows<T>, gradient_tile<T>};
const AttentionKernels<float>& float_attention_kernels() { return attention_kernels<float>; }
const AttentionKernels<double>& double_attention_kernels() { return attention_kernels<double>; }

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(float_attention_kernels);
HWY_EXPORT(double_attention_kernels);

template <class T>
static const AttentionKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return HWY_DYNAMIC_DISPATCH(float_attention_kernels)();
  else
    return HWY_DYNAMIC_DISPATCH(double_attention_kernels)();
}

/// body(begin, end) for the pieces of n rows that meet at multiples of `block` of the global index begin + row.
template <class Body>
static void each_block(int64_t begin, int64_t n, int64_t block, Body body) {
  for (int64_t i = 0, end; i < n; i = end) {
    end = std::min(n, ((begin + i) / block + 1) * block - begin);
    body(i, end);
  }
}

/// What the keys [j, j_end) are: their positions and documents from the least to the greatest.
struct KeyBounds {
  int64_t earliest, latest, first_document = 0, last_document = 0;

  KeyBounds(const Attention& a, int64_t j, int64_t j_end) : earliest(a.key_position(j)), latest(earliest) {
    if (!a.key_positions)
      latest = a.key_position(j_end - 1);
    else
      for (int64_t i = j + 1; i < j_end; i++)
        earliest = std::min(earliest, a.key_positions[i]), latest = std::max(latest, a.key_positions[i]);
    if (!a.key_documents) return;
    const auto [low, high] = std::minmax_element(a.key_documents + j, a.key_documents + j_end);
    first_document = *low, last_document = *high;
  }
  /// Query row i may see one of them; it sees all of them.
  bool some_seen(const Attention& a, int64_t i) const {
    const int64_t p = a.query_position(i);
    if (a.causal && (p < earliest || (a.window && p - latest >= a.window))) return false;
    return !a.query_documents ||
           (a.query_document(i) >= std::max<int64_t>(first_document, 0) && a.query_document(i) <= last_document);
  }
  bool all_seen(const Attention& a, int64_t i) const {
    const int64_t p = a.query_position(i);
    if (a.causal && (p < latest || (a.window && p - earliest >= a.window))) return false;
    return !a.query_documents ||
           (a.query_document(i) == first_document && first_document == last_document && first_document >= 0);
  }
};

/// Whether what is hidden is more than the triangle that kernels know.
static bool hides_more(const Attention& a) { return (a.causal && (a.by_position() || a.window)) || a.query_documents; }

/// body(i, j, tile) for every block of keys and the rows [i, i + tile.rows) of a block of queries, from the first to
/// the last that may see some of it.
template <class Body>
static void each_tile(const Attention& a, int64_t first, int64_t last, Body body) {
  each_block(a.key_begin, a.keys, key_block, [&](int64_t j, int64_t j_end) {
    if (hides_more(a)) {
      const KeyBounds keys(a, j, j_end);
      int64_t i = first, end = last;
      while (i < end && !keys.some_seen(a, i)) i++;
      while (i < end && !keys.some_seen(a, end - 1)) end--;
      if (i < end) body(i, j, Tile{end - i, j_end - j, 0, false});
      return;
    }
    const int64_t diagonal = a.key_begin + j - a.query_begin;  // the row at the block's first key
    const int64_t i = a.causal ? std::max(first, diagonal) : first;
    if (i < last) body(i, j, Tile{last - i, j_end - j, i - diagonal + 1, a.causal});
  });
}

/// Products of query row i and key row j on become -inf where the query does not see the key.
template <class T>
static void hide_unseen(const Attention& a, const Tile& tile, int64_t i, int64_t j, T* products) {
  if (!hides_more(a)) return;
  const KeyBounds keys(a, j, j + tile.keys);
  for (int64_t r = 0; r < tile.rows; r++, products += key_block) {
    if (keys.all_seen(a, i + r)) continue;
    const int64_t query = a.query_position(i + r);
    const int64_t latest = a.causal ? query : std::numeric_limits<int64_t>::max();
    const int64_t earliest = a.causal && a.window ? query - a.window + 1 : std::numeric_limits<int64_t>::min();
    const int64_t document = a.query_documents ? a.query_document(i + r) : 0;
    for (int64_t c = 0; c < tile.keys; c++) {
      const int64_t key = a.key_position(j + c);
      const bool other = a.key_documents && (a.key_documents[j + c] != document || document < 0);
      if (key > latest || key < earliest || other) products[c] = -std::numeric_limits<T>::infinity();
    }
  }
}

/// scores -> scale * scores + bias, or -inf where not visible: for query row i and key row j on.
template <class T>
static void mask(const Tile& tile, double scale, const Scores<T>& more, int64_t i, int64_t j, T* scores) {
  constexpr T hidden = -std::numeric_limits<T>::infinity();
  const T factor = static_cast<T>(scale);
  for (int64_t r = 0; r < tile.rows; r++, scores += key_block) {
    const int64_t at = (i + r) * more.row_stride + j * more.key_stride;
    for (int64_t c = 0; c < tile.keys; c++) {
      const int64_t m = at + c * more.key_stride;
      if (more.bias)
        scores[c] = scores[c] * factor + more.bias[m];
      else
        scores[c] = more.visible[m] ? scores[c] * factor : hidden;
    }
  }
}

/// What the weights of query row i and key row j on are multiplied by.
template <class T>
static void keep_factors(const Attention& a, const Tile& tile, const Scores<T>& more, int64_t i, int64_t j, T* keep) {
  for (int64_t r = 0; r < tile.rows; r++, keep += key_block) {
    const int64_t row = more.drop_first + a.query_position(i + r) * more.drop_stride;
    if (!a.key_positions)
      more.drop.factors(row + a.key_position(j), tile.keys, keep);
    else
      for (int64_t c = 0; c < tile.keys; c++) more.drop.factors(row + a.key_position(j + c), 1, keep + c);
  }
}

template <class T>
static void multiply(const Tile& tile, const T* by, T* x) {
  for (int64_t r = 0; r < tile.rows; r++)
    for (int64_t c = 0; c < tile.keys; c++) x[r * key_block + c] *= by[r * key_block + c];
}

/// The gradient of the bias goes out, and becomes that of the product of queries and keys.
template <class T>
static void unmask(const Tile& tile, double scale, const Scores<T>& more, int64_t i, int64_t j, T* ds) {
  for (int64_t r = 0; r < tile.rows; r++, ds += key_block) {
    if (more.bias_gradient) std::copy_n(ds, tile.keys, more.bias_gradient + (i + r) * more.bias_gradient_stride + j);
    for (int64_t c = 0; c < tile.keys; c++) ds[c] *= static_cast<T>(scale);
  }
}

template <class T>
void attention(const Attention& a, const T* q, int64_t q_stride, const T* k, int64_t k_stride, const T* v,
               int64_t v_stride, T* out, int64_t out_stride, T* lse, Scratch& scratch,
               const std::type_identity_t<Scores<T>>& more) {
  const double scale = more.masked() ? 1 : a.scale;  // what is left to the softmax
  T* keep = more.drop.p > 0 ? scratch.get<T>(Slot::attention_keep, query_block * key_block) : nullptr;
  T* scores = scratch.get<T>(Slot::attention_scores, query_block * key_block);
  T* max = scratch.get<T>(Slot::attention_state, query_block);
  each_block(a.query_begin, a.queries, query_block, [&](int64_t first, int64_t last) {
    std::fill_n(max, last - first, -std::numeric_limits<T>::infinity());
    std::fill_n(lse + first, last - first, T(0));  // holds the running sum
    for (int64_t i = first; i < last; i++) std::fill_n(out + i * out_stride, a.head_dim, T(0));
    each_tile(a, first, last, [&](int64_t i, int64_t j, const Tile& tile) {
      T* o = out + i * out_stride;
      gemm(Form::NT, tile.rows, tile.keys, a.head_dim, q + i * q_stride, q_stride, k + j * k_stride, k_stride, scores,
           key_block, false, 0, scratch);
      hide_unseen(a, tile, i, j, scores);
      if (more.masked()) mask(tile, a.scale, more, i, j, scores);
      kernels<T>().softmax(tile, scale, scores, max + (i - first), lse + i, a.head_dim, o, out_stride);
      if (keep) keep_factors(a, tile, more, i, j, keep), multiply(tile, keep, scores);
      gemm(Form::NN, tile.rows, a.head_dim, tile.keys, scores, key_block, v + j * v_stride, v_stride, o, out_stride,
           true, 1, scratch);
    });
    kernels<T>().finish(last - first, a.head_dim, max, lse + first, out + first * out_stride, out_stride);
  });
}

template <class T>
void attention_backward(const Attention& a, const T* q, int64_t q_stride, const T* k, int64_t k_stride, const T* v,
                        int64_t v_stride, const T* out, int64_t out_stride, const T* dout, int64_t dout_stride,
                        const T* lse, T* dq, int64_t dq_stride, T* dk, int64_t dk_stride, T* dv, int64_t dv_stride,
                        Scratch& scratch, const std::type_identity_t<Scores<T>>& more) {
  const double scale = more.masked() ? 1 : a.scale;
  T* keep = more.drop.p > 0 ? scratch.get<T>(Slot::attention_keep, query_block * key_block) : nullptr;
  T* p = scratch.get<T>(Slot::attention_scores, query_block * key_block);
  T* ds = scratch.get<T>(Slot::attention_gradients, query_block * key_block);
  T* delta = scratch.get<T>(Slot::attention_state, query_block);
  each_block(a.query_begin, a.queries, query_block, [&](int64_t first, int64_t last) {
    kernels<T>().delta(last - first, a.head_dim, out + first * out_stride, out_stride, dout + first * dout_stride,
                       dout_stride, delta);
    for (int64_t i = first; i < last; i++) std::fill_n(dq + i * dq_stride, a.head_dim, T(0));
    each_tile(a, first, last, [&](int64_t i, int64_t j, const Tile& tile) {
      const int64_t m = tile.rows, n = tile.keys, d = a.head_dim;
      const T *qi = q + i * q_stride, *gi = dout + i * dout_stride, *kj = k + j * k_stride, *vj = v + j * v_stride;
      gemm(Form::NT, m, n, d, qi, q_stride, kj, k_stride, p, key_block, false, 0, scratch);
      gemm(Form::NT, m, n, d, gi, dout_stride, vj, v_stride, ds, key_block, false, 0, scratch);
      hide_unseen(a, tile, i, j, p);
      if (more.masked()) mask(tile, a.scale, more, i, j, p);
      if (keep) keep_factors(a, tile, more, i, j, keep), multiply(tile, keep, ds);
      kernels<T>().gradient(tile, scale, lse + i, delta + (i - first), p, ds);
      if (more.masked()) unmask(tile, a.scale, more, i, j, ds);
      if (keep) multiply(tile, keep, p);
      gemm(Form::TN, n, d, m, p, key_block, gi, dout_stride, dv + j * dv_stride, dv_stride, true, 0, scratch);
      gemm(Form::TN, n, d, m, ds, key_block, qi, q_stride, dk + j * dk_stride, dk_stride, true, 0, scratch);
      gemm(Form::NN, m, d, n, ds, key_block, kj, k_stride, dq + i * dq_stride, dq_stride, true, 1, scratch);
    });
  });
}

#define INSTANTIATE(T)                                                                                                \
  template void attention(const Attention&, const T*, int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t, T*, \
                          Scratch&, const Scores<T>&);                                                                \
  template void attention_backward(const Attention&, const T*, int64_t, const T*, int64_t, const T*, int64_t,         \
                                   const T*, int64_t, const T*, int64_t, const T*, T*, int64_t, T*, int64_t, T*,      \
                                   int64_t, Scratch&, const Scores<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
#endif
