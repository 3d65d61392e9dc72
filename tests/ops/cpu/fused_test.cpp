// The row kernels of a Llama against plain float64 formulas, numeric differentiation, and the promises about bits.
#include "ops/cpu/fused.h"

#include <hwy/targets.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "ops/cpu/gemm.h"
#include "ops/cpu/rows.h"

using namespace dtensor;

namespace {

template <class T>
using Row = std::vector<T>;

template <class T>
bool same(const Row<T>& a, const Row<T>& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
Row<T> normal(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> f;
  Row<T> x(n);
  for (auto& a : x) a = static_cast<T>(f(random));
  return x;
}

/// The derivative of f(x) in the direction of x[i].
template <class F>
double slope(F f, Row<double> x, int64_t i) {
  const double h = 1e-6, x0 = x[i];
  x[i] = x0 + h;
  const double up = f(x);
  x[i] = x0 - h;
  return (up - f(x)) / (2 * h);
}

double weighted(const Row<double>& y, const Row<double>& dy) {
  double s = 0;
  for (size_t i = 0; i < y.size(); i++) s += y[i] * dy[i];
  return s;
}

constexpr double eps = 1e-5;

Row<double> rms_norm_exact(int64_t rows, int64_t d, const Row<double>& x, const Row<double>& w) {
  Row<double> y(rows * d);
  for (int64_t r = 0; r < rows; r++) {
    double mean = 0;
    for (int64_t j = 0; j < d; j++) mean += x[r * d + j] * x[r * d + j] / double(d);
    for (int64_t j = 0; j < d; j++) y[r * d + j] = x[r * d + j] / std::sqrt(mean + eps) * w[j];
  }
  return y;
}

Row<double> swiglu_exact(const Row<double>& gate, const Row<double>& up) {
  Row<double> y(gate.size());
  for (size_t i = 0; i < y.size(); i++) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return y;
}

struct Size {
  int64_t rows, d;
};
const Size sizes[] = {{0, 5}, {1, 1}, {3, 7}, {2, 16}, {5, 33}, {4, 130}};

}  // namespace

TEMPLATE_TEST_CASE("fused: rms_norm and its gradients", "", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-6;
  for (const Size& size : sizes) {
    const int64_t rows = size.rows, d = size.d;
    CAPTURE(rows, d);
    const auto x = normal<T>(rows * d, 1), w = normal<T>(d, 2), dy = normal<T>(rows * d, 3);
    const Row<double> x64(x.begin(), x.end()), w64(w.begin(), w.end()), dy64(dy.begin(), dy.end());
    Row<T> y(rows * d), rstd(rows), dx(rows * d), dw(d, T(7));
    cpu::rms_norm(rows, d, x.data(), w.data(), eps, y.data(), rstd.data());
    const auto exact = rms_norm_exact(rows, d, x64, w64);
    for (int64_t i = 0; i < rows * d; i++) REQUIRE(y[i] == Approx(exact[i]).epsilon(1e-6));
    cpu::rms_norm_backward(rows, d, dy.data(), x.data(), w.data(), rstd.data(), dx.data());
    cpu::rms_norm_backward_weight(rows, d, 0, d, dy.data(), x.data(), rstd.data(), dw.data());
    const auto of_x = [&](const Row<double>& at) { return weighted(rms_norm_exact(rows, d, at, w64), dy64); };
    const auto of_w = [&](const Row<double>& at) { return weighted(rms_norm_exact(rows, d, x64, at), dy64); };
    for (int64_t i = 0; i < rows * d; i++)
      REQUIRE(dx[i] == Approx(slope(of_x, x64, i)).epsilon(tolerance).margin(tolerance));
    for (int64_t j = 0; j < d; j++) REQUIRE(dw[j] == Approx(slope(of_w, w64, j)).epsilon(tolerance).margin(tolerance));

    Row<T> in_place = x;
    cpu::rms_norm(rows, d, in_place.data(), w.data(), eps, in_place.data(), rstd.data());
    CHECK(same(in_place, y));
  }
}

TEST_CASE(
    "fused: rms_norm has the same bits for any split of the rows, dw for any split of columns and t parts of rows") {
  const int64_t rows = 1024, d = 100;
  const auto x = normal<float>(rows * d, 1), w = normal<float>(d, 2), dy = normal<float>(rows * d, 3);
  Row<float> y(rows * d), rstd(rows), dx(rows * d), dw(d);
  cpu::rms_norm(rows, d, x.data(), w.data(), eps, y.data(), rstd.data());
  cpu::rms_norm_backward(rows, d, dy.data(), x.data(), w.data(), rstd.data(), dx.data());
  cpu::rms_norm_backward_weight(rows, d, 0, d, dy.data(), x.data(), rstd.data(), dw.data());
  for (int64_t t : {2, 4, 8}) {
    Row<float> y2(rows * d), rstd2(rows), dx2(rows * d), columns(d);
    std::vector<Row<float>> part(t, Row<float>(d));
    for (int64_t r = 0; r < t; r++) {
      const int64_t n = rows / t, i = r * n * d, begin = r * d / t, end = (r + 1) * d / t;
      cpu::rms_norm(n, d, &x[i], w.data(), eps, &y2[i], &rstd2[r * n]);
      cpu::rms_norm_backward(n, d, &dy[i], &x[i], w.data(), &rstd[r * n], &dx2[i]);
      cpu::rms_norm_backward_weight(n, d, 0, d, &dy[i], &x[i], &rstd[r * n], part[r].data());
      cpu::rms_norm_backward_weight(rows, d, begin, end, dy.data(), x.data(), rstd.data(), columns.data());
    }
    for (int64_t step = 1; step < t; step *= 2)
      for (int64_t r = 0; r < t; r += 2 * step)
        for (int64_t j = 0; j < d; j++) part[r][j] += part[r + step][j];
    CAPTURE(t);
    CHECK(same(y2, y));
    CHECK(same(rstd2, rstd));
    CHECK(same(dx2, dx));
    CHECK(same(columns, dw));
    CHECK(same(part[0], dw));
  }
}

TEMPLATE_TEST_CASE("fused: swiglu and its gradients", "", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 3e-6 : 1e-7;
  for (int64_t n : {0, 1, 5, 16, 37, 200}) {
    const auto gate = normal<T>(n, 1), up = normal<T>(n, 2), dy = normal<T>(n, 3);
    const Row<double> g(gate.begin(), gate.end()), u(up.begin(), up.end());
    Row<T> y(n), dgate(n), dup(n);
    cpu::swiglu(n, gate.data(), up.data(), y.data());
    cpu::swiglu_backward(n, dy.data(), gate.data(), up.data(), dgate.data(), dup.data());
    const auto exact = swiglu_exact(g, u);
    for (int64_t i = 0; i < n; i++) {
      REQUIRE(y[i] == Approx(exact[i]).epsilon(1e-6));
      const double by_gate = slope([&](const Row<double>& at) { return swiglu_exact(at, u)[i]; }, g, i);
      const double by_up = slope([&](const Row<double>& at) { return swiglu_exact(g, at)[i]; }, u, i);
      REQUIRE(dgate[i] == Approx(dy[i] * by_gate).epsilon(tolerance).margin(tolerance));
      REQUIRE(dup[i] == Approx(dy[i] * by_up).epsilon(tolerance).margin(tolerance));
      Row<T> alone(3);
      cpu::swiglu(1, &gate[i], &up[i], &alone[0]);
      cpu::swiglu_backward(1, &dy[i], &gate[i], &up[i], &alone[1], &alone[2]);
      REQUIRE(same(alone, Row<T>{y[i], dgate[i], dup[i]}));
    }
  }
}

TEMPLATE_TEST_CASE("fused: rotary turns pairs (i, i + d/2), and back", "", float, double) {
  using T = TestType;
  const int64_t batch = 2, positions = 5, at[positions] = {1000, 3, 1002, 0, 7};
  const double theta = 10000, tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-12;
  for (int64_t d : {2, 6, 32, 34, 128})
    for (int64_t heads : {0, 1, 3}) {
      CAPTURE(d, heads);
      Row<T> cos(positions * d / 2), sin(positions * d / 2), one_cos(d / 2), one_sin(d / 2);
      std::vector<double> frequencies;
      for (int64_t i = 0; i < d / 2; i++) frequencies.push_back(std::pow(theta, -2.0 * double(i) / double(d)));
      cpu::rotary_table(positions, at, d / 2, frequencies.data(), 1, cos.data(), sin.data());
      cpu::rotary_table(1, at + 3, d / 2, frequencies.data(), 1, one_cos.data(), one_sin.data());
      CHECK(same(one_cos, Row<T>(&cos[3 * d / 2], &cos[3 * d / 2] + d / 2)));
      CHECK(same(one_sin, Row<T>(&sin[3 * d / 2], &sin[3 * d / 2] + d / 2)));

      const cpu::Strides from{positions * heads * d, heads * d, d};    // batch, position, head
      const cpu::Strides to{positions * heads * d, d, positions * d};  // batch, head, position
      const auto x = normal<T>(batch * positions * heads * d, 5);
      Row<T> y(x.size()), back(x.size()), in_place = x, in_order(x.size());
      cpu::rotary(batch, positions, heads, d, d / 2, x.data(), from, cos.data(), sin.data(), false, y.data(), to);
      cpu::rotary(batch, positions, heads, d, d / 2, y.data(), to, cos.data(), sin.data(), true, back.data(), from);
      cpu::rotary(batch, positions, heads, d, d / 2, in_place.data(), from, cos.data(), sin.data(), false,
                  in_place.data(), from);
      cpu::rotary(batch, positions, heads, d, d / 2, x.data(), from, cos.data(), sin.data(), false, in_order.data(),
                  from);
      CHECK(same(in_place, in_order));
      for (int64_t b = 0; b < batch; b++)
        for (int64_t p = 0; p < positions; p++)
          for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < d / 2; i++) {
              const int64_t f = b * from.batch + p * from.position + h * from.head + i;
              const int64_t t = b * to.batch + p * to.position + h * to.head + i;
              const double angle = double(at[p]) * std::pow(theta, -2.0 * double(i) / double(d));
              const double c = std::cos(angle), s = std::sin(angle), low = x[f], high = x[f + d / 2];
              REQUIRE(y[t] == Approx(low * c - high * s).margin(tolerance));
              REQUIRE(y[t + d / 2] == Approx(high * c + low * s).margin(tolerance));
              REQUIRE(back[f] == Approx(low).margin(tolerance));
              REQUIRE(back[f + d / 2] == Approx(high).margin(tolerance));
            }
    }
}

