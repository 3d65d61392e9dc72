#include "ops/cpu/gemm.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "dtensor/local/tree.h"
#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef DTENSOR_CPU_GEMM_ONCE
#define DTENSOR_CPU_GEMM_ONCE
namespace dtensor::cpu {
/// C = or += the product over the leaves cut[0], ..., cut[l]; A and B begin at cut[0].
template <class T>
struct Product {
  Form form;
  int64_t M, N, l;
  const int64_t* cut;
  const T *A, *B;
  T* C;
  int64_t lda, ldb, ldc;
  bool accumulate;

  int64_t K() const { return cut[l] - cut[0]; }
};
constexpr int64_t max_rows = 2040;  // of A in one pass, a multiple of 6: bounds the packed A and the tree's temporaries
constexpr int64_t max_depth = 4096;  // of one packed panel: 1 MiB of B, in the second-level cache
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {
static_assert(HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128,
              "no fused multiply-add: build with -march=x86-64-v3");
namespace hn = hwy::HWY_NAMESPACE;
const hn::ScalableTag<float> d;
using V = hn::Vec<decltype(d)>;
// A tile of C is at most MR rows by NV vectors: 24 accumulators on AVX-512, 12 on AVX2, of 32 and 16 registers.
constexpr int W = hn::MaxLanes(d), MR = 6, NV = HWY_TARGET == HWY_AVX2 ? 2 : 4, NR = NV * W;
// A leaf's sums stay in registers only if it is inlined, which clang does not do unasked.
#define IN_REGISTERS HWY_ATTR __attribute__((always_inline))
#define EACH_IN_TILE HWY_UNROLL(6) for (int i = 0; i < mr; i++) HWY_UNROLL(4) for (int j = 0; j < nv; j++)

/// Four elements of rows s[r], s[r+4], ..., one after the other.
template <class D, int n = hn::MaxLanes(D())>
HWY_INLINE hn::Vec<D> load_rows(D to, const float* const* s, int r, int64_t k) {
  if constexpr (n == 4) {
    return hn::LoadU(to, s[r] + k);
  } else {
    const hn::Half<D> half;
    return hn::Combine(to, load_rows(half, s, r + n / 2, k), load_rows(half, s, r, k));
  }
}

/// Lane r of column[i] is s[r][k+i].
HWY_INLINE void load_columns(const float* const* s, int64_t k, V (&column)[4]) {
  const V v[] = {load_rows(d, s, 0, k), load_rows(d, s, 1, k), load_rows(d, s, 2, k), load_rows(d, s, 3, k)};
  const V a = hn::InterleaveLower(d, v[0], v[2]), b = hn::InterleaveUpper(d, v[0], v[2]);
  const V c = hn::InterleaveLower(d, v[1], v[3]), e = hn::InterleaveUpper(d, v[1], v[3]);
  column[0] = hn::InterleaveLower(d, a, c), column[1] = hn::InterleaveUpper(d, a, c);
  column[2] = hn::InterleaveLower(d, b, e), column[3] = hn::InterleaveUpper(d, b, e);
}

/// dst[k*NR + r] = src[r*ld + k] for r < n <= NR; rows beyond n repeat the last one.
void pack_transposed(float* dst, const float* src, int64_t n, int64_t K, int64_t ld) {
  const int rows = n <= W ? W : n <= 2 * W ? 2 * W : NR;  // what the tile reads
  for (int64_t k0 = 0; k0 < K; k0 += 64)                  // a piece that stays in L1 while it is written
    for (int r0 = 0; r0 < rows; r0 += W) {
      const float* s[W];
      for (int r = 0; r < W; r++) s[r] = src + std::min<int64_t>(r0 + r, n - 1) * ld;
      int64_t k = k0;
      const int64_t end = std::min(K, k0 + 64);
      for (; k + 4 <= end; k += 4) {
        V column[4];
        load_columns(s, k, column);
        HWY_UNROLL(4) for (int i = 0; i < 4; i++) hn::StoreU(column[i], d, dst + (k + i) * NR + r0);
      }
      for (; k < end; k++)
        for (int r = 0; r < W; r++) dst[k * NR + r0 + r] = s[r][k];
    }
}

/// Panels of w columns: dst[p*K + k*w + r] = src[k*ld + p + r], p a multiple of w, p + r < n. Columns beyond n are
/// zero.
template <int w>
void pack(float* dst, const float* src, int64_t n, int64_t K, int64_t ld) {
  for (int64_t k0 = 0; k0 < K; k0 += 32)  // 32 rows at a time, to stay on few pages
    for (int64_t p = 0; p < n; p += w)
      for (int64_t k = k0; k < std::min(K, k0 + 32); k++) {
        float* out = dst + p * K + k * w;
        if (p + w <= n) {
          memcpy(out, src + k * ld + p, w * sizeof(float));
        } else {
          const int64_t rest = n - p;
          memcpy(out, src + k * ld + p, rest * sizeof(float));
          memset(out + rest, 0, (w - rest) * sizeof(float));
        }
      }
}

/// C[m, n] = or += the sum over the leaves, m <= mr and n <= nv*W; leaf(k, end, x) adds a leaf's terms to x.
template <int mr, int nv, class Leaf>
HWY_INLINE void add_leaves(const Product<float>& p, float* C, int m, int n, Leaf leaf) {
  V x[mr][nv], part[24][mr][nv];  // part: the sums of complete subtrees, largest first, as in a binary counter
  int top = 0;
  for (int64_t l = 0; l < p.l; l++) {
    EACH_IN_TILE x[i][j] = hn::Zero(d);
    leaf(p.cut[l] - p.cut[0], p.cut[l + 1] - p.cut[0], x);
    for (int count = joins(l); count > 0; count--) {
      top--;
      EACH_IN_TILE x[i][j] = hn::Add(part[top][i][j], x[i][j]);
    }
    if (l + 1 < p.l) {
      EACH_IN_TILE part[top][i][j] = x[i][j];
      top++;
    }
  }
  if (m == mr && n == nv * W) {
    EACH_IN_TILE {
      float* c = C + i * p.ldc + j * W;
      hn::StoreU(p.accumulate ? hn::Add(hn::LoadU(d, c), x[i][j]) : x[i][j], d, c);
    }
  } else {
    float t[mr][nv * W];
    EACH_IN_TILE hn::StoreU(x[i][j], d, &t[i][j * W]);
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j++) C[i * p.ldc + j] = p.accumulate ? C[i * p.ldc + j] + t[i][j] : t[i][j];
  }
}

/// m <= mr rows A[i*ai + k*ak], rows beyond m repeat the last one; n <= nv*W columns of B[k*bk ...].
template <int mr, int nv>
void tile(const Product<float>& p, const float* A, int64_t ai, int64_t ak, const float* b, int64_t bk, float* C, int m,
          int n) {
  const float* a[mr];
  for (int i = 0; i < mr; i++) a[i] = A + std::min(i, m - 1) * ai;
  add_leaves<mr, nv>(p, C, m, n, [&](int64_t k, int64_t end, V(&x)[mr][nv]) IN_REGISTERS {
    for (; k < end; k++, b += bk) {
      V row[nv];
      for (int j = 0; j < nv; j++) row[j] = hn::LoadU(d, b + j * W);
      EACH_IN_TILE x[i][j] = hn::MulAdd(hn::Set(d, a[i][k * ak]), row[j], x[i][j]);
    }
  });
}

/// All mr rows of A B^T, as those of one token: B is read once, as it lies.
template <int mr>
void few_rows(const Product<float>& p) {
  for (int64_t j = 0; j < p.N; j += W) {
    const int n = static_cast<int>(std::min<int64_t>(W, p.N - j));
    const float* s[W];
    for (int r = 0; r < W; r++) s[r] = p.B + (j + std::min(r, n - 1)) * p.ldb;
    add_leaves<mr, 1>(p, p.C + j, mr, n, [&](int64_t k, int64_t end, V(&x)[mr][1]) IN_REGISTERS {
      const auto add = [&](int64_t at, V column) HWY_ATTR {
        HWY_UNROLL(4)
        for (int i = 0; i < mr; i++) x[i][0] = hn::MulAdd(hn::Set(d, p.A[i * p.lda + at]), column, x[i][0]);
      };
      for (; k + 4 <= end; k += 4) {
        V column[4];
        load_columns(s, k, column);
        HWY_UNROLL(4) for (int i = 0; i < 4; i++) add(k + i, column[i]);
      }
      for (; k < end; k++) {
        float column[W];
        for (int r = 0; r < W; r++) column[r] = s[r][k];
        add(k, hn::LoadU(d, column));
      }
    });
  }
}

using TileKernel = decltype(&tile<MR, NV>);

/// The smallest tile for n columns; few rows, as those of one token, have tiles of their own.
template <int mr>
TileKernel tile_of(int n) {
  return n <= W ? tile<mr, 1> : n <= 2 * W ? tile<mr, 2> : tile<mr, NV>;
}
TileKernel tile_of(int64_t m, int n) {
  return m == 1 ? tile_of<1>(n) : m == 2 ? tile_of<2>(n) : m <= 4 ? tile_of<4>(n) : tile_of<MR>(n);
}

/// A product of at most max_rows rows: one panel of NR columns of B at a time, packed, then swept by tiles.
void Block(const Product<float>& p, Scratch& scratch) {
  if (p.form == Form::NT && p.M <= 4)
    return p.M == 1 ? few_rows<1>(p) : p.M == 2 ? few_rows<2>(p) : p.M == 3 ? few_rows<3>(p) : few_rows<4>(p);
  const int64_t K = p.K();
  const float* a = p.A;  // a[i*ai + k*ak], and 6 rows further at a + 6*next
  int64_t ai = p.lda, ak = 1, next = p.lda;
  if (p.form == Form::TN) {
    ai = 1, ak = p.lda, next = 1;
    if (p.N > NR) {  // packing pays only if A is read more than once
      float* panels = scratch.get<float>(Slot::gemm_a, (p.M + MR - 1) / MR * MR * K);
      pack<MR>(panels, p.A, p.M, K, p.lda);
      a = panels, ak = MR, next = K;
    }
  }
  float* packed = scratch.get<float>(Slot::gemm_b, NR * K);
  for (int64_t j = 0; j < p.N; j += NR) {
    const int n = static_cast<int>(std::min<int64_t>(NR, p.N - j));
    const TileKernel full = tile_of<MR>(n), last = tile_of(p.M % MR, n);
    const bool whole = n == W || n == 2 * W || n == NR;
    const float* b = packed;
    int64_t bk = NR;
    if (p.form == Form::NT)
      pack_transposed(packed, p.B + j * p.ldb, n, K, p.ldb);
    else if (p.M <= 2 * MR && whole)
      b = p.B + j, bk = p.ldb;  // packing pays only if the panel is read often
    else
      pack<NR>(packed, p.B + j, n, K, p.ldb);
    for (int64_t i = 0; i < p.M; i += MR) {
      const int m = static_cast<int>(std::min<int64_t>(MR, p.M - i));
      (m == MR ? full : last)(p, a + i * next, ai, ak, b, bk, p.C + i * p.ldc + j, m, n);
    }
  }
}
#undef EACH_IN_TILE
#undef IN_REGISTERS
}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(Block);

