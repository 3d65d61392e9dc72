// Attention against plain float64 formulas and numeric differentiation, and the promises about bits.
#include "ops/cpu/attention.h"

#include <hwy/targets.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

using namespace dtensor;
using cpu::Attention;

namespace {

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Inputs and results of one head; all rows are `stride` apart.
template <class T>
struct Head {
  Attention a;
  int64_t stride;
  std::vector<T> q, k, v, dout, out, lse, dq, dk, dv;

  explicit Head(Attention a, int64_t gap = 3) : a(a), stride(a.head_dim + gap) {
    std::mt19937 random(static_cast<unsigned>(a.queries + a.keys * 3 + a.head_dim * 7));
    std::normal_distribution<double> normal;
    for (auto* x : {&q, &dout}) x->resize(a.queries * stride);
    for (auto* x : {&k, &v}) x->resize(a.keys * stride);
    for (auto* x : {&q, &k, &v, &dout})
      for (auto& f : *x) f = static_cast<T>(normal(random));
    out = dq = std::vector<T>(q.size(), T(9));
    lse.assign(a.queries, T(9));
    dk = dv = std::vector<T>(k.size(), T(0.5));  // gradients are added
  }
  /// Queries [i, i + n) only, into the same results.
  void run(int64_t i, int64_t n, bool backward) {
    cpu::Scratch scratch;
    Attention part = a;
    part.queries = n, part.query_begin += i;
    const int64_t at = i * stride;
    cpu::attention(part, q.data() + at, stride, k.data(), stride, v.data(), stride, out.data() + at, stride,
                   lse.data() + i, scratch);
    if (backward)
      cpu::attention_backward(part, q.data() + at, stride, k.data(), stride, v.data(), stride, out.data() + at, stride,
                              dout.data() + at, stride, lse.data() + i, dq.data() + at, stride, dk.data(), stride,
                              dv.data(), stride, scratch);
  }
};

/// Naive float64 attention with all scores in memory.
struct Exact {
  std::vector<double> out, lse, dq, dk, dv;

  template <class T>
  explicit Exact(const Head<T>& h) {
    const auto [n, m, d] = std::tuple{h.a.queries, h.a.keys, h.a.head_dim};
    out.resize(n * h.stride), dq = out, dk.resize(m * h.stride), dv = dk;
    for (int64_t i = 0; i < n; i++) {
      std::vector<double> p(m);
      double max = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0;
      for (int64_t j = 0; j < m; j++) {
        for (int64_t c = 0; c < d; c++)
          p[j] += h.a.scale * double(h.q[i * h.stride + c]) * double(h.k[j * h.stride + c]);
        if (h.a.causal && h.a.key_begin + j > h.a.query_begin + i) p[j] = -std::numeric_limits<double>::infinity();
        max = std::max(max, p[j]);
      }
      for (auto& s : p) s = std::isinf(max) ? 0 : std::exp(s - max), sum += s;
      lse.push_back(sum > 0 ? max + std::log(sum) : max);
      std::vector<double> dp(m);
      for (int64_t j = 0; j < m; j++) {
        if (sum > 0) p[j] /= sum;
        for (int64_t c = 0; c < d; c++) {
          out[i * h.stride + c] += p[j] * double(h.v[j * h.stride + c]);
          dv[j * h.stride + c] += p[j] * double(h.dout[i * h.stride + c]);
          dp[j] += double(h.dout[i * h.stride + c]) * double(h.v[j * h.stride + c]);
        }
        delta += p[j] * dp[j];
      }
      for (int64_t j = 0; j < m; j++)
        for (int64_t c = 0; c < d; c++) {
          const double ds = p[j] * (dp[j] - delta) * h.a.scale;
          dq[i * h.stride + c] += ds * double(h.k[j * h.stride + c]);
          dk[j * h.stride + c] += ds * double(h.q[i * h.stride + c]);
        }
    }
  }
};

/// The largest |a - b - offset| over the rows, without the gaps between them.
template <class T>
double distance(const std::vector<T>& a, const std::vector<double>& b, int64_t stride, int64_t d, double offset = 0) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); i++)
    if (int64_t(i) % stride < d) {
      const double error = std::abs(double(a[i]) - b[i] - offset);
      if (!(error <= worst)) worst = error;
    }
  return worst;
}

const Attention cases[] = {
    // queries, keys, head_dim, query_begin, key_begin, causal, scale
    {0, 5, 4, 0, 0, true, 0.5},      {5, 0, 4, 0, 0, true, 0.5},
    {1, 1, 1, 0, 0, true, 1},        {7, 7, 3, 0, 0, true, 0.7},
    {65, 65, 32, 0, 0, true, 0.17},  {64, 128, 16, 64, 0, true, 0.25},
    {33, 130, 17, 97, 0, true, 0.3}, {130, 130, 33, 0, 0, false, 0.2},
    {300, 300, 20, 0, 0, true, 0.2}, {40, 90, 8, 10, 30, true, 0.4},  // rows before key 30 see nothing
    {20, 70, 64, 0, 50, false, 0.2}, {100, 100, 128, 1000, 1000, true, 0.1},
};

}  // namespace

