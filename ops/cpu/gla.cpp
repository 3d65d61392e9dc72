#include "ops/cpu/gla.h"

#include <algorithm>
#include <type_traits>

#include "ops/cpu/gemm.h"
#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/gla.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/vector-inl.h"

#ifndef DTENSOR_CPU_GLA_ONCE
#define DTENSOR_CPU_GLA_ONCE
namespace dtensor::cpu {
/// Exponents are sums of the gates between two rows, never differences of longer sums: one that is small is a sum of
/// small terms and exact, however large others are.
template <class T>
struct GlaKernels {
  /// y_i = factor * x_i * exp(the sum of the gates of rows [with_first ? 0 : 1, i]). Rows of n, those of y contiguous.
  void (*after)(int64_t rows, int64_t n, double factor, const T* x, int64_t x_stride, const T* g, int64_t g_stride,
                bool with_first, T* y);
  /// y_i = x_i * exp(the sum of the gates of rows (i, with_next ? rows : rows - 1]).
  void (*before)(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* g, int64_t g_stride, bool with_next,
                 T* y);
  /// y = exp(the sum of the gates of all rows).
  void (*kept)(int64_t rows, int64_t n, const T* g, int64_t g_stride, T* y);
  /// sum(x * y * kept(rows, g)) of n elements.
  T (*dot)(int64_t rows, int64_t n, const T* x, const T* y, const T* g, int64_t g_stride);
  /// y += factor * x * kept(rows, g) of n elements.
  void (*add)(int64_t rows, int64_t n, T factor, const T* x, const T* g, int64_t g_stride, T* y);
};
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {

template <class D>
HWY_INLINE Vec<D> gate_sum(D d, int64_t rows, const Lane<D>* g, int64_t stride, int64_t j, int64_t m) {
  Vec<D> sum = hn::Zero(d);
  for (int64_t i = 0; i < rows; i++) sum = hn::Add(sum, load(d, g + i * stride + j, m));
  return sum;
}

template <class T>
void gla_after(int64_t rows, int64_t n, double factor, const T* x, int64_t x_stride, const T* g, int64_t g_stride,
               bool with_first, T* y) {
  const Tag<T> d;
  const auto f = splat(d, factor);
  each(d, n, [=](int64_t j, int64_t m) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < rows; i++) {
      if (i > 0 || with_first) sum = hn::Add(sum, load(d, g + i * g_stride + j, m));
      store(d, hn::Mul(hn::Mul(f, load(d, x + i * x_stride + j, m)), exp(d, sum)), y + i * n + j, m);
    }
  });
}

template <class T>
void gla_before(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* g, int64_t g_stride, bool with_next,
                T* y) {
  const Tag<T> d;
  each(d, n, [=](int64_t j, int64_t m) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int64_t i = rows - 1; i >= 0; i--) {
      if (i + 1 < rows || with_next) sum = hn::Add(sum, load(d, g + (i + 1) * g_stride + j, m));
      store(d, hn::Mul(load(d, x + i * x_stride + j, m), exp(d, sum)), y + i * n + j, m);
    }
  });
}

template <class T>
void gla_kept(int64_t rows, int64_t n, const T* g, int64_t g_stride, T* y) {
  const Tag<T> d;
  each(d, n, [=](int64_t j, int64_t m) HWY_ATTR { store(d, exp(d, gate_sum(d, rows, g, g_stride, j, m)), y + j, m); });
}

template <class T>
T gla_dot(int64_t rows, int64_t n, const T* x, const T* y, const T* g, int64_t g_stride) {
  const Tag<T> d;
  return sum_of(d, n, leaves(n), [=](int64_t j, int64_t m, auto s) HWY_ATTR {
    const auto e = exp(d, gate_sum(d, rows, g, g_stride, j, m));
    return hn::MulAdd(hn::Mul(load(d, x + j, m), e), load(d, y + j, m), s);
  });
}

template <class T>
void gla_add(int64_t rows, int64_t n, T factor, const T* x, const T* g, int64_t g_stride, T* y) {
  const Tag<T> d;
  const auto f = hn::Set(d, factor);
  each(d, n, [=](int64_t j, int64_t m) HWY_ATTR {
    const auto e = exp(d, gate_sum(d, rows, g, g_stride, j, m));
    store(d, hn::MulAdd(hn::Mul(f, load(d, x + j, m)), e, load(d, y + j, m)), y + j, m);
  });
}