/// Walks the upper levels of the tree down to sums of max_depth terms, with partial products in C and in `spare`.
static void walk(const Product<float>& p, float* spare, Scratch& scratch) {
  if (p.l == 1 || p.K() <= max_depth) {
    HWY_DYNAMIC_DISPATCH(Block)(p, scratch);
  } else if (p.accumulate) {  // the sum must be whole before it is added
    Product<float> sum = p;
    sum.C = spare, sum.ldc = p.N, sum.accumulate = false;
    walk(sum, spare + p.M * p.N, scratch);
    for (int64_t i = 0; i < p.M; i++)
      for (int64_t j = 0; j < p.N; j++) p.C[i * p.ldc + j] += spare[i * p.N + j];
  } else {
    Product<float> first = p, second = p;
    first.l = second.l = p.l / 2;
    second.cut += p.l / 2;
    const int64_t k = first.K();
    second.A += p.form == Form::TN ? k * p.lda : k;
    second.B += p.form == Form::NT ? k : k * p.ldb;
    second.accumulate = true;
    walk(first, spare, scratch);
    walk(second, spare, scratch);
  }
}

static void run(Product<float> p, Scratch& scratch) {
  const int64_t M = p.M, levels = p.K() > max_depth ? 1 + std::bit_width(uint64_t(p.K() / max_depth)) : 0;
  float* spare = scratch.get<float>(Slot::gemm_tree, levels * std::min(M, max_rows) * p.N);
  for (int64_t i = 0; i < M; i += max_rows) {
    p.M = std::min(max_rows, M - i);
    walk(p, spare, scratch);
    p.A += p.form == Form::TN ? max_rows : max_rows * p.lda;
    p.C += max_rows * p.ldc;
  }
}

