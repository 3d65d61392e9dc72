#include "nn/generate/sampling.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "placement/error.h"

using namespace dtensor;
using Catch::Matchers::Contains;

namespace {

// The share of each token among numbers spread evenly.
std::vector<double> shares(const std::vector<float>& logits, const nn::SamplingOptions& options) {
  std::vector<double> of(logits.size());
  const int n = 10000;
  for (int i = 0; i < n; ++i) of[size_t(nn::sample(logits, options, (i + 0.5) / n))] += 1.0 / n;
  return of;
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(float(std::log(p)) + 3);
  return logits;
}

}  // namespace

TEST_CASE("sampling: tokens come by their probabilities, of those that temperature, top_k and top_p leave") {
  struct Case {
    nn::SamplingOptions options;
    std::vector<double> expected;
  };
  const std::vector<float> logits = logs({0.1, 0.4, 0.2, 0.3});
  const Case cases[] = {
      {{.temperature = 0}, {0, 1, 0, 0}},
      {{.temperature = 0, .top_k = 3, .top_p = 0.9}, {0, 1, 0, 0}},
      {{.temperature = 1}, {0.1, 0.4, 0.2, 0.3}},
      {{.temperature = 0.5}, {0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3}},
      {{.temperature = 1e-6}, {0, 1, 0, 0}},
      {{.temperature = 1, .top_k = 1}, {0, 1, 0, 0}},
      {{.temperature = 1, .top_k = 2}, {0, 4.0 / 7, 0, 3.0 / 7}},
      {{.temperature = 1, .top_k = 100}, {0.1, 0.4, 0.2, 0.3}},
      {{.temperature = 1, .top_p = 0.39}, {0, 1, 0, 0}},
      {{.temperature = 1, .top_p = 0.41}, {0, 4.0 / 7, 0, 3.0 / 7}},
      {{.temperature = 1, .top_p = 0.75}, {0, 4.0 / 9, 2.0 / 9, 3.0 / 9}},
      {{.temperature = 1, .top_p = 1e-9}, {0, 1, 0, 0}},
      // The share is of what top_k left: 0.4 / 0.9 is less than 0.5, and is not without top_k.
      {{.temperature = 1, .top_k = 3, .top_p = 0.43}, {0, 1, 0, 0}},
      {{.temperature = 1, .top_p = 0.43}, {0, 4.0 / 7, 0, 3.0 / 7}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.options.temperature, c.options.top_k, c.options.top_p);
    std::vector<double> found = shares(logits, c.options);
    for (size_t i = 0; i < logits.size(); ++i) CHECK(found[i] == Approx(c.expected[i]).margin(2e-4));
  }
}

TEST_CASE("sampling: equal logits are in the order of their ids and a token that cannot be never comes") {
  float no = -std::numeric_limits<float>::infinity();
  CHECK(nn::sample(std::vector<float>{1, 2, 2}, {}, 0) == 1);
  CHECK(shares({2, 2, 2}, {.temperature = 1, .top_k = 2}) == shares({2, 2, no}, {.temperature = 1}));
  CHECK(nn::sample(std::vector<float>{7}, {.temperature = 1}, 0.5) == 0);
  for (double u : {0.0, 0.5, 1 - 0x1p-48}) CHECK(nn::sample(std::vector<float>{no, 1, no}, {.temperature = 1}, u) == 1);
}

TEST_CASE("sampling: a draw depends on seed, prompt, its repetition and the position, and on nothing else") {
  const std::vector<int32_t> one = {1, 2}, other = {1, 3}, same = {1, 2};
  std::set<double> all;
  for (uint64_t seed : {0, 1})
    for (const std::vector<int32_t>* prompt : {&one, &other})
      for (int64_t repetition : {0, 1})
        for (int64_t position : {2, 3}) all.insert(nn::draw(seed, {*prompt, repetition, position}));
  CHECK(all.size() == 16);
  CHECK(*all.begin() >= 0);
  CHECK(*all.rbegin() < 1);
  CHECK(nn::draw(5, {one, 0, 2}) == nn::draw(5, {same, 0, 2}));
  double mean = 0;
  for (int64_t i = 0; i < 1000; ++i) mean += nn::draw(5, {one, 0, i}) / 1000;
  CHECK(mean == Approx(0.5).margin(0.04));
}

TEST_CASE("sampling: logits that are no numbers and options that make no sense are errors") {
  float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  auto of = [](std::vector<float> logits) { return nn::sample(logits, {}, 0); };
  CHECK_THROWS_WITH(of({1, nan}), "[sample] the logit of token 1 is NaN");
  CHECK_THROWS_WITH(of({1, inf}), Contains("[sample] none of 2 logits is the largest and finite"));
  CHECK_THROWS_WITH(of({-inf}), Contains("logits is the largest and finite"));
  CHECK_THROWS_WITH(of({}), Contains("none of 0 logits"));
  auto with = [](nn::SamplingOptions o) { o.check_for("f"); };
  for (double t : {-1.0, double(nan), double(inf)})
    CHECK_THROWS_WITH(with({.temperature = t}),
                      Contains("[f] temperature is ") && Contains("; it is 0 (greedy) or positive, and finite"));
  CHECK_THROWS_WITH(with({.top_k = -1}), "[f] top_k is -1; it is a number of tokens, or 0 for all");
  for (double p : {0.0, -0.5, 1.5, double(nan)})
    CHECK_THROWS_WITH(with({.top_p = p}), Contains("[f] top_p is ") && Contains("; it is above 0 and at most 1"));
}
