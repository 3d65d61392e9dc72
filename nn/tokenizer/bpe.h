// Byte pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dtensor::nn {

// Tokens of a piece: an id, and how many bytes of the piece it stands for.
struct Symbol {
  int32_t id;
  uint32_t bytes;
};

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
};
using Vocabulary = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

struct BpeOptions {
  bool bytes = false;                             // the first symbols are bytes; else characters
  bool ignore_merges = false;                     // a piece that is a token is that token
  bool byte_fallback = false;                     // a character that is no token becomes tokens <0x00> ... <0xFF>
  bool fuse_unknown = false;                      // unknown characters side by side are one
  std::optional<int32_t> unknown = std::nullopt;  // without one, what is no token is left out
};

// From the lowest rank on, leftmost first, neighbours that are a merge become one symbol. Sources: Sennrich et al.
// 2016; the tokenizers package's BPE model, whose results these are. A piece of n symbols takes O(n log n).
class Bpe {
 public:
  using Options = BpeOptions;
  using Merge = std::pair<int32_t, int32_t>;
  // Merge i has rank i and makes the token whose text is its parts' joined. With `bytes`, the vocabulary's keys are raw
  // bytes. Errors: a merge of what is no token, or that makes no token.
  Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, const Options& options);

  // f(part) of the parts of a piece whose tokens, joined, are its own. Of characters with byte_fallback it is cut where
  // no merge joins what is on both sides, as before the "\u2581" of a word of SentencePiece's models; of bytes it is
  // whole.
  template <class F>
  void for_words(std::string_view piece, F f) const;
  // Appends the piece's tokens.
  void append(std::string_view piece, std::vector<Symbol>& symbols) const;
  const Vocabulary& vocabulary() const { return vocabulary_; }
  const Options& options() const { return options_; }

 private:
  struct Entry {
    uint64_t pair;  // left id << 32 | right id; empty where it is all ones
    uint32_t rank;
    int32_t id;
  };
  const Entry* find(int32_t left, int32_t right) const {
    uint64_t pair = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
    for (size_t i = slot(pair);; i = (i + 1) & (table_.size() - 1)) {
      if (table_[i].pair == pair) return &table_[i];
      if (table_[i].pair == no_pair) return nullptr;
    }
  }
  size_t slot(uint64_t pair) const { return size_t(pair * 0x9E3779B97F4A7C15u >> shift_); }
  static constexpr uint64_t no_pair = ~uint64_t(0);

  void find_joins(const std::vector<Merge>& merges, const std::unordered_map<int32_t, std::string_view>& texts);
  void append_word(std::string_view word, std::vector<Symbol>& symbols) const;
  void append_first_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  void append_unknown(std::string_view character, std::vector<Symbol>& symbols, size_t begin) const;
  size_t merge_few(Symbol* symbols, size_t n) const;
  size_t merge_many(Symbol* symbols, size_t n) const;

  Vocabulary vocabulary_;
  Options options_;
  std::vector<Entry> table_;  // open addressing; a power of two, at most half full
  int shift_ = 0;
  // Whether a merge joins a character of one class, the last of a token, with one of another; empty where nothing is
  // cut.
  std::vector<bool> joins_;
  std::array<int32_t, 256> byte_tokens_;   // of byte b: its symbol, or with byte_fallback <0xB>; -1: none
  std::array<int32_t, 128> ascii_tokens_;  // of characters

  // Those of ASCII, U+2581, which stands for a space and whose class is that of NUL, and all others.
  static constexpr std::string_view mark_ = "\xE2\x96\x81";
  static constexpr size_t classes_ = 128, others_ = 127;
  static size_t class_of(std::string_view character) {
    return uint8_t(character[0]) < 128 ? size_t(character[0]) : character == mark_ ? 0 : others_;
  }
};

template <class F>
void Bpe::for_words(std::string_view piece, F f) const {
  size_t begin = 0, before = others_;
  for (size_t at = 0, next; !joins_.empty() && at < piece.size(); at = next) {
    next = at + 1;
    while (next < piece.size() && (uint8_t(piece[next]) & 0xC0) == 0x80) ++next;
    size_t here = class_of(piece.substr(at, next - at));
    if (at > 0 && !joins_[before * classes_ + here]) f(piece.substr(begin, at - begin)), begin = at;
    before = here;
  }
  if (begin < piece.size()) f(piece.substr(begin));
}

}  // namespace dtensor::nn