template <class T>
constexpr GlaKernels<T> gla_kernels{gla_after<T>, gla_before<T>, gla_kept<T>, gla_dot<T>, gla_add<T>};
const GlaKernels<float>& float_gla_kernels() { return gla_kernels<float>; }
const GlaKernels<double>& double_gla_kernels() { return gla_kernels<double>; }

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(float_gla_kernels);
HWY_EXPORT(double_gla_kernels);

namespace {

template <class T>
const GlaKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return HWY_DYNAMIC_DISPATCH(float_gla_kernels)();
  else
    return HWY_DYNAMIC_DISPATCH(double_gla_kernels)();
}

constexpr int64_t pair_rows = 4;  // blocks of so many rows are not halved: exp is taken of each pair and element

/// The chunk at hand, and room for what is made of it. Rows are as they were given.
template <class T>
struct Chunk {
  const GatedLinear& a;
  int64_t first = 0, rows = 0;
  const T *q = nullptr, *k = nullptr, *v = nullptr, *g = nullptr;
  T *left, *right, *product;  // [rows, keys] each: factors of products, and what comes of them
  T* kept;                    // [keys]: of the state, over the chunk
  T* weights;                 // [rows, gla_chunk]: the triangle, and zeros above
  Scratch& scratch;

  Chunk(const GatedLinear& shape, Scratch& s) : a(shape), scratch(s) {
    const int64_t n = gla_chunk * a.keys;
    left = s.get<T>(Slot::attention_keep, 3 * n + a.keys);
    right = left + n, product = right + n, kept = product + n;
    weights = s.get<T>(Slot::attention_scores, 2 * gla_chunk * gla_chunk);
  }
  T* weights_gradient() const { return weights + gla_chunk * gla_chunk; }
  int64_t row(int64_t i) const { return i * a.k_stride; }

  void load(int64_t begin, const T* all_q, const T* all_k, const T* all_v, const T* all_g) {
    first = begin, rows = std::min(gla_chunk, a.rows - begin);
    q = all_q ? all_q + row(begin) : nullptr, k = all_k + row(begin), g = all_g + row(begin);
    v = all_v + begin * a.v_stride;
    kernels<T>().kept(rows, a.keys, g, a.k_stride, kept);
  }

  void multiply(Form form, int64_t m, int64_t n, int64_t inner, const T* x, int64_t x_stride, const T* y,
                int64_t y_stride, T* z, int64_t z_stride, bool add) {
    gemm(form, m, n, inner, x, x_stride, y, y_stride, z, z_stride, add, 0, scratch);
  }
  /// The rows of x since the chunk began, and until it ends.
  void since_start(double factor, const T* x, int64_t stride, T* y) {
    kernels<T>().after(rows, a.keys, factor, x, stride, g, a.k_stride, true, y);
  }
  void until_end(const T* x, int64_t stride, T* y) {
    kernels<T>().before(rows, a.keys, x, stride, g, a.k_stride, false, y);
  }
  /// The rows [r, end) and [begin, r) of x as they meet at r.
  void since(int64_t r, int64_t end, double factor, const T* x, int64_t stride, T* y) {
    kernels<T>().after(end - r, a.keys, factor, x, stride, g + row(r), a.k_stride, false, y);
  }
  void until(int64_t begin, int64_t r, const T* x, int64_t stride, T* y) {
    kernels<T>().before(r - begin, a.keys, x, stride, g + row(begin), a.k_stride, true, y);
  }
  void meet(int64_t begin, int64_t r, int64_t end) {
    since(r, end, a.scale, q + row(r), a.k_stride, left);
    until(begin, r, k + row(begin), a.k_stride, right);
  }

  /// halves(begin, r, end) for all blocks of rows that meet at r, and pair(i, j) for what is left: j < i. Where two
  /// rows meet does not depend on how many follow them.
  template <class Halves, class Pair>
  void each_pair(Halves& halves, Pair& pair, int64_t begin = 0, int64_t size = gla_chunk) const {
    const int64_t end = std::min(begin + size, rows), r = begin + size / 2;
    if (size <= pair_rows) {
      for (int64_t i = begin + 1; i < end; i++)
        for (int64_t j = begin; j < i; j++) pair(i, j);
      return;
    }
    if (r < end) halves(begin, r, end);
    each_pair(halves, pair, begin, size / 2);
    if (r < end) each_pair(halves, pair, r, size / 2);
  }

