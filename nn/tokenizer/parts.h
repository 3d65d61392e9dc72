// What a tokenizer is made of; private to nn/tokenizer.
#pragma once

#include <optional>

#include "nn/tokenizer/added_tokens.h"
#include "nn/tokenizer/bpe.h"
#include "nn/tokenizer/decoder.h"
#include "nn/tokenizer/normalizer.h"
#include "nn/tokenizer/pre_tokenizer.h"
#include "nn/tokenizer/tokenizer.h"

namespace dtensor::nn {

// "post_processor": what is added around a text, and whether white space belongs to tokens' offsets.
struct PostProcessor {
  std::vector<int32_t> before, behind;
  std::vector<bool> trims;  // of each step that trims offsets: the first token's space, which was added, stays
};

struct Truncation {
  int64_t max_length;
  bool left;  // cuts at the beginning
};

struct Padding {
  int64_t to;        // length; 0: none
  int64_t multiple;  // of this, where it is not 0
  int32_t id;
  bool left;
};

struct TokenizerParts {
  CharClasses classes;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::optional<Bpe> bpe;
  TokenFinder in_text, in_normalized;
  std::vector<AddedToken> added;
  // Whether a space behind what is no white space begins something new, whatever stands on either side: no piece of a
  // known pattern and no added token goes over it, and no normal form changes or moves it.
  bool cuts_before_spaces = false;
  PostProcessor post;
  std::optional<Truncation> truncation;
  std::optional<Padding> padding;
  Decoder decoder;
  std::vector<std::optional<std::string>> tokens;  // by id, as they stand in the file
  Vocabulary ids;                                  // of these
  std::vector<bool> special;                       // by id
  DocumentTokens document;

  // piece(text) for each piece of `text` that is cut out for the model, and token(id, begin, end) for each added token.
  template <class Token, class Piece>
  void for_sections(const AlignedText& text, Token token, Piece piece) const;
};

template <class Token, class Piece>
void TokenizerParts::for_sections(const AlignedText& text, Token token, Piece piece) const {
  auto cut = [&](const TokenFinder& finder, const AlignedText& from, auto between) {
    size_t at = 0;
    if (!finder.empty())
      finder.for_tokens(from.text, classes, [&](size_t begin, size_t end, int32_t id) {
        if (begin > at) between(from.part(at, begin - at));
        token(id, from.origin(begin).begin, from.origin(end - 1).end);
        at = end;
      });
    if (at == 0) {
      if (!from.text.empty()) between(from);
    } else if (at < from.text.size()) {
      between(from.part(at, from.text.size() - at));
    }
  };
  cut(in_text, text, [&](const AlignedText& raw) {
    cut(in_normalized, normalizer.empty() ? raw : normalizer(raw), [&](const AlignedText& section) {
      for (const AlignedText& p : pre_tokenizer(section, classes)) piece(p);
    });
  });
}

}  // namespace dtensor::nn