TEMPLATE_TEST_CASE("fused: cross entropy over shards of the vocabulary", "", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-9, scale = 0.25;
  for (int64_t v : {8, 64, 1000, 1024})
    for (int64_t t : {1, 2, 4, 8}) {
      const auto x = normal<T>(v, 5);
      const Row<double> x64(x.begin(), x.end());
      const int64_t target = v * 5 / 7, part = v / t, l = std::max<int64_t>(8, cpu::leaves(v));
      T m = -std::numeric_limits<T>::infinity();
      for (int64_t r = 0; r < t; r++) m = std::max(m, cpu::max(part, &x[r * part]));
      Row<T> sums;
      for (int64_t r = 0; r < t; r++) sums.push_back(cpu::sum_exp(part, &x[r * part], m, nullptr, l / t));
      for (int64_t step = 1; step < t; step *= 2)
        for (int64_t r = 0; r < t; r += 2 * step) sums[r] += sums[r + step];
      CAPTURE(v, t);
      CHECK(sums[0] == cpu::sum_exp(v, x.data(), m, nullptr, l));  // the same bits
      const double log_sum = std::log(double(sums[0]));

      Row<T> dx(v), whole = x;
      for (int64_t r = 0; r < t; r++) {
        const int64_t local = target - r * part;
        cpu::cross_entropy_backward(part, &x[r * part], m, log_sum, local >= 0 && local < part ? local : -1, scale,
                                    &dx[r * part]);
      }
      cpu::cross_entropy_backward(v, whole.data(), m, log_sum, target, scale, whole.data());
      CHECK(same(whole, dx));
      const auto loss = [&](const Row<double>& at) {
        double s = 0;
        for (double a : at) s += std::exp(a);
        return scale * (std::log(s) - at[target]);
      };
      for (int64_t i = 0; i < v; i += 7) REQUIRE(dx[i] == Approx(slope(loss, x64, i)).margin(tolerance));
      REQUIRE(dx[target] == Approx(slope(loss, x64, target)).margin(tolerance));
    }
  cpu::cross_entropy_backward<T>(0, nullptr, 0, 0, -1, 1, nullptr);
}

