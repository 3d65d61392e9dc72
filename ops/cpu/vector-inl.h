// Vector building blocks of the row kernels: loads and stores of part of a vector, elementary functions, and sums that
// follow the law of gemm.h. Compiled once per instruction set (see <hwy/foreach_target.h>), hence no #pragma once.
//
// A result depends on the value of an element only, never on its place: the rest of a row is computed by the
// full-vector code on a vector padded with zeros. In float32 the functions are our own, so their bits do not change
// with a library's version; in float64, which is for tests, they are the C library's, lane by lane.
#if defined(DTENSOR_CPU_VECTOR_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef DTENSOR_CPU_VECTOR_INL_H
#undef DTENSOR_CPU_VECTOR_INL_H
#else
#define DTENSOR_CPU_VECTOR_INL_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "dtensor/local/tree.h"
#include "ops/cpu/rows.h"

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {
static_assert(HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128,
              "no fused multiply-add: build with -march=x86-64-v3");
namespace hn = hwy::HWY_NAMESPACE;
using hn::Vec;

template <class T>
using Tag = hn::ScalableTag<T>;
template <class D>
using Lane = hn::TFromD<D>;
template <class D>
constexpr int lanes = hn::MaxLanes(D());
template <class D>
constexpr bool is_double = std::is_same_v<Lane<D>, double>;

template <class D>
HWY_INLINE Vec<D> splat(D d, double a) {
  return hn::Set(d, static_cast<Lane<D>>(a));
}

/// Masked loads and stores touch no memory beyond their elements; elsewhere a copy stands between, which is slow.
template <class D>
constexpr bool has_masks = HWY_ARCH_X86&& HWY_TARGET <= HWY_AVX2 && sizeof(Lane<D>) >= 4;

/// The first n elements at p, then zeros; n < 0 is 0.
template <class D>
HWY_INLINE Vec<D> load(D d, const Lane<D>* p, int64_t n) {
  if (n >= lanes<D>) return hn::LoadU(d, p);
  if constexpr (has_masks<D>) return hn::MaskedLoad(hn::FirstN(d, size_t(std::max<int64_t>(n, 0))), d, p);
  HWY_ALIGN Lane<D> t[lanes<D>] = {};
  if (n > 0) memcpy(t, p, n * sizeof(Lane<D>));
  return hn::Load(d, t);
}

template <class D>
HWY_INLINE void store(D d, Vec<D> v, Lane<D>* p, int64_t n) {
  if (n >= lanes<D>) return hn::StoreU(v, d, p);
  if constexpr (has_masks<D>) return hn::BlendedStore(v, hn::FirstN(d, size_t(std::max<int64_t>(n, 0))), d, p);
  HWY_ALIGN Lane<D> t[lanes<D>];
  hn::Store(v, d, t);
  if (n > 0) memcpy(p, t, n * sizeof(Lane<D>));
}

/// body(i, count) for the whole vectors of n elements (count = lanes), then for the rest.
template <class D, class Body>
HWY_INLINE void each(D, int64_t n, Body body) {
  int64_t i = 0;
  for (; i + lanes<D> <= n; i += lanes<D>) body(i, int64_t{lanes<D>});
  if (i < n) body(i, n - i);
}

template <class D>
Vec<D> by_lane(D d, Vec<D> x, double (*f)(double)) {
  HWY_ALIGN Lane<D> t[lanes<D>];
  hn::Store(x, d, t);
  for (auto& a : t) a = static_cast<Lane<D>>(f(a));
  return hn::Load(d, t);
}

/// c[0] + c[1]*x + c[2]*x^2 + ..., by Horner's rule.
template <class D, int n>
HWY_INLINE Vec<D> polynomial(D d, Vec<D> x, const double (&c)[n]) {
  Vec<D> y = splat(d, c[n - 1]);
  for (int i = n - 2; i >= 0; i--) y = hn::MulAdd(y, x, splat(d, c[i]));
  return y;
}

/// About 1 ulp; 0 below log(2^-126), so that nothing is denormal. Source: expf of Moshier's Cephes library.
template <class D>
HWY_INLINE Vec<D> exp(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(d, x, std::exp);
  } else {
    const hn::RebindToSigned<D> di;
    const Vec<D> magic = splat(d, 12582912);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec<D> t = hn::MulAdd(x, splat(d, 1.44269504), magic), n = hn::Sub(t, magic);
    Vec<D> r = hn::MulAdd(n, splat(d, -0.693359375), x);  // x - n*log(2), in two steps
    r = hn::MulAdd(n, splat(d, 2.12194440e-4), r);
    Vec<D> p = polynomial(
        d, r, {5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4});
    p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), splat(d, 1));
    const auto exponent = hn::ShiftLeft<23>(hn::Sub(hn::BitCast(di, t), hn::BitCast(di, magic)));
    Vec<D> y = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));  // p * 2^n
    y = hn::IfThenElse(hn::Lt(x, splat(d, -87.3365448)), hn::Zero(d), y);
    y = hn::IfThenElse(hn::Gt(x, splat(d, 88.7228394)), hn::Set(d, std::numeric_limits<float>::infinity()), y);
    return hn::IfThenElse(hn::Eq(x, x), y, x);
  }
}

