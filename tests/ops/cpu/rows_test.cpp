// Row kernels: accuracy against float64, the same bits in every place and on every instruction set, sums by the law.
#include "ops/cpu/rows.h"

#include <hwy/targets.h>

#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "ops/cpu/gemm.h"

using namespace dtensor;
using cpu::leaves;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
bool same(T a, T b) {
  return memcmp(&a, &b, sizeof(T)) == 0;
}
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T = float>
std::vector<T> normal(int64_t n, double deviation = 3) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<double> f(0, deviation);
  std::vector<T> x(n);
  for (auto& a : x) a = static_cast<T>(f(random));
  return x;
}

/// Runs f as if the processor had the baseline instruction set only.
template <class F>
auto on_baseline(F f) {
  hwy::SetSupportedTargetsForTest(HWY_AVX2);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  auto result = f();
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return result;
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_tanh_argument(double x) { return 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }

struct Map {
  const char* name;
  void (*f)(int64_t, const float*, float*);
  void (*f64)(int64_t, const double*, double*);
  double (*exact)(double);
  double low, high, ulp;  // the scanned range and the worst error allowed in it, as promised in the header
};
const Map maps[] = {
    {"exp", cpu::exp, cpu::exp, std::exp, -87.3, 88.7, 1.1},
    {"log", cpu::log, cpu::log, std::log, 1e-30, 60, 1.0},
    {"tanh", cpu::tanh, cpu::tanh, std::tanh, -12, 12, 2},
    {"sigmoid", cpu::sigmoid, cpu::sigmoid, sigmoid, -87, 90, 2.5},
    {"silu", cpu::silu, cpu::silu, [](double x) { return x * sigmoid(x); }, -87, 90, 2.5},
    {"gelu", cpu::gelu, cpu::gelu, [](double x) { return x * normal_cdf(x); }, -12.5, 20, 6},
    {"gelu_tanh", cpu::gelu_tanh, cpu::gelu_tanh, [](double x) { return x * sigmoid(gelu_tanh_argument(x)); }, -2, 20,
     6},
};

struct MapGradient {
  const char* name;
  void (*f)(int64_t, const float*, const float*, float*);
  void (*f64)(int64_t, const double*, const double*, double*);
  double (*of)(double);
};
const MapGradient gradients[] = {
    {"silu", cpu::silu_gradient, cpu::silu_gradient, maps[4].exact},
    {"gelu", cpu::gelu_gradient, cpu::gelu_gradient, maps[5].exact},
    {"gelu_tanh", cpu::gelu_tanh_gradient, cpu::gelu_tanh_gradient, maps[6].exact},
};

template <class T>
T tree(std::vector<T> part) {
  for (size_t step = 1; step < part.size(); step *= 2)
    for (size_t r = 0; r < part.size(); r += 2 * step) part[r] += part[r + step];
  return part[0];
}

/// The law as written in the header, for terms that need no fused multiply-add.
template <class T>
T law(const T* x, int64_t n, int64_t leaf, int64_t count, int64_t l) {
  if (count > 1) return law(x, n, leaf, count / 2, l) + law(x, n, leaf + count / 2, count / 2, l);
  T t[16] = {};
  const int64_t begin = leaf * n / l, end = (leaf + 1) * n / l;
  for (int64_t k = begin; k < end; k++) t[(k - begin) % 16] += x[k];
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) t[i] += t[i + step];
  return t[0];
}

}  // namespace

TEST_CASE("rows: maps are accurate over a scan") {
  for (const Map& map : maps) {
    std::vector<float> x;
    for (double v = map.low; v < map.high; v += (map.high - map.low) / 400001) x.push_back(static_cast<float>(v));
    std::vector<float> y(x.size());
    map.f(x.size(), x.data(), y.data());
    double worst = 0, at = 0;
    for (size_t i = 0; i < x.size(); i++) {
      const double exact = map.exact(x[i]);
      if (std::abs(exact) < 0x1p-126) continue;
      const float near = std::abs(static_cast<float>(exact));
      const double error = std::abs(y[i] - exact) / (std::nextafter(near, inf) - near);
      if (!(error <= worst)) worst = error, at = x[i];
    }
    CAPTURE(map.name, worst, at);
    CHECK(worst <= map.ulp);

    const std::vector<double> x64(x.begin(), x.begin() + 1003);
    std::vector<double> y64(x64.size());
    map.f64(x64.size(), x64.data(), y64.data());
    for (size_t i = 0; i < x64.size(); i++) REQUIRE(y64[i] == Approx(map.exact(x64[i])).epsilon(1e-12));
  }
}

