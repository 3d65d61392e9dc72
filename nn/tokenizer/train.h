// Making a byte-level BPE tokenizer from text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nn/tokenizer/split.h"

namespace dtensor::nn {

struct TrainOptions {
  int64_t vocab_size = 0;
  KnownPattern pattern = KnownPattern::gpt2;
  std::vector<std::string> special = {};  // their ids are the first
};

// Counts the pieces of texts, then joins the pair of symbols that is most frequent, again and again; of equals the one
// with the lowest ids. The tokenizers package's trainers.BpeTrainer, with the byte alphabet, makes the same file of the
// same texts (each text an item of train_from_iterator).
class TokenizerTrainer {
 public:
  // Errors: fewer tokens than the alphabet's 256 and the special ones; a special token that is empty or stands twice.
  explicit TokenizerTrainer(TrainOptions options);
  void add(std::string_view text);
  // A tokenizer.json; with fewer tokens than asked for where no pair is left.
  nlohmann::ordered_json finish() const;

 private:
  TrainOptions options_;
  CharClasses classes_;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> counts_;  // of pieces
};

}  // namespace dtensor::nn
