#include "nn/tokenizer/added_tokens.h"

#include <algorithm>

namespace dtensor::nn {
namespace {

// The class of the character that ends before `at`, or that begins there; 0 at the ends of the text.
uint8_t class_before(std::string_view text, size_t at, const CharClasses& classes) {
  if (at == 0) return 0;
  size_t begin = at - 1;
  while (begin > 0 && (uint8_t(text[begin]) & 0xC0) == 0x80) --begin;
  return classes(utf8_at(&text[begin], text.data() + at).code);
}
uint8_t class_at(std::string_view text, size_t at, const CharClasses& classes) {
  return at == text.size() ? 0 : classes(utf8_at(text.data() + at, text.data() + text.size()).code);
}

}  // namespace

void TokenFinder::add(const AddedToken& token, std::string_view text) {
  if (text.empty()) return;
  uint32_t node = 0;
  for (char c : text) {
    auto [next, fresh] = nodes_[node].next.emplace(uint8_t(c), uint32_t(nodes_.size()));
    uint32_t to = next->second;
    if (fresh) nodes_.emplace_back();
    node = to;
  }
  nodes_[node].token = int(tokens_.size());
  tokens_.push_back(token);
  first_[uint8_t(text[0])] = true;
}

void TokenFinder::for_tokens(std::string_view text, const CharClasses& classes,
                             const std::function<void(size_t, size_t, int32_t)>& found) const {
  size_t done = 0;  // behind the last token found, with the white space that it took
  for (size_t at = 0; at < text.size();) {
    if (!first_[uint8_t(text[at])]) {
      ++at;
      continue;
    }
    uint32_t node = 0;
    int token = -1;
    size_t end = at;
    for (size_t i = at; i < text.size(); ++i) {
      auto next = nodes_[node].next.find(uint8_t(text[i]));
      if (next == nodes_[node].next.end()) break;
      node = next->second;
      if (nodes_[node].token >= 0) token = nodes_[node].token, end = i + 1;
    }
    if (token < 0) {
      ++at;
      continue;
    }
    const AddedToken& t = tokens_[size_t(token)];
    size_t begin = at;
    at = end;  // where the next is looked for
    if (t.single_word && ((class_before(text, begin, classes) | class_at(text, end, classes)) & CharClasses::word))
      continue;
    while (t.lstrip && begin > done && (class_before(text, begin, classes) & CharClasses::space)) do
        --begin;
      while (begin > done && (uint8_t(text[begin]) & 0xC0) == 0x80);
    while (t.rstrip && (class_at(text, end, classes) & CharClasses::space))
      end += size_t(utf8_at(text.data() + end, text.data() + text.size()).length);
    begin = std::max(begin, done);
    if (end <= begin) continue;
    found(begin, end, t.id);
    done = end;
  }
}

}  // namespace dtensor::nn