/// About 1 ulp; log(0) = -inf, NaN below 0. Source: logf of Cephes.
template <class D>
HWY_INLINE Vec<D> log(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(d, x, std::log);
  } else {
    const hn::RebindToSigned<D> di;
    const auto tiny = hn::Lt(x, splat(d, 0x1p-126));
    const auto bits = hn::BitCast(di, hn::IfThenElse(tiny, hn::Mul(x, splat(d, 0x1p23)), x));
    const auto n =
        hn::ShiftRight<23>(hn::Sub(bits, hn::Set(di, 0x3f3504f3)));  // x = 2^n * m, m in [sqrt(1/2), sqrt(2))
    const Vec<D> f = hn::Sub(hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(n))), splat(d, 1));
    const Vec<D> e = hn::Sub(hn::ConvertTo(d, n), hn::IfThenElseZero(tiny, splat(d, 23)));
    const Vec<D> z = hn::Mul(f, f);
    const Vec<D> p = polynomial(d, f,
                                {3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
                                 -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2});
    Vec<D> y = hn::Mul(hn::Mul(f, z), p);
    y = hn::MulAdd(e, splat(d, -2.12194440e-4), y);
    y = hn::Add(f, hn::NegMulAdd(splat(d, 0.5), z, y));
    y = hn::MulAdd(e, splat(d, 0.693359375), y);
    const Vec<D> inf = hn::Set(d, std::numeric_limits<float>::infinity());
    y = hn::IfThenElse(hn::Lt(x, inf), y, x);  // infinity and NaN
    y = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Neg(inf), y);
    return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Set(d, std::numeric_limits<float>::quiet_NaN()), y);
  }
}

/// log(1 + x), with the rounding error of 1 + x put back.
template <class D>
HWY_INLINE Vec<D> log1p(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(d, x, std::log1p);
  } else {
    const Vec<D> one = splat(d, 1), u = hn::Add(one, x), y = log(d, u);
    const Vec<D> rest = hn::Div(hn::Sub(x, hn::Sub(u, one)), u);
    const auto plain = hn::And(hn::Gt(u, hn::Zero(d)), hn::IsFinite(u));
    return hn::IfThenElse(hn::Eq(u, one), x, hn::IfThenElse(plain, hn::Add(y, rest), y));
  }
}

/// The polynomial of exp without its 1 near 0, exp(x) - 1 elsewhere.
template <class D>
HWY_INLINE Vec<D> expm1(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(d, x, std::expm1);
  } else {
    const Vec<D> p = polynomial(
        d, x, {5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4});
    const Vec<D> near = hn::MulAdd(p, hn::Mul(x, x), x), far = hn::Sub(exp(d, x), splat(d, 1));
    const Vec<D> y = hn::IfThenElse(hn::Lt(hn::Abs(x), splat(d, 0.34657359)), near, far);
    return hn::IfThenElse(hn::Eq(x, hn::Zero(d)), x, y);  // the sign of zero
  }
}

