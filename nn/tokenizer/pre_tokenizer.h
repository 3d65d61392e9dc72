// How a tokenizer.json cuts text into pieces: "pre_tokenizer".
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "nn/tokenizer/split.h"

namespace dtensor::nn {

// Sequence, Split, ByteLevel (the last), Metaspace, Digits.
class PreTokenizer {
 public:
  PreTokenizer() = default;  // one piece
  // Errors: another type; a field that is missing or unknown; a step behind ByteLevel.
  PreTokenizer(const nlohmann::ordered_json& section, const std::string& path);

  // Whether a piece's symbols are its bytes.
  bool byte_level() const { return byte_level_; }
  // Whether it cuts by where in the text bytes came from.
  bool looks_at_origins() const { return looks_at_origins_; }
  // Where all it does is cut by a known pattern: that one.
  std::optional<KnownPattern> known() const { return known_; }

  // The pieces of `text` in order, without empty ones.
  std::vector<AlignedText> operator()(const AlignedText& text, const CharClasses& classes) const;

 private:
  using Pieces = std::vector<AlignedText>;
  using Step = std::function<void(const AlignedText&, const CharClasses&, Pieces&)>;
  void add(const nlohmann::ordered_json& section, const std::string& path);
  void add_split(class Section& s);
  void add_byte_level(class Section& s);
  void add_metaspace(class Section& s);

  std::vector<Step> steps_;
  bool byte_level_ = false, looks_at_origins_ = false;
  std::optional<KnownPattern> known_;
};

}  // namespace dtensor::nn
