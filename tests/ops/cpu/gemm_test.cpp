// The matrix product against a plain float64 loop, and its law: the same bits for every sharding of M, N and K.
#include "ops/cpu/gemm.h"

#include <hwy/targets.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

using namespace dtensor::cpu;

namespace {

/// Matrices at odd offsets and row strides, so that nothing is aligned.
template <class T>
struct Problem {
  Form form;
  int64_t M, N, K, lda, ldb, ldc;
  std::vector<T> A, B;

  Problem(Form form, int64_t M, int64_t N, int64_t K)
      : form(form),
        M(M),
        N(N),
        K(K),
        lda((form == Form::TN ? M : K) + 3),
        ldb((form == Form::NT ? K : N) + 1),
        ldc(N + 5),
        A(1 + lda * (form == Form::TN ? K : M)),
        B(3 + ldb * (form == Form::NT ? N : K)) {
    std::mt19937 random(static_cast<unsigned>(M * 31 + N * 7 + K));
    std::normal_distribution<double> normal;
    for (auto& x : A) x = static_cast<T>(normal(random) * std::exp2(random() % 8));
    for (auto& x : B) x = static_cast<T>(normal(random));
  }
  const T* a(int64_t i, int64_t k) const { return A.data() + 1 + (form == Form::TN ? k * lda + i : i * lda + k); }
  const T* b(int64_t k, int64_t j) const { return B.data() + 3 + (form == Form::NT ? j * ldb + k : k * ldb + j); }