TEMPLATE_TEST_CASE("fused: adamw is PyTorch's, over three steps", "", float, double) {
  using T = TestType;
  for (int64_t n : {0, 1, 7, 16, 37}) {
    auto p = normal<T>(n, 1), m = Row<T>(n), v = Row<T>(n);
    Row<double> p64(p.begin(), p.end()), m64(n), v64(n);
    const double lr = 1e-2, beta1 = 0.9, beta2 = 0.95, small = 1e-8, decay = 0.1, clip = 0.5;
    for (int step = 1; step <= 3; step++) {
      const auto grad = normal<T>(n, 10 + step);
      const cpu::AdamW a{lr, beta1, beta2, small, decay, 1 - std::pow(beta1, step), 1 - std::pow(beta2, step), clip};
      const auto p0 = p, m0 = m, v0 = v;
      cpu::adamw(n, a, p.data(), grad.data(), m.data(), v.data());
      for (int64_t i = 0; i < n; i++) {
        const double g = grad[i] * clip;
        p64[i] *= 1 - lr * decay;
        m64[i] = beta1 * m64[i] + (1 - beta1) * g;
        v64[i] = beta2 * v64[i] + (1 - beta2) * g * g;
        p64[i] -= lr / a.correction1 * m64[i] / (std::sqrt(v64[i]) / std::sqrt(a.correction2) + small);
        REQUIRE(p[i] == Approx(p64[i]).epsilon(2e-6));
        REQUIRE(m[i] == Approx(m64[i]).epsilon(2e-6).margin(1e-7));
        REQUIRE(v[i] == Approx(v64[i]).epsilon(2e-6));
        Row<T> alone = {p0[i], m0[i], v0[i]};
        cpu::adamw(1, a, &alone[0], &grad[i], &alone[1], &alone[2]);
        REQUIRE(same(alone, Row<T>{p[i], m[i], v[i]}));
      }
    }
  }
}

