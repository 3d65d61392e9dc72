// Cutting text into the pieces in which merges happen ("pre-tokenization").
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "nn/tokenizer/unicode.h"

namespace dtensor::nn {

// The patterns of the GPT-2, Llama 3 and Qwen 2 families. Each cuts text into pieces that follow each other.
enum class KnownPattern : uint8_t { gpt2, llama3, qwen };
// "gpt2", "llama3", "qwen". Errors: another name.
KnownPattern pattern_by_name(std::string_view name);
std::string_view regex_of(KnownPattern pattern);
std::optional<KnownPattern> known_pattern(std::string_view regex);

// f(piece) for each piece of `text`, which is valid UTF-8. Written by hand: the same as the regular expression, which
// tests compare on random text, at 20 times its speed.
template <KnownPattern pattern, class F>
void for_pieces(const CharClasses& classes, std::string_view text, F f);

// A regular expression in Oniguruma's dialect (see dialect.h), by PCRE2. Its classes are of the Unicode version of the
// PCRE2 installed.
class Regex {
 public:
  // Errors: what is no regular expression, with its place.
  explicit Regex(std::string_view pattern);
  // f(begin, end) of each match that is not empty, from left to right. `text` is valid UTF-8. Errors: PCRE2's limits.
  void for_matches(std::string_view text, const std::function<void(size_t, size_t)>& f) const;
  const std::string& pattern() const { return pattern_; }

 private:
  std::string pattern_;
  std::shared_ptr<void> code_;
};

}  // namespace dtensor::nn

#include "nn/tokenizer/split-inl.h"