  /// weights[i, j] = scale * sum(q_i k_j exp(G_i - G_j)) for j <= i, and 0 for j > i.
  void find_weights() {
    std::fill_n(weights, rows * gla_chunk, T(0));
    auto halves = [&](int64_t begin, int64_t r, int64_t end) {
      meet(begin, r, end);
      multiply(Form::NT, end - r, r - begin, a.keys, left, a.keys, right, a.keys, weights + r * gla_chunk + begin,
               gla_chunk, false);
    };
    auto pair = [&](int64_t i, int64_t j) {
      weights[i * gla_chunk + j] =
          static_cast<T>(a.scale) * kernels<T>().dot(i - j, a.keys, q + row(i), k + row(j), g + row(j + 1), a.k_stride);
    };
    each_pair(halves, pair);
    for (int64_t i = 0; i < rows; i++) pair(i, i);
  }

  /// state = kept * state + the rows' own.
  void advance(T* state) {
    for (int64_t j = 0; j < a.keys; j++)
      for (int64_t e = 0; e < a.values; e++) state[j * a.values + e] *= kept[j];
    until_end(k, a.k_stride, right);
    multiply(Form::TN, a.keys, a.values, rows, right, a.keys, v, a.v_stride, state, a.values, true);
  }

  void output(const T* state, T* out) {
    out += first * a.v_stride;
    find_weights();
    multiply(Form::NN, rows, a.values, rows, weights, gla_chunk, v, a.v_stride, out, a.v_stride, false);
    since_start(a.scale, q, a.k_stride, left);
    multiply(Form::NN, rows, a.values, a.keys, left, a.keys, state, a.values, out, a.v_stride, true);
  }

  /// What passes through the weights: ADDS to dq (of scale * q) and dk, and writes dsums = q dq - k dk of all terms
  /// but i == j, where it is 0 anyway and would leave rounding.
  void weights_backward(T* dq, T* dk, T* dsums) {
    const T* dw = weights_gradient();
    const T scale = static_cast<T>(a.scale);
    const int64_t d = a.keys, stride = a.k_stride;
    auto halves = [&](int64_t begin, int64_t r, int64_t end) {
      meet(begin, r, end);
      const T* block = dw + r * gla_chunk + begin;
      multiply(Form::NN, end - r, d, r - begin, block, gla_chunk, right, d, product, d, false);
      since(r, end, 1, product, d, product);
      add_rows(end - r, d, product, dq + r * d);
      multiply(Form::TN, r - begin, d, end - r, block, gla_chunk, left, d, product, d, false);
      until(begin, r, product, d, product);
      add_rows(r - begin, d, product, dk + begin * d);
    };
    auto pair = [&](int64_t i, int64_t j) {
      const T w = dw[i * gla_chunk + j];
      kernels<T>().add(i - j, d, w, k + row(j), g + row(j + 1), stride, dq + i * d);
      kernels<T>().add(i - j, d, w * scale, q + row(i), g + row(j + 1), stride, dk + j * d);
    };
    each_pair(halves, pair);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t c = 0; c < d; c++)
        dsums[i * d + c] = scale * q[i * stride + c] * dq[i * d + c] - k[i * stride + c] * dk[i * d + c];
    for (int64_t i = 0; i < rows; i++) pair(i, i);
  }

  static void add_rows(int64_t rows, int64_t n, const T* x, T* y) {
    for (int64_t i = 0; i < rows * n; i++) y[i] += x[i];
  }
};

}  // namespace

template <class T>
void gated_linear(const GatedLinear& a, const T* q, const T* k, const T* v, const T* g, const T* first, T* out, T* last,
                  Scratch& scratch) {
  const int64_t n = a.keys * a.values;
  if (!first)
    std::fill_n(last, n, T(0));
  else if (first != last)
    std::copy_n(first, n, last);
  Chunk<T> chunk(a, scratch);
  for (int64_t begin = 0; begin < a.rows; begin += gla_chunk) {
    chunk.load(begin, q, k, v, g);
    if (q) chunk.output(last, out);
    chunk.advance(last);
  }
}