/// The law, word for word, for one element: terms a[k*ak] * b[k*bk].
static double sum(const double* a, int64_t ak, const double* b, int64_t bk, const int64_t* cut, int64_t l) {
  if (l > 1) return sum(a, ak, b, bk, cut, l / 2) + sum(a, ak, b, bk, cut + l / 2, l / 2);
  double s = 0;
  for (int64_t k = cut[0]; k < cut[1]; k++) s = std::fma(a[k * ak], b[k * bk], s);
  return s;
}

static void run(const Product<double>& p, Scratch&) {
  const bool ta = p.form == Form::TN, tb = p.form == Form::NT;
  for (int64_t i = 0; i < p.M; i++)
    for (int64_t j = 0; j < p.N; j++) {
      double* c = p.C + i * p.ldc + j;
      const double s =
          sum(p.A + (ta ? i : i * p.lda), ta ? p.lda : 1, p.B + (tb ? j * p.ldb : j), tb ? 1 : p.ldb, p.cut, p.l);
      *c = p.accumulate ? *c + s : s;
    }
}

int64_t leaves(int64_t K) {
  int64_t l = 1;
  while (l * 127 < K) l *= 2;
  return l;
}

template <class T>
void gemm(Form form, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* B, int64_t ldb, T* C,
          int64_t ldc, bool accumulate, int64_t l, Scratch& scratch) {
  if (!l) l = leaves(K);
  int64_t* cut = scratch.get<int64_t>(Slot::gemm_cuts, l + 1);
  for (int64_t i = 0; i <= l; i++) cut[i] = i * K / l;
  run(Product<T>{form, M, N, l, cut, A, B, C, lda, ldb, ldc, accumulate}, scratch);
}

template void gemm(Form, int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool,
                   int64_t, Scratch&);
template void gemm(Form, int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t,
                   bool, int64_t, Scratch&);

}  // namespace dtensor::cpu
#endif