TEMPLATE_TEST_CASE("attention: equals float64 with all scores, forward and backward", "", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  for (const Attention& a : cases) {
    Head<T> h(a);
    const Exact exact(h);
    h.run(0, a.queries, true);
    CAPTURE(a.queries, a.keys, a.head_dim, a.query_begin, a.key_begin, a.causal);
    CHECK(distance(h.out, exact.out, h.stride, a.head_dim) <= tolerance);
    CHECK(distance(h.dq, exact.dq, h.stride, a.head_dim) <= tolerance);
    CHECK(distance(h.dk, exact.dk, h.stride, a.head_dim, 0.5) <= tolerance);
    CHECK(distance(h.dv, exact.dv, h.stride, a.head_dim, 0.5) <= tolerance);
    for (int64_t i = 0; i < a.queries; i++) {
      if (std::isinf(exact.lse[i]))
        REQUIRE(double(h.lse[i]) == exact.lse[i]);
      else
        REQUIRE(double(h.lse[i]) == Approx(exact.lse[i]).margin(tolerance));
    }
    bool untouched = true;  // between the rows
    for (size_t i = 0; i < h.out.size(); i++)
      if (int64_t(i) % h.stride >= a.head_dim) untouched = untouched && h.out[i] == 9 && h.dq[i] == 9;
    for (size_t i = 0; i < h.dk.size(); i++)
      if (int64_t(i) % h.stride >= a.head_dim) untouched = untouched && h.dk[i] == T(0.5) && h.dv[i] == T(0.5);
    CHECK(untouched);
  }
}

TEST_CASE("attention: gradients equal numeric differentiation") {
  for (bool causal : {true, false}) {
    Head<double> h({9, 70, 5, 61, 0, causal, 0.6});
    h.run(0, h.a.queries, true);
    const auto loss = [&h] {
      Head<double> at = h;
      at.run(0, at.a.queries, false);
      double s = 0;
      for (int64_t i = 0; i < at.a.queries; i++)
        for (int64_t c = 0; c < at.a.head_dim; c++) s += at.out[i * at.stride + c] * at.dout[i * at.stride + c];
      return s;
    };
    const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient, double offset) {
      for (size_t i = 0; i < x.size(); i += 3) {
        if (int64_t(i) % h.stride >= h.a.head_dim) continue;
        const double x0 = x[i], step = 1e-5;
        x[i] = x0 + step;
        const double up = loss();
        x[i] = x0 - step;
        const double down = loss();
        x[i] = x0;
        REQUIRE(gradient[i] - offset == Approx((up - down) / (2 * step)).epsilon(1e-6).margin(1e-8));
      }
    };
    check(h.q, std::vector<double>(h.dq), 0);
    check(h.k, std::vector<double>(h.dk), 0.5);
    check(h.v, std::vector<double>(h.dv), 0.5);
  }
}

TEST_CASE("attention: a row has the same bits in any split of the queries") {
  for (bool causal : {true, false})
    for (int64_t d : {16, 33, 64}) {
      Head<float> whole({600, 600, d, 0, 0, causal, 0.2});
      whole.run(0, 600, true);
      for (int64_t t : {2, 3, 4, 8, 600}) {
        if (t == 600 && d != 33) continue;
        Head<float> split(whole.a);
        for (int64_t r = 0; r < t; r++) split.run(r * 600 / t, (r + 1) * 600 / t - r * 600 / t, true);
        CAPTURE(causal, d, t);
        CHECK(same(split.out, whole.out));
        CHECK(same(split.lse, whole.lse));
        CHECK(same(split.dq, whole.dq));
      }
    }
}

TEST_CASE("attention: dk and dv keep their bits if queries are split at multiples of query_block") {
  Head<float> whole({700, 700, 20, 200, 200, true, 0.2});
  whole.run(0, 700, true);
  Head<float> split(whole.a);
  for (auto [begin, end] : {std::pair{200, 256}, {256, 768}, {768, 900}}) split.run(begin - 200, end - begin, true);
  CHECK(same(split.dk, whole.dk));
  CHECK(same(split.dv, whole.dv));
}

TEST_CASE("attention: a row whose scores are all -inf is as one that sees nothing") {
  const float inf = std::numeric_limits<float>::infinity();
  Head<float> h({2, 3, 1, 0, 0, false, 1}, 0);
  h.q = {1, -1}, h.k = {-inf, -inf, -inf};
  h.run(0, 1, true);
  CHECK(h.out[0] == 0);
  CHECK(h.lse[0] == -inf);
  CHECK(h.dk == std::vector<float>{0.5, 0.5, 0.5});
  CHECK(h.dv == std::vector<float>{0.5, 0.5, 0.5});
}

TEST_CASE("attention: later keys do not change a causal row's bits") {
  Head<float> whole({200, 200, 32, 0, 0, true, 0.2}), half = whole;
  whole.run(0, 200, true);
  half.a.keys = half.a.queries = 128;  // a whole number of key blocks
  half.run(0, 128, false);
  half.out.resize(128 * half.stride), whole.out.resize(128 * half.stride);
  CHECK(same(half.out, whole.out));
}

TEST_CASE("attention: large scores neither overflow nor lose the sum") {
  Head<float> h({70, 70, 8, 0, 0, true, 1});
  for (auto& x : h.q) x *= 1000;
  const Exact exact(h);
  h.run(0, 70, true);
  CHECK(distance(h.out, exact.out, h.stride, 8) <= 2e-2);  // the scores are about 3000, so their rounding is 1e-4
  for (int64_t i = 0; i < 70; i++) REQUIRE(double(h.lse[i]) == Approx(exact.lse[i]).epsilon(1e-6));
}

TEST_CASE("attention: the same bits on every instruction set") {
  for (bool causal : {true, false}) {
    Head<float> widest({150, 150, 24, 0, 0, causal, 0.2}), baseline = widest;
    widest.run(0, 150, true);
    hwy::SetSupportedTargetsForTest(HWY_AVX2);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    baseline.run(0, 150, true);
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (auto member : {&Head<float>::out, &Head<float>::lse, &Head<float>::dq, &Head<float>::dk, &Head<float>::dv})
      CHECK(same(widest.*member, baseline.*member));
  }
}