TEST_CASE("rows: special values") {
  struct Case {
    const char* name;
    void (*f)(int64_t, const float*, float*);
    float x, y;
  };
  const Case cases[] = {
      {"exp", cpu::exp, -inf, 0},
      {"exp", cpu::exp, inf, inf},
      {"exp", cpu::exp, 0, 1},
      {"exp", cpu::exp, -1000, 0},
      {"exp", cpu::exp, 1000, inf},
      {"exp", cpu::exp, NaN, NaN},
      {"exp", cpu::exp, std::bit_cast<float>(0x7fc00001), NaN},
      {"log", cpu::log, 0, -inf},
      {"log", cpu::log, -0.0f, -inf},
      {"log", cpu::log, 1, 0},
      {"log", cpu::log, inf, inf},
      {"log", cpu::log, -1, NaN},
      {"log", cpu::log, NaN, NaN},
      {"log", cpu::log, 1e-40f, static_cast<float>(std::log(double(1e-40f)))},
      {"log", cpu::log, -inf, NaN},
      {"tanh", cpu::tanh, inf, 1},
      {"tanh", cpu::tanh, -inf, -1},
      {"tanh", cpu::tanh, 0, 0},
      {"tanh", cpu::tanh, NaN, NaN},
      {"sigmoid", cpu::sigmoid, inf, 1},
      {"sigmoid", cpu::sigmoid, -inf, 0},
      {"silu", cpu::silu, 1000, 1000},
      {"silu", cpu::silu, -1000, 0},
      {"gelu", cpu::gelu, 1e30f, 1e30f},
      {"gelu", cpu::gelu, -1e30f, 0},
      {"gelu", cpu::gelu, NaN, NaN},
      {"gelu", cpu::gelu, 0, 0},
      {"gelu_tanh", cpu::gelu_tanh, -1e6f, 0},
  };
  for (const Case& c : cases) {
    float y = 5;
    c.f(1, &c.x, &y);
    CAPTURE(c.name, c.x, c.y, y);
    CHECK(((std::isnan(c.y) && std::isnan(y)) || y == c.y));
  }
}

TEST_CASE("rows: gradients of the maps equal numeric differentiation") {
  for (const MapGradient& g : gradients) {
    CAPTURE(g.name);
    const auto x = normal<double>(257), dy = normal<double>(257, 1);
    std::vector<double> dx(x.size());
    g.f64(x.size(), dy.data(), x.data(), dx.data());
    const std::vector<float> x32(x.begin(), x.end()), dy32(dy.begin(), dy.end());
    std::vector<float> dx32(x.size());
    g.f(x.size(), dy32.data(), x32.data(), dx32.data());
    for (size_t i = 0; i < x.size(); i++) {
      const double h = 1e-5, want = dy[i] * (g.of(x[i] + h) - g.of(x[i] - h)) / (2 * h);
      REQUIRE(dx[i] == Approx(want).epsilon(1e-6).margin(1e-8));
      REQUIRE(dx32[i] == Approx(want).epsilon(1e-5).margin(2e-6));
    }
  }
}

TEST_CASE("rows: an element has the same bits in every place") {
  for (int64_t n : {1, 2, 7, 8, 15, 16, 17, 33, 64, 100, 255}) {
    const auto x = normal(n + 5);
    for (const Map& map : maps)
      for (int64_t offset : {0, 1, 5}) {
        std::vector<float> y(n + 1, 99.f);
        map.f(n, x.data() + offset, y.data());
        bool equal = y[n] == 99.f;
        for (int64_t i = 0; i < n; i++) {
          float alone;
          map.f(1, &x[offset + i], &alone);
          equal = equal && same(alone, y[i]);
        }
        CAPTURE(map.name, n, offset);
        CHECK(equal);
      }
  }
}

TEST_CASE("rows: n == 0") {
  const float* none = nullptr;
  for (const Map& map : maps) map.f(0, none, nullptr);
  CHECK(cpu::max(0, none) == -inf);
  CHECK(cpu::min(0, none) == inf);
  CHECK(same(cpu::sum(0, none), 0.f));
  CHECK(same(cpu::sum_squares(0, none), 0.f));
  CHECK(same(cpu::dot(0, none, none, 8), 0.f));
  CHECK(same(cpu::sum_exp(0, none, -inf, nullptr), 0.f));
  cpu::scale<float>(0, 2, none, nullptr);
  std::vector<float> y = {1, 2, 3};
  cpu::sum_rows(0, 3, none, 3, y.data(), true);
  CHECK(y == std::vector<float>{1, 2, 3});
  cpu::sum_rows(0, 3, none, 3, y.data(), false);
  CHECK(y == std::vector<float>{0, 0, 0});
}

