// What a tokenizer.json does to text before it is cut: "normalizer".
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "nn/tokenizer/split.h"

namespace dtensor::nn {

// Sequence, NFC, NFD, NFKC, NFKD (of utf8proc's Unicode version), Prepend, Replace (a text or a regular expression),
// Lowercase, Strip. Origins: a composed character comes from its base.
class Normalizer {
 public:
  Normalizer() = default;  // changes nothing
  // Errors: another type; a field that is missing or unknown.
  Normalizer(const nlohmann::ordered_json& section, const std::string& path);
  bool empty() const { return steps_.empty(); }
  bool keeps(std::string_view text) const;     // whether it is known that this text stays as it is
  bool is_local() const { return is_local_; }  // looks at characters and the marks behind them, no further
  AlignedText operator()(AlignedText text) const;

 private:
  using Step = std::function<AlignedText(AlignedText)>;
  void add(const nlohmann::ordered_json& section, const std::string& path);
  std::vector<Step> steps_;
  bool is_local_ = true;
  bool is_form_ = true;  // all steps are normal forms: these
  std::vector<int> forms_;
  std::vector<bool> stays_;  // of these: whether a character stands as it is
};

// Each occurrence of a text or a match of a regular expression becomes `content`.
struct Replace {
  std::string text;  // where `regex` is empty
  std::optional<Regex> regex = {};
  std::string content;
  AlignedText operator()(const AlignedText& from) const;
};

// `text` before the first character, whose origin it takes; an empty text stays.
AlignedText prepend(std::string_view text, const AlignedText& to);

}  // namespace dtensor::nn
