// Gated linear attention against its recurrence, one token after another in float64.
#include "ops/cpu/gla.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

using namespace dtensor;
using List = std::vector<double>;

namespace {

struct Inputs {
  int64_t n, d = 12, e = 20;
  double scale = 0.3;
  List q, k, v, g, first, dout, dlast;
};
struct Results {
  List out, last, dq, dk, dv, dg, dfirst;
};

// Gates are in (-strength, 0).
Inputs inputs(int64_t n, double strength) {
  Inputs x{n};
  auto list = [](int64_t count, double seed) {
    List v;
    for (int64_t i = 0; i < count; ++i) v.push_back(float(std::sin(1.3 + seed + 2.3 * double(i) * (1 + 0.01 * seed))));
    return v;
  };
  x.q = list(n * x.d, 1), x.k = list(n * x.d, 2), x.v = list(n * x.e, 3), x.g = list(n * x.d, 4);
  x.first = list(x.d * x.e, 5), x.dout = list(n * x.e, 6), x.dlast = list(x.d * x.e, 7);
  for (double& g : x.g) g = float(-strength * (0.5 + 0.5 * g));
  return x;
}

Results plain(const Inputs& x) {
  auto [n, d, e] = std::tuple(size_t(x.n), size_t(x.d), size_t(x.e));
  Results r{List(n * e), {}, List(n * d), List(n * d), List(n * e), List(n * d), x.dlast};
  std::vector<List> states{x.first};
  for (size_t t = 0; t < n; ++t) {
    List s = states.back();
    for (size_t i = 0; i < d; ++i)
      for (size_t j = 0; j < e; ++j) {
        s[i * e + j] = std::exp(x.g[t * d + i]) * s[i * e + j] + x.k[t * d + i] * x.v[t * e + j];
        r.out[t * e + j] += x.scale * x.q[t * d + i] * s[i * e + j];
      }
    states.push_back(s);
  }
  r.last = states.back();
  List& ds = r.dfirst;
  for (size_t t = n; t-- > 0;)
    for (size_t i = 0; i < d; ++i)
      for (size_t j = 0; j < e; ++j) {
        double& s = ds[i * e + j];
        r.dq[t * d + i] += x.scale * x.dout[t * e + j] * states[t + 1][i * e + j];
        s += x.scale * x.q[t * d + i] * x.dout[t * e + j];
        r.dk[t * d + i] += s * x.v[t * e + j];
        r.dv[t * e + j] += s * x.k[t * d + i];
        s *= std::exp(x.g[t * d + i]);
        r.dg[t * d + i] += s * states[t][i * e + j];
      }
  return r;
}

Results in_chunks(const Inputs& x) {
  auto f = [](const List& list) { return std::vector<float>(list.begin(), list.end()); };
  auto q = f(x.q), k = f(x.k), v = f(x.v), g = f(x.g), first = f(x.first), dout = f(x.dout), dlast = f(x.dlast);
  auto out = v, last = first, dq = q, dk = q, dv = v, dg = q, dfirst = first;
  cpu::GatedLinear a{x.n, x.d, x.e, x.d, x.e, x.scale};
  cpu::Scratch scratch;
  cpu::gated_linear<float>(a, q.data(), k.data(), v.data(), g.data(), first.data(), out.data(), last.data(), scratch);
  cpu::gated_linear_backward<float>(a, dout.data(), dlast.data(), q.data(), k.data(), v.data(), g.data(), first.data(),
                                    {dq.data(), dk.data(), dv.data(), dg.data(), dfirst.data()}, scratch);
  auto list = [](const std::vector<float>& values) { return List(values.begin(), values.end()); };
  return {list(out), list(last), list(dq), list(dk), list(dv), list(dg), list(dfirst)};
}

// Relative to the largest, but of what is all but 0.
double difference(const List& a, const List& b) {
  double most = 0, scale = 1e-6;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::isnan(a[i]) ? 1e9 : std::abs(a[i] - b[i]));
  for (double x : b) scale = std::max(scale, std::abs(x));
  return most / scale;
}

}  // namespace

TEST_CASE("gated linear attention in chunks is the recurrence, whatever the gates: outputs 1e-5, gradients 1e-4") {
  for (double strength : {1e-4, 0.1, 8.0, 100.0, 1e4})
    for (int64_t n : {0, 1, 63, 64, 65, 1000}) {
      INFO("sequence " << n << ", gates to -" << strength);
      Inputs x = inputs(n, strength);
      Results one = plain(x), r = in_chunks(x);
      CHECK(difference(r.out, one.out) < 1e-5);
      CHECK(difference(r.last, one.last) < 1e-5);
      CHECK(difference(r.dq, one.dq) < 1e-4);
      CHECK(difference(r.dk, one.dk) < 1e-4);
      CHECK(difference(r.dv, one.dv) < 1e-4);
      CHECK(difference(r.dg, one.dg) < 1e-4);
      CHECK(difference(r.dfirst, one.dfirst) < 1e-4);
    }
}
