// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>

namespace dtensor::nn {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy, the likeliest token and of equal ones the least id; nothing else counts then
  int64_t top_k = 0;       // of the likeliest k alone; 0: of all
  double top_p = 1;        // of the fewest likeliest, at least one, that have this share of the probability
  uint64_t seed = 0;

  // Errors name `who`: a temperature that is negative or not finite, top_k < 0, top_p outside of (0, 1].
  void check_for(const char* who) const;
};

// Which random number is drawn. It depends on nothing else, so that a text is the same on every mesh, in every batch,
// and with whatever was generated before it.
struct DrawPlace {
  std::span<const int32_t> prompt;
  int64_t repetition = 0;  // how often the same prompt was asked for before, for other texts of it
  int64_t position = 0;    // of the token, in its sequence
};

// A uniform number in [0, 1), a multiple of 2^-48.
double draw(uint64_t seed, const DrawPlace& place);

// A token by its logits, temperature before top_k before top_p, as transformers has them: where `uniform` falls among
// the probabilities of those that are left. Errors: logits that have NaN, or no finite largest one.
int32_t sample(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace dtensor::nn
