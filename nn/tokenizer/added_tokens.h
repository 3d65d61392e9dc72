// Tokens that stand in text as they are, and are cut out of it before anything else: "added_tokens".
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "nn/tokenizer/unicode.h"

namespace dtensor::nn {

struct AddedToken {
  int32_t id;
  std::string content;
  bool single_word = false;             // only between characters that are of no word
  bool lstrip = false, rstrip = false;  // takes the white space before or behind it
  bool normalized = false;              // is looked for in normalized text
  bool special = false;                 // decoding leaves it out, where asked to
};

// Finds tokens in text: the leftmost first, the longest of those that begin at one place.
class TokenFinder {
 public:
  // Adds a token that stands in text as `text` (its content, normalized where it is looked for in such text).
  void add(const AddedToken& token, std::string_view text);
  bool empty() const { return nodes_.size() == 1; }
  // found(begin, end, id) of each token in `text`, from left to right; what lies between has none.
  void for_tokens(std::string_view text, const CharClasses& classes,
                  const std::function<void(size_t, size_t, int32_t)>& found) const;

 private:
  struct Node {
    std::map<uint8_t, uint32_t> next;
    int token = -1;  // that ends here
  };
  std::vector<Node> nodes_{1};
  std::vector<AddedToken> tokens_;
  std::array<bool, 256> first_{};  // bytes with which a token begins
};

}  // namespace dtensor::nn