// A row that ends where no memory follows, and begins where none was before.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n)
      : page_(size_t(sysconf(_SC_PAGESIZE))),
        all_(static_cast<char*>(mmap(nullptr, 3 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    REQUIRE(all_ != MAP_FAILED);
    REQUIRE(mprotect(all_, page_, PROT_NONE) == 0);
    REQUIRE(mprotect(all_ + 2 * page_, page_, PROT_NONE) == 0);
    last = reinterpret_cast<T*>(all_ + 2 * page_) - n, first = reinterpret_cast<T*>(all_ + page_);
  }
  ~Guarded() { munmap(all_, 3 * page_); }
  Guarded(const Guarded&) = delete;

  T *first, *last;

 private:
  size_t page_;
  char* all_;
};

TEMPLATE_TEST_CASE("fused: part of a vector touches no memory beyond its elements", "", float, double) {
  using T = TestType;
  for (auto target : {int64_t(0), int64_t(HWY_AVX2)}) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (int64_t n = 0; n <= 35; ++n) {
      Guarded<T> gate(n), up(n), y(n);
      const auto g = normal<T>(n, 1), u = normal<T>(n, 2);
      for (bool at_end : {false, true}) {
        T *from = at_end ? gate.last : gate.first, *by = at_end ? up.last : up.first, *to = at_end ? y.last : y.first;
        std::copy(g.begin(), g.end(), from), std::copy(u.begin(), u.end(), by);
        if (!at_end) to[n] = T(7);
        cpu::swiglu(n, from, by, to);
        for (int64_t i = 0; i < n; ++i) {
          T alone;
          cpu::swiglu(1, &g[i], &u[i], &alone);
          REQUIRE(memcmp(&alone, to + i, sizeof(T)) == 0);
        }
        if (!at_end) REQUIRE(to[n] == T(7));
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST_CASE("fused: the same bits on every instruction set") {
  const int64_t rows = 9, d = 74, n = rows * d;
  std::vector<int64_t> at(rows);
  std::iota(at.begin(), at.end(), 0);
  const auto x = normal<float>(n, 1), w = normal<float>(d, 2), dy = normal<float>(n, 3), up = normal<float>(n, 4);
  const auto everything = [&] {
    Row<float> all, y(n), z(n), m(n), v(n), rstd(rows), dw(d), cos(rows * d / 2), sin(rows * d / 2);
    const auto keep = [&](const Row<float>& a) { all.insert(all.end(), a.begin(), a.end()); };
    cpu::rms_norm(rows, d, x.data(), w.data(), eps, y.data(), rstd.data()), keep(y), keep(rstd);
    cpu::rms_norm_backward(rows, d, dy.data(), x.data(), w.data(), rstd.data(), y.data()), keep(y);
    cpu::rms_norm_backward_weight(rows, d, 0, d, dy.data(), x.data(), rstd.data(), dw.data(), 4), keep(dw);
    cpu::swiglu(n, x.data(), up.data(), y.data()), keep(y);
    cpu::swiglu_backward(n, dy.data(), x.data(), up.data(), y.data(), z.data()), keep(y), keep(z);
    const std::vector<double> frequencies(size_t(d / 2), 0.5);
    cpu::rotary_table(rows, at.data(), d / 2, frequencies.data(), 1, cos.data(), sin.data());
    cpu::rotary(1, rows, 1, d, d / 2, x.data(), {n, d, d}, cos.data(), sin.data(), false, y.data(), {n, d, d}), keep(y);
    cpu::cross_entropy_backward(n, x.data(), 5, 2.5, 3, 0.1, y.data()), keep(y);
    y = x;
    cpu::adamw(n, {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1}, y.data(), dy.data(), m.data(), v.data()), keep(y),
        keep(m), keep(v);
    return all;
  };
  const auto widest = everything();
  hwy::SetSupportedTargetsForTest(HWY_AVX2);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  const auto baseline = everything();
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  CHECK(same(widest, baseline));
}