  std::vector<T> start(bool accumulate) const {
    std::vector<T> C(ldc * M);
    for (size_t i = 0; i < C.size(); i++) C[i] = accumulate ? T(i % 13) / 7 : T(-77);
    return C;
  }
  /// Rows [i, i+m), columns [j, j+n) and terms [k, k+depth).
  void part(std::vector<T>& C, int64_t i, int64_t m, int64_t j, int64_t n, int64_t k, int64_t depth, bool accumulate,
            int64_t l) const {
    Scratch scratch;
    gemm(form, m, n, depth, a(i, k), lda, b(k, j), ldb, C.data() + i * ldc + j, ldc, accumulate, l, scratch);
  }
  std::vector<T> whole(bool accumulate, int64_t l = 0) const {
    std::vector<T> C = start(accumulate);
    part(C, 0, M, 0, N, 0, K, accumulate, l);
    return C;
  }
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// The law as written in the header.
template <class T>
T law(const Problem<T>& p, int64_t i, int64_t j, int64_t leaf, int64_t count, int64_t l) {
  if (count > 1) return law(p, i, j, leaf, count / 2, l) + law(p, i, j, leaf + count / 2, count / 2, l);
  T s = 0;
  for (int64_t k = leaf * p.K / l; k < (leaf + 1) * p.K / l; k++) s = std::fma(*p.a(i, k), *p.b(k, j), s);
  return s;
}

struct Size {
  int64_t M, N, K;
};
const Form forms[] = {Form::NN, Form::NT, Form::TN};

template <class T>
void compare_with_law(Form form, Size size, bool accumulate) {
  const Problem<T> p(form, size.M, size.N, size.K);
  const std::vector<T> C = p.whole(accumulate), before = p.start(accumulate);
  const int64_t l = leaves(p.K);
  bool bits = true;
  for (int64_t s = 0; s < std::min<int64_t>(60, p.M * p.N); s++) {
    const int64_t i = (s * 7919 + 5) % p.M, j = (s * 104729 + 3) % p.N, at = i * p.ldc + j;
    const T sum = law(p, i, j, 0, l, l), want = accumulate ? before[at] + sum : sum;
    bits = bits && memcmp(&want, &C[at], sizeof(T)) == 0;
    long double exact = accumulate ? before[at] : 0, size_of_terms = 1e-30;
    for (int64_t k = 0; k < p.K; k++) {
      const long double term = static_cast<long double>(*p.a(i, k)) * *p.b(k, j);
      exact += term, size_of_terms += std::abs(term);
    }
    REQUIRE(std::abs(C[at] - exact) <= 1e-6L * (size_of_terms + std::abs(exact)));
  }
  CHECK(bits);
  bool untouched = true;  // between the rows
  for (int64_t i = 0; i < p.M; i++)
    for (int64_t j = p.N; j < p.ldc; j++) untouched = untouched && C[i * p.ldc + j] == before[i * p.ldc + j];
  CHECK(untouched);
}

}  // namespace

TEST_CASE("gemm: leaves are at most 127 long, a power of two") {
  CHECK(leaves(0) == 1);
  CHECK(leaves(1) == 1);
  CHECK(leaves(127) == 1);
  CHECK(leaves(128) == 2);
  CHECK(leaves(768) == 8);
  CHECK(leaves(11008) == 128);
  for (int64_t t : {2, 4, 8}) CHECK(leaves(2048 / t) == leaves(2048) / t);
}

TEST_CASE("gemm: equals the law and float64, all forms and odd sizes") {
  const Size sizes[] = {{1, 1, 0},     {5, 3, 0},     {1, 1, 1},    {1, 130, 33},   {7, 1, 128},   {6, 64, 100},
                        {12, 32, 65},  {11, 48, 129}, {13, 16, 64}, {13, 71, 255},  {37, 83, 768}, {64, 64, 32},
                        {3, 65, 4097}, {2, 130, 131}, {4, 17, 258}, {5, 33, 20011}, {2050, 3, 70}};
  for (Form form : forms)
    for (const Size& size : sizes)
      for (bool accumulate : {false, true}) {
        CAPTURE(int(form), size.M, size.N, size.K, accumulate);
        compare_with_law<float>(form, size, accumulate);
        compare_with_law<double>(form, size, accumulate);
      }
}

TEST_CASE("gemm: empty outputs are left alone") {
  Scratch scratch;
  float a = 1, c = 5;
  gemm(Form::NT, 0, 1, 1, &a, 1, &a, 1, &c, 1, false, 0, scratch);
  gemm(Form::NN, 1, 0, 1, &a, 1, &a, 1, &c, 1, false, 0, scratch);
  CHECK(c == 5);
  gemm<float>(Form::TN, 1, 1, 0, nullptr, 1, nullptr, 1, &c, 1, false, 0, scratch);
  CHECK((c == 0 && !std::signbit(c)));
}

TEST_CASE("gemm: shards of rows and columns have the bits of the whole") {
  const Size sizes[] = {{37, 83, 200}, {100, 129, 768}, {9, 64, 4160}};
  for (Form form : forms)
    for (const Size& size : sizes)
      for (bool accumulate : {false, true})
        for (int64_t t : {2, 3, 4, 8}) {
          const Problem<float> p(form, size.M, size.N, size.K);
          const auto whole = p.whole(accumulate);
          const auto cut = [t](int64_t n, int64_t r) { return r * n / t; };
          auto rows = p.start(accumulate), columns = rows, both = rows;
          for (int64_t r = 0; r < t; r++) {
            const int64_t i = cut(p.M, r), m = cut(p.M, r + 1) - i, j = cut(p.N, r), n = cut(p.N, r + 1) - j;
            p.part(rows, i, m, 0, p.N, 0, p.K, accumulate, 0);
            p.part(columns, 0, p.M, j, n, 0, p.K, accumulate, 0);
            for (int64_t q = 0; q < t; q++)
              p.part(both, i, m, cut(p.N, q), cut(p.N, q + 1) - cut(p.N, q), 0, p.K, accumulate, 0);
          }
          CAPTURE(int(form), size.M, size.N, size.K, accumulate, t);
          CHECK(same(rows, whole));
          CHECK(same(columns, whole));
          CHECK(same(both, whole));
        }
}

TEST_CASE("gemm: shards of K, added in a tree over ranks, have the bits of the whole") {
  for (Form form : forms)
    for (int64_t K : {8, 64, 256, 768, 1024, 5632, 11008})
      for (int64_t t : {2, 4, 8})
        for (bool given :
             {false, true}) {  // the number of leaves: by default, or at least 8 by a caller who knows the whole K
          const int64_t l = given ? std::max<int64_t>(8, leaves(K)) : leaves(K);
          if (l < t) continue;
          const Problem<float> p(form, 13, 67, K);
          const auto whole = p.whole(false, given ? l : 0);
          std::vector<std::vector<float>> parts(t);
          for (int64_t r = 0; r < t; r++) {
            parts[r] = p.start(false);
            p.part(parts[r], 0, p.M, 0, p.N, r * (K / t), K / t, false, given ? l / t : 0);
          }
          for (int64_t step = 1; step < t; step *= 2)
            for (int64_t r = 0; r < t; r += 2 * step)
              for (int64_t i = 0; i < p.M; i++)
                for (int64_t j = 0; j < p.N; j++) parts[r][i * p.ldc + j] += parts[r + step][i * p.ldc + j];
          CAPTURE(int(form), K, t, given);
          CHECK(same(parts[0], whole));
        }
}

TEST_CASE("gemm: the same bits on every instruction set") {
  for (Form form : forms) {
    const Problem<float> p(form, 33, 77, 300);
    const auto widest = p.whole(false);
    hwy::SetSupportedTargetsForTest(HWY_AVX2);  // the baseline
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    const auto baseline = p.whole(false);
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    CHECK(same(widest, baseline));
  }
}
