// Element-wise row functions against the C library in float64, and the promise that bits do not depend on the place.
#include "ops/cpu/elementwise.h"

#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/cpu/rows.h"

using namespace dtensor;

namespace {

struct Function {
  const char* name;
  void (*f)(int64_t, const float*, float*);
  double (*exact)(double);
  double low, high, ulp;
};
const Function functions[] = {
    {"log1p", cpu::log1p<float>, std::log1p, -1, 3e38, 1.6},
    {"expm1", cpu::expm1<float>, std::expm1, -100, 88, 3.5},
    {"sin", cpu::sin<float>, std::sin, -3e38, 3e38, 1.7},
    {"cos", cpu::cos<float>, std::cos, -3e38, 3e38, 1.7},
    {"erf", cpu::erf<float>, std::erf, -30, 30, 2.6},
    {"floor", cpu::floor<float>, std::floor, -1e9, 1e9, 0},
    {"ceil", cpu::ceil<float>, std::ceil, -1e9, 1e9, 0},
    {"round", cpu::round<float>, std::nearbyint, -1e9, 1e9, 0},
    {"softplus", [](int64_t n, const float* x, float* y) { cpu::softplus(n, 1, 20, x, y); },
     [](double x) { return x > 20 ? x : std::log1p(std::exp(x)); }, -87, 100, 2},
};

}  // namespace

TEST_CASE("elementwise: float32 functions are within their errors of the float64 ones") {
  for (const Function& f : functions) {
    std::vector<float> x;
    for (uint32_t bits = 0; bits < 0xff800000u; bits += 5171) {
      float v = std::bit_cast<float>(bits);
      if (v >= f.low && v <= f.high) x.push_back(v);
    }
    std::vector<float> y(x.size());
    f.f(int64_t(x.size()), x.data(), y.data());
    double worst = 0, at = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      double exact = f.exact(x[i]);
      if (std::abs(exact) < 0x1p-126) continue;
      double error = std::abs(y[i] - exact) / std::ldexp(1, std::ilogb(exact) - 23);
      if (!(error <= worst)) worst = error, at = x[i];
    }
    INFO(f.name << " at " << at);
    CHECK(worst <= f.ulp);
  }
}

TEST_CASE("elementwise: an element has the same bits in every place") {
  std::vector<float> x;
  for (int i = 0; i < 67; ++i) x.push_back(float(std::sin(1.7 * i) * std::pow(10.0, i % 9 - 4)));
  x[40] = NAN, x[41] = INFINITY, x[42] = -0.0f, x[43] = -20000;
  for (const Function& f : functions) {
    std::vector<float> y(x.size());
    f.f(int64_t(x.size()), x.data(), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      float alone;
      f.f(1, &x[i], &alone);
      INFO(f.name << " of " << x[i]);
      CHECK(memcmp(&alone, &y[i], sizeof alone) == 0);
    }
  }
}