template <class T>
void gated_linear_backward(const GatedLinear& a, const T* dout, const T* dlast, const T* q, const T* k, const T* v,
                           const T* g, const T* first, const GatedLinearGradients<T>& to, Scratch& scratch) {
  const int64_t d = a.keys, n = d * a.values, chunks = (a.rows + gla_chunk - 1) / gla_chunk;
  T* states = scratch.get<T>(Slot::attention_state, (chunks + 1) * n);  // before each chunk, and the gradient
  T* dstate = states + chunks * n;
  T* dq = scratch.get<T>(Slot::attention_gradients, 3 * gla_chunk * d);
  T *dk = dq + gla_chunk * d, *dsums = dk + gla_chunk * d;
  Chunk<T> c(a, scratch);
  for (int64_t i = 0; i < chunks; i++) {
    T* state = states + i * n;
    if (i > 0) {
      std::copy_n(state - n, n, state);
      c.load((i - 1) * gla_chunk, q, k, v, g);
      c.advance(state);
    } else if (first) {
      std::copy_n(first, n, state);
    } else {
      std::fill_n(state, n, T(0));
    }
  }
  if (dlast)
    std::copy_n(dlast, n, dstate);
  else
    std::fill_n(dstate, n, T(0));
  for (int64_t i = chunks - 1; i >= 0; i--) {
    const T* state = states + i * n;
    c.load(i * gla_chunk, q, k, v, g);
    const int64_t rows = c.rows, at = c.first * a.k_stride;
    const T* out_gradient = dout ? dout + c.first * a.v_stride : nullptr;
    T* dv = to.dv + c.first * a.v_stride;
    std::fill_n(dq, rows * d, T(0));
    std::fill_n(dk, rows * d, T(0));
    std::fill_n(dsums, rows * d, T(0));
    // Among the rows.
    if (dout) {
      c.find_weights();
      c.multiply(Form::TN, rows, a.values, rows, c.weights, gla_chunk, out_gradient, a.v_stride, dv, a.v_stride, false);
      c.multiply(Form::NT, rows, rows, a.values, out_gradient, a.v_stride, c.v, a.v_stride, c.weights_gradient(),
                 gla_chunk, false);
      c.weights_backward(dq, dk, dsums);
      // From the state before.
      c.multiply(Form::NT, rows, d, a.values, out_gradient, a.v_stride, state, a.values, c.product, d, false);
      c.since_start(1, c.product, d, c.product);
      c.add_rows(rows, d, c.product, dq);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < d; j++)
          dsums[r * d + j] += static_cast<T>(a.scale) * c.q[r * a.k_stride + j] * c.product[r * d + j];
    }
    // To the state after.
    c.until_end(c.k, a.k_stride, c.right);
    c.multiply(Form::NN, rows, a.values, d, c.right, d, dstate, a.values, dv, a.v_stride, dout != nullptr);
    c.multiply(Form::NT, rows, d, a.values, c.v, a.v_stride, dstate, a.values, c.product, d, false);
    c.until_end(c.product, d, c.product);
    c.add_rows(rows, d, c.product, dk);
    T* dlast_sums = dsums + (rows - 1) * d;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < d; j++) {
        const T term = c.k[r * a.k_stride + j] * c.product[r * d + j];
        dsums[r * d + j] -= term;
        dlast_sums[j] += term;
      }
    for (int64_t j = 0; j < d; j++) {
      T sum = 0;
      for (int64_t e = 0; e < a.values; e++) sum += state[j * a.values + e] * dstate[j * a.values + e];
      dlast_sums[j] += c.kept[j] * sum;
      for (int64_t e = 0; e < a.values; e++) dstate[j * a.values + e] *= c.kept[j];
    }
    if (dout) {
      c.since_start(a.scale, c.q, a.k_stride, c.left);
      c.multiply(Form::TN, d, a.values, rows, c.left, d, out_gradient, a.v_stride, dstate, a.values, true);
    }
    for (int64_t r = rows - 1; r >= 0; r--)
      for (int64_t j = 0; j < d; j++) {
        if (r + 1 < rows) dsums[r * d + j] += dsums[(r + 1) * d + j];
        to.dg[at + r * a.k_stride + j] = dsums[r * d + j];
        to.dk[at + r * a.k_stride + j] = dk[r * d + j];
        if (to.dq) to.dq[at + r * a.k_stride + j] = static_cast<T>(a.scale) * dq[r * d + j];
      }
  }
  if (to.dfirst) std::copy_n(dstate, n, to.dfirst);
}

#define INSTANTIATE(T)                                                                                                \
  template void gated_linear(const GatedLinear&, const T*, const T*, const T*, const T*, const T*, T*, T*, Scratch&); \
  template void gated_linear_backward(const GatedLinear&, const T*, const T*, const T*, const T*, const T*, const T*, \
                                      const T*, const GatedLinearGradients<T>&, Scratch&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
#endif