/// cos(x) where quarter = 1, sin(x) where it is 0. Up to 8192 our own: x less the nearest multiple of pi/2, which
/// three floats give to 72 bits, then a polynomial; beyond, the C library's float64. Source: sinf of Cephes.
template <class D>
HWY_INLINE Vec<D> sin_cos(D d, Vec<D> x, int quarter) {
  double (*const far)(double) = quarter ? +[](double a) { return std::cos(a); } : +[](double a) { return std::sin(a); };
  if constexpr (is_double<D>) {
    return by_lane(d, x, far);
  } else {
    const hn::RebindToSigned<D> di;
    const auto near = hn::Le(hn::Abs(x), splat(d, 8192));
    const Vec<D> v = hn::IfThenElseZero(near, x), n = hn::Round(hn::Mul(v, splat(d, 0.63661977)));
    Vec<D> r = hn::NegMulAdd(n, splat(d, 1.5707963705062866), v);
    r = hn::NegMulAdd(n, splat(d, -4.3711390001862412e-8), r);
    r = hn::NegMulAdd(n, splat(d, -1.7151245100058819e-15), r);
    const Vec<D> z = hn::Mul(r, r);
    const Vec<D> odd =
        hn::MulAdd(hn::Mul(polynomial(d, z, {-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4}), z), r, r);
    const Vec<D> even =
        hn::MulAdd(hn::Mul(polynomial(d, z, {4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5}), z), z,
                   hn::NegMulAdd(z, splat(d, 0.5), splat(d, 1)));
    const auto q = hn::Add(hn::ConvertTo(di, n), hn::Set(di, quarter)), one = hn::Set(di, 1), two = hn::Set(di, 2);
    const auto swapped = hn::RebindMask(d, hn::Eq(hn::And(q, one), one));
    const auto negative = hn::RebindMask(d, hn::Eq(hn::And(q, two), two));
    Vec<D> y = hn::IfThenElse(swapped, even, odd);
    y = hn::IfThenElse(negative, hn::Neg(y), y);
    if (quarter == 0) y = hn::IfThenElse(hn::Eq(v, hn::Zero(d)), v, y);  // the sign of zero
    return hn::AllTrue(d, near) ? y : hn::IfThenElse(near, y, by_lane(d, x, far));
  }
}

/// An odd polynomial near 0, 1 - 2 / (exp(2x) + 1) elsewhere. Source: tanhf of Cephes.
template <class D>
HWY_INLINE Vec<D> tanh(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(d, x, std::tanh);
  } else {
    const Vec<D> a = hn::Abs(x), z = hn::Mul(x, x), one = splat(d, 1), two = splat(d, 2);
    const Vec<D> p =
        polynomial(d, z, {-3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3});
    const Vec<D> near = hn::MulAdd(hn::Mul(p, z), x, x);
    const Vec<D> far = hn::CopySign(hn::Sub(one, hn::Div(two, hn::Add(exp(d, hn::Mul(two, a)), one))), x);
    const Vec<D> y = hn::IfThenElse(hn::Lt(a, splat(d, 0.625)), near, far);
    return hn::IfThenElse(hn::Eq(x, hn::Zero(d)), x, y);  // the sign of zero
  }
}

template <class D>
HWY_INLINE Vec<D> sigmoid(D d, Vec<D> x) {
  const Vec<D> one = splat(d, 1);
  return hn::Div(one, hn::Add(one, exp(d, hn::Neg(x))));
}

template <class D>
HWY_INLINE Vec<D> silu(D d, Vec<D> x) {
  return hn::Div(x, hn::Add(splat(d, 1), exp(d, hn::Neg(x))));
}

/// exp(-x^2 / 2), with the rounding error of x^2 put back.
template <class D>
HWY_INLINE Vec<D> bell(D d, Vec<D> x) {
  const Vec<D> t = hn::Min(hn::Abs(x), splat(d, is_double<D> ? 40 : 14)), half = hn::Mul(t, splat(d, 0.5));
  const Vec<D> h = hn::Mul(half, t), rest = hn::MulSub(half, t, h), e = exp(d, hn::Neg(h));
  return hn::NegMulAdd(e, rest, e);
}

/// The normal distribution function (1 + erf(x / sqrt(2))) / 2, without cancellation: a few ulp for negative x too.
/// Source: Mills' ratio as u * P(u - 1/2), u = 1 / (1 + 0.3 |x|) (the form of Abramowitz and Stegun 7.1.26), with P our
/// own Chebyshev fit, absolute error 2e-9.
template <class D>
HWY_INLINE Vec<D> normal_cdf(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(
        d, x, +[](double a) { return 0.5 * std::erfc(-a * 0.70710678118654752440); });
  } else {
    const Vec<D> one = splat(d, 1), u = hn::Div(one, hn::MulAdd(hn::Abs(x), splat(d, 0.3), one));
    const Vec<D> p = polynomial(d, hn::Sub(u, splat(d, 0.5)),
                                {0.221970613, 0.329158979, 0.346198786, 0.222082062, 0.0290594425, -0.0775412317,
                                 -0.0365128859, 0.0358933678, 0.0199256533, -0.0209143597});
    const Vec<D> tail = hn::Mul(hn::Mul(u, p), bell(d, x));
    return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
  }
}

