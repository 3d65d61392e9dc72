#include "nn/generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dtensor/random.h"
#include "placement/error.h"

namespace dtensor::nn {

void SamplingOptions::check_for(const char* who) const {
  check(std::isfinite(temperature) && temperature >= 0,
        "[{}] temperature is {}; it is 0 (greedy) or positive, and finite", who, temperature);
  check(top_k >= 0, "[{}] top_k is {}; it is a number of tokens, or 0 for all", who, top_k);
  check(top_p > 0 && top_p <= 1, "[{}] top_p is {}; it is above 0 and at most 1", who, top_p);
}

double draw(uint64_t seed, const DrawPlace& place) {
  std::string_view prompt(reinterpret_cast<const char*>(place.prompt.data()), place.prompt.size_bytes());
  RandomStream stream{seed, "generate", prompt, place.position, place.repetition};
  float halves[2];
  fill_unit(stream.key(), {2}, whole_box({2}), halves);
  return halves[0] + halves[1] * 0x1p-24;
}

namespace {

struct Candidate {
  double weight;
  int32_t id;
  // Less likely; of equal ones the larger id.
  bool operator<(const Candidate& o) const { return weight != o.weight ? weight < o.weight : id > o.id; }
};

// The likeliest first, no more of them than the options leave. A heap gives them one by one, so that a large vocabulary
// is never sorted.
std::vector<Candidate> likeliest(std::vector<Candidate> all, const SamplingOptions& options) {
  std::make_heap(all.begin(), all.end());
  size_t left = all.size(), most = options.top_k ? std::min(left, size_t(options.top_k)) : left;
  std::vector<Candidate> list;
  auto pop = [&] {
    std::pop_heap(all.begin(), all.begin() + int64_t(left));
    list.push_back(all[--left]);
  };
  if (options.top_k)
    while (list.size() < most) pop();
  double total = 0;
  for (const Candidate& c : options.top_k ? list : all) total += c.weight;
  double sum = 0;
  size_t n = 0;
  for (; n < most && (n == 0 || sum < options.top_p * total); ++n) {
    if (n == list.size()) pop();
    sum += list[n].weight;
  }
  list.resize(n);
  return list;
}

}  // namespace

int32_t sample(std::span<const float> logits, const SamplingOptions& options, double uniform) {
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    check(!std::isnan(logits[i]), "[sample] the logit of token {} is NaN", i);
    if (logits[i] > logits[best]) best = i;
  }
  check(!logits.empty() && std::isfinite(logits[best]), "[sample] none of {} logits is the largest and finite",
        logits.size());
  if (options.temperature == 0) return int32_t(best);
  std::vector<Candidate> list;
  for (size_t i = 0; i < logits.size(); ++i)
    list.push_back({std::exp((double(logits[i]) - logits[best]) / options.temperature), int32_t(i)});
  if (options.top_k || options.top_p < 1) list = likeliest(std::move(list), options);
  double total = 0, sum = 0;
  for (const Candidate& c : list) total += c.weight;
  int32_t last = int32_t(best);  // where rounding leaves the number beyond the sum
  for (const Candidate& c : list) {
    if (c.weight == 0) continue;
    last = c.id, sum += c.weight;
    if (uniform * total < sum) break;
  }
  return last;
}

}  // namespace dtensor::nn