TEST_CASE("rows: sums follow the law and agree with float64") {
  for (int64_t n : {1, 3, 15, 16, 17, 31, 64, 127, 128, 255, 384, 768, 1000, 4097, 32000}) {
    const auto x = normal(n), w = normal(n, 1);
    const int64_t l = leaves(n);
    std::vector<float> e(n);
    const float m = cpu::max(n, x.data());
    double sum = 0, squares = 0, dot = 0, exps = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
      sum += x[i], squares += double(x[i]) * x[i], dot += double(x[i]) * w[i], exps += std::exp(double(x[i]) - m);
      size += std::abs(x[i]) * (1 + std::abs(w[i]));
    }
    CAPTURE(n);
    CHECK(m == *std::max_element(x.begin(), x.end()));
    CHECK(cpu::min(n, x.data()) == *std::min_element(x.begin(), x.end()));
    CHECK(same(cpu::sum(n, x.data()), law(x.data(), n, 0, l, l)));
    CHECK(std::abs(cpu::sum(n, x.data()) - sum) <= 1e-6 * size);
    CHECK(std::abs(cpu::dot(n, x.data(), w.data()) - dot) <= 1e-6 * size);
    CHECK(cpu::sum_squares(n, x.data()) == Approx(squares).epsilon(1e-6));
    const float s = cpu::sum_exp(n, x.data(), m, e.data());
    CHECK(s == Approx(exps).epsilon(1e-6));
    CHECK(same(s, law(e.data(), n, 0, l, l)));
    CHECK(same(s, cpu::sum_exp(n, x.data(), m, nullptr)));

    const std::vector<double> x64(x.begin(), x.end());
    CHECK(same(cpu::sum(n, x64.data()), law(x64.data(), n, 0, l, l)));
    CHECK(cpu::sum_exp(n, x64.data(), m, nullptr) == Approx(exps).epsilon(1e-12));
  }
}

TEST_CASE("rows: parts of a sum, added in a tree over ranks, have the bits of the whole") {
  for (int64_t n : {8, 24, 64, 256, 768, 1024, 11008})
    for (int64_t t : {2, 4, 8})
      for (bool given : {false, true}) {
        const int64_t l = given ? std::max<int64_t>(8, leaves(n)) : leaves(n), part = n / t, lp = given ? l / t : 0;
        if (l < t) continue;
        const auto x = normal(n), w = normal(n, 1);
        std::vector<float> sums, squares, dots, exps;
        for (int64_t r = 0; r < t; r++) {
          const float *a = x.data() + r * part, *b = w.data() + r * part;
          sums.push_back(cpu::sum(part, a, lp));
          squares.push_back(cpu::sum_squares(part, a, lp));
          dots.push_back(cpu::dot(part, a, b, lp));
          exps.push_back(cpu::sum_exp(part, a, 2.5f, nullptr, lp));
        }
        const int64_t lw = given ? l : 0;
        CAPTURE(n, t, given);
        CHECK(same(tree(sums), cpu::sum(n, x.data(), lw)));
        CHECK(same(tree(squares), cpu::sum_squares(n, x.data(), lw)));
        CHECK(same(tree(dots), cpu::dot(n, x.data(), w.data(), lw)));
        CHECK(same(tree(exps), cpu::sum_exp(n, x.data(), 2.5f, nullptr, lw)));
      }
}

TEST_CASE("rows: column sums follow the law over the rows, and columns and rows may be split") {
  for (int64_t rows : {1, 8, 100, 256, 1024})
    for (int64_t n : {1, 16, 77, 128, 131, 300}) {
      const int64_t stride = n + 3, l = std::max<int64_t>(8, leaves(rows));
      const auto x = normal(rows * stride);
      std::vector<float> y(n), split(n, 1.f), ones(n, 1.f);
      cpu::sum_rows(rows, n, x.data(), stride, y.data(), false, l);
      for (int64_t j = 0; j < n; j++) {
        double s = 0, size = 0;
        for (int64_t r = 0; r < rows; r++) s += x[r * stride + j], size += std::abs(x[r * stride + j]);
        REQUIRE(std::abs(y[j] - s) <= 1e-6 * size);
      }
      CAPTURE(rows, n);
      cpu::sum_rows(rows, n, x.data(), stride, ones.data(), true, l);
      cpu::sum_rows(rows, n / 3, x.data(), stride, split.data(), true, l);
      cpu::sum_rows(rows, n - n / 3, x.data() + n / 3, stride, split.data() + n / 3, true, l);
      CHECK(same(split, ones));
      for (int64_t t : {2, 4, 8}) {
        if (rows % t) continue;
        std::vector<std::vector<float>> part(t, std::vector<float>(n));
        for (int64_t r = 0; r < t; r++)
          cpu::sum_rows(rows / t, n, x.data() + r * (rows / t) * stride, stride, part[r].data(), false, l / t);
        for (int64_t step = 1; step < t; step *= 2)
          for (int64_t r = 0; r < t; r += 2 * step)
            for (int64_t j = 0; j < n; j++) part[r][j] += part[r + step][j];
        CHECK(same(part[0], y));
      }
    }
}