/// An odd polynomial near 0, from the normal distribution elsewhere. Source: erff of Cephes.
template <class D>
HWY_INLINE Vec<D> erf(D d, Vec<D> x) {
  if constexpr (is_double<D>) {
    return by_lane(d, x, std::erf);
  } else {
    const Vec<D> a = hn::Abs(x), z = hn::Mul(x, x), one = splat(d, 1);
    const Vec<D> p = polynomial(d, z,
                                {1.128379165726710, -3.761262582423300e-1, 1.128358514861418e-1, -2.685381193529856e-2,
                                 5.188327685732524e-3, -8.010193625184903e-4, 7.853861353153693e-5});
    const Vec<D> beyond = normal_cdf(d, hn::Mul(a, splat(d, -1.41421356237309505)));
    const Vec<D> far = hn::CopySign(hn::NegMulAdd(splat(d, 2), beyond, one), x);
    return hn::IfThenElse(hn::Lt(a, one), hn::Mul(x, p), far);
  }
}

template <class D>
HWY_INLINE Vec<D> gelu(D d, Vec<D> x) {
  return hn::Mul(x, normal_cdf(d, x));
}

/// 2 * sqrt(2/pi) * (x + 0.044715 x^3): gelu_tanh(x) = x * sigmoid(this).
template <class D>
HWY_INLINE Vec<D> gelu_tanh_argument(D d, Vec<D> x) {
  const double c = 1.5957691216057307118;
  return hn::Mul(x, hn::MulAdd(hn::Mul(x, x), splat(d, 0.044715 * c), splat(d, c)));
}

template <class D>
HWY_INLINE Vec<D> gelu_tanh(D d, Vec<D> x) {
  return hn::Div(x, hn::Add(splat(d, 1), exp(d, hn::Neg(gelu_tanh_argument(d, x)))));
}

/// v[i] += v[i + n/2], then n/4, ..., 1, over the n elements of v.
template <class D>
HWY_INLINE Lane<D> add_lanes(D d, Vec<D> v) {
  if constexpr (lanes<D> * sizeof(Lane<D>) > 16) {
    const hn::Half<D> h;
    return add_lanes(h, hn::Add(hn::LowerHalf(h, v), hn::UpperHalf(h, v)));
  } else {
    Lane<D> t[lanes<D>];
    hn::StoreU(v, d, t);
    for (int count = lanes<D> / 2; count; count /= 2)
      for (int i = 0; i < count; i++) t[i] += t[i + count];
    return t[0];
  }
}

/// A leaf's 16 partial sums, in 16 / lanes vectors, added as t[i] += t[i + 8], then 4, 2, 1.
template <class D>
HWY_INLINE Lane<D> add_partial_sums(D d, Vec<D>* s) {
  for (int count = 16 / lanes<D> / 2; count; count /= 2)
    for (int j = 0; j < count; j++) s[j] = hn::Add(s[j], s[j + count]);
  return add_lanes(d, s[0]);
}

/// A sum of n terms by the law of gemm.h, except that a leaf has 16 partial sums instead of one: term k of the leaf
/// belongs to k % 16, in order of k. term(i, count, s) returns s plus the terms [i, i + count), plus +0 in the
/// other lanes (count may be 0 or less). l: a power of two. Of the l leaves only [from, to), a subtree.
template <class D, class Term>
HWY_INLINE Lane<D> subtree_of(D d, int64_t n, int64_t l, int64_t from, int64_t to, Term term) {
  constexpr int vectors = 16 / lanes<D>;
  Lane<D> part[64];  // sums of complete subtrees, as in a binary counter
  part[0] = 0;       // compilers do not see that l > 0
  int top = 0;
  for (int64_t leaf = from, k = from * n / l; leaf < to; leaf++) {
    const int64_t end = (leaf + 1) * n / l;
    Vec<D> s[vectors];
    for (auto& v : s) v = hn::Zero(d);
    for (; k + 16 <= end; k += 16)
      for (int j = 0; j < vectors; j++) s[j] = term(k + j * lanes<D>, int64_t{lanes<D>}, s[j]);
    if (k < end)
      for (int j = 0; j < vectors; j++)
        s[j] = term(k + j * lanes<D>, std::min<int64_t>(end - k - j * lanes<D>, lanes<D>), s[j]);
    k = end;
    Lane<D> t = add_partial_sums(d, s);
    for (int count = joins(leaf - from); count > 0; count--) t = part[--top] + t;
    part[top++] = t;
  }
  return part[0];
}
template <class D, class Term>
HWY_INLINE Lane<D> sum_of(D d, int64_t n, int64_t l, Term term) {
  return subtree_of(d, n, l, 0, l, term);
}

/// y[j] = or += the sum over the rows of n columns, by the law of gemm.h (one accumulator per column).
/// term(row, j, count, s) returns s plus the row's terms [j, j + count). l: a power of two.
template <class D, class Term>
HWY_INLINE void sum_rows_of(D d, int64_t rows, int64_t n, int64_t l, Lane<D>* y, bool accumulate, Term term) {
  constexpr int vectors = 8;
  for (int64_t j0 = 0; j0 < n; j0 += vectors * lanes<D>) {
    Vec<D> s[vectors], part[24][vectors];
    const int used = static_cast<int>(std::min<int64_t>(vectors, (n - j0 + lanes<D> - 1) / lanes<D>));
    int top = 0;
    for (int64_t leaf = 0, row = 0; leaf < l; leaf++) {
      for (auto& v : s) v = hn::Zero(d);
      for (const int64_t end = (leaf + 1) * rows / l; row < end; row++)
        if (used == vectors && j0 + vectors * lanes<D> <= n)
          HWY_UNROLL(8) for (int j = 0; j < vectors; j++) s[j] = term(row, j0 + j * lanes<D>, int64_t{lanes<D>}, s[j]);
        else
          for (int j = 0; j < used; j++) s[j] = term(row, j0 + j * lanes<D>, n - j0 - j * lanes<D>, s[j]);
      for (int count = joins(leaf); count > 0; count--) {
        top--;
        for (int j = 0; j < vectors; j++) s[j] = hn::Add(part[top][j], s[j]);
      }
      for (int j = 0; j < vectors; j++) part[top][j] = s[j];
      top++;
    }
    for (int j = 0; j < used; j++) {
      const int64_t i = j0 + j * lanes<D>;
      store(d, accumulate ? hn::Add(load(d, y + i, n - i), s[j]) : s[j], y + i, n - i);
    }
  }
}

/// The same of the picked rows, where all others are zeros: only leaves that have a row need to be visited. In a
/// balanced tree, neighbours among those join below whatever joins either to what is further away.
template <class D, class Term>
HWY_INLINE void sum_picked_rows_of(D d, int64_t count, const PickedRow* picked, int64_t n, Lane<D>* y, Term term) {
  constexpr int vectors = 8;
  for (int64_t j0 = 0; j0 < n; j0 += vectors * lanes<D>) {
    Vec<D> s[vectors], part[24][vectors];  // s: the last leaf; part: what is left of it, the join to it at level[...]
    int level[24], top = 0;
    const int used = static_cast<int>(std::min<int64_t>(vectors, (n - j0 + lanes<D> - 1) / lanes<D>));
    const bool whole = used == vectors && j0 + vectors * lanes<D> <= n;
    const auto join = [&](int below) HWY_ATTR {
      for (; top > 0 && level[top - 1] < below; top--)
        for (int j = 0; j < used; j++) s[j] = hn::Add(part[top - 1][j], s[j]);
    };
    for (auto& v : s) v = hn::Zero(d);
    for (int64_t i = 0; i < count;) {
      const int64_t leaf = picked[i].leaf;
      if (i > 0) {
        const int joint = std::bit_width(static_cast<uint64_t>(leaf ^ picked[i - 1].leaf));
        join(joint);
        for (int j = 0; j < used; j++) part[top][j] = s[j];
        level[top++] = joint;
        for (auto& v : s) v = hn::Zero(d);
      }
      for (; i < count && picked[i].leaf == leaf; i++)
        if (whole) HWY_UNROLL(8)
      for (int j = 0; j < vectors; j++) s[j] = term(picked[i].row, j0 + j * lanes<D>, int64_t{lanes<D>}, s[j]);
      else for (int j = 0; j < used; j++) s[j] = term(picked[i].row, j0 + j * lanes<D>, n - j0 - j * lanes<D>, s[j]);
    }
    join(64);
    for (int j = 0; j < used; j++) store(d, s[j], y + j0 + j * lanes<D>, n - j0 - j * lanes<D>);
  }
}

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