TEST_CASE("rows: sums of picked rows have the bits of sums over all rows, the others zeros") {
  for (int64_t rows : {1, 8, 100, 257, 4096})
    for (int64_t n : {1, 16, 77, 128, 300})
      for (int every : {1, 2, 7, 100, 5000}) {
        const int64_t l = std::max<int64_t>(8, leaves(rows)), stride = n + 1;
        auto x = normal(rows * stride), all = x;
        std::vector<cpu::PickedRow> picked;
        int64_t leaf = 0;
        for (int64_t r = 0; r < rows; r++) {
          while ((leaf + 1) * rows / l <= r) leaf++;
          if ((r * 2654435761u >> 7) % every == 0)
            picked.push_back({r, leaf});
          else
            std::fill_n(all.data() + r * stride, n, 0.f);
        }
        std::vector<float> y(n, 9.f), expected(n);
        cpu::sum_picked_rows(int64_t(picked.size()), picked.data(), n, x.data(), stride, y.data());
        cpu::sum_rows(rows, n, all.data(), stride, expected.data(), false, l);
        CAPTURE(rows, n, every, picked.size());
        CHECK(same(y, expected));
      }
}

TEST_CASE("rows: a sum of squares in float64 may be shared by its subtrees, also where they differ in length") {
  for (int64_t n : {0, 1, 100, 1000, 4097, 33333}) {
    const auto x = normal(n);
    const std::vector<double> wide(x.begin(), x.end());
    const int64_t l = std::max<int64_t>(8, leaves(n));
    const double whole = cpu::sum_squares_f64(n, x.data(), l, 0, l);
    CAPTURE(n);
    CHECK(same(whole, cpu::sum_squares(n, wide.data(), l)));
    CHECK(same(whole, cpu::sum_squares_f64(n, wide.data(), l, 0, l)));
    for (int64_t parts : {2, 4, 8}) {
      std::vector<double> sums;
      for (int64_t i = 0; i < parts; i++)
        sums.push_back(cpu::sum_squares_f64(n, x.data(), l, i * l / parts, (i + 1) * l / parts));
      CHECK(same(tree(sums), whole));
    }
  }
}

TEST_CASE("rows: scale and max") {
  const auto x = normal(37);
  std::vector<float> y(37);
  cpu::scale(37, 0.3f, x.data(), y.data());
  bool equal = true;
  for (int i = 0; i < 37; i++) equal = equal && same(y[i], 0.3f * x[i]);
  CHECK(equal);
  const std::vector<float> negative = {-3, NaN, -1, -2};
  for (int n = 1; n <= 4; ++n) {  // NaN is the second
    CHECK(std::isnan(cpu::max(n, negative.data())) == (n > 1));
    CHECK(std::isnan(cpu::min(n, negative.data())) == (n > 1));
  }
  CHECK(cpu::max(2, negative.data() + 2) == -1);
  CHECK(cpu::min(2, negative.data() + 2) == -2);
  CHECK(!std::signbit(cpu::max(1, std::vector<float>{-0.0f}.data())));
}

TEST_CASE("rows: the same bits on every instruction set") {
  const auto x = normal(1237), w = normal(1237, 1);
  auto everything = [&] {
    std::vector<float> all, y(x.size());
    for (const Map& map : maps) map.f(x.size(), x.data(), y.data()), all.insert(all.end(), y.begin(), y.end());
    for (const MapGradient& g : gradients)
      g.f(x.size(), w.data(), x.data(), y.data()), all.insert(all.end(), y.begin(), y.end());
    for (int64_t n : {5, 9, 100, 1237}) {
      all.push_back(cpu::sum(n, x.data()));
      all.push_back(cpu::dot(n, x.data(), w.data()));
      all.push_back(cpu::sum_exp(n, x.data(), 3.f, y.data()));
      all.push_back(cpu::max(n, x.data()));
    }
    cpu::sum_rows(10, 123, x.data(), 123, y.data(), false);
    all.insert(all.end(), y.begin(), y.begin() + 123);
    const cpu::PickedRow picked[] = {{1, 0}, {2, 0}, {4, 1}, {9, 3}};
    cpu::sum_picked_rows(4, picked, 123, x.data(), 123, y.data());
    all.insert(all.end(), y.begin(), y.begin() + 123);
    all.push_back(float(cpu::sum_squares_f64(1237, x.data(), 16, 0, 16)));
    return all;
  };
  CHECK(same(everything(), on_baseline(everything)));
  const std::vector<double> x64(x.begin(), x.end());
  const auto sum64 = [&] { return cpu::sum(777, x64.data()); };
  CHECK(same(sum64(), on_baseline(sum64)));
}
