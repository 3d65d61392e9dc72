#include "nn/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "nn/tokenizer/parts.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

// Without the white space at both ends of a token's text, as the package's ByteLevel(trim_offsets) has it: an added
// prefix space was never in the text.
Encoding::Offsets trimmed(Encoding::Offsets o, std::string_view token, bool prefix_space) {
  size_t leading = std::min(token.find_first_not_of(' '), token.size());
  size_t trailing = token.size() - (token.find_last_not_of(' ') + 1);  // of spaces alone, all
  if (leading == 1 && prefix_space) leading = 0;
  o.begin = std::min(o.begin + leading, o.end);
  o.end = trailing == token.size() ? o.begin : std::max(o.end - std::min(trailing, o.end), o.begin);
  return o;
}

}  // namespace

Encoding Tokenizer::encode(std::string_view text, bool special) const {
  const TokenizerParts& t = *parts_;
  Encoding body;
  // `token`: the text that it stands for.
  auto add = [&](int32_t id, size_t begin, size_t end, std::string_view token) {
    Encoding::Offsets o{begin, end};
    for (bool prefix_space : t.post.trims) o = trimmed(o, token, prefix_space && (body.ids.empty() || o.begin == 0));
    body.ids.push_back(id);
    body.offsets.push_back(o);
  };
  // An added token may have taken white space of any kind.
  auto added = [&](int32_t id, size_t begin, size_t end) {
    std::string token;
    for (size_t at = begin; at < std::min(end, text.size());) {
      Utf8 c = utf8_at(text.data() + at, text.data() + text.size());
      bool space = c.code >= 0 && (t.classes(c.code) & CharClasses::space);
      token.append(size_t(c.length), space ? ' ' : 'x');
      at += size_t(c.length);
    }
    add(id, begin, end, token);
  };
  std::vector<Symbol> symbols;
  t.for_sections(replace_invalid(text), added, [&](const AlignedText& piece) {
    symbols.clear();
    t.bpe->append(piece.text, symbols);
    size_t at = 0;
    for (Symbol s : symbols) {
      add(s.id, piece.origin(at).begin, piece.origin(at + s.bytes - 1).end,
          std::string_view(piece.text).substr(at, s.bytes));
      at += s.bytes;
    }
  });
  const std::vector<int32_t> none, &before = special ? t.post.before : none, &behind = special ? t.post.behind : none;
  if (t.truncation) {
    int64_t room = std::max<int64_t>(0, t.truncation->max_length - int64_t(before.size() + behind.size()));
    if (int64_t over = int64_t(body.ids.size()) - room; over > 0) {
      auto cut = [&](auto& v) {
        t.truncation->left ? v.erase(v.begin(), v.begin() + over) : v.erase(v.end() - over, v.end());
      };
      cut(body.ids), cut(body.offsets);
    }
  }
  auto put = [&](bool front, const std::vector<int32_t>& ids) {
    body.ids.insert(front ? body.ids.begin() : body.ids.end(), ids.begin(), ids.end());
    body.offsets.insert(front ? body.offsets.begin() : body.offsets.end(), ids.size(), {0, 0});
  };
  put(true, before), put(false, behind);
  body.attended.assign(body.ids.size(), true);
  if (t.padding) {
    int64_t size = int64_t(body.ids.size()), to = t.padding->to > 0 ? t.padding->to : size;
    if (int64_t m = t.padding->multiple) to = (to + m - 1) / m * m;
    to = std::max(to, size);
    put(t.padding->left, std::vector<int32_t>(size_t(to - size), t.padding->id));
    body.attended.insert(t.padding->left ? body.attended.begin() : body.attended.end(), size_t(to - size), false);
  }
  return body;
}

std::vector<int32_t> Tokenizer::ids(std::string_view text) const {
  std::vector<int32_t> ids;
  Encoder(*this).append(text, ids);
  return ids;
}

size_t Tokenizer::cut(std::string_view text, size_t from) const {
  if (!parts_->cuts_before_spaces) return text.size();
  for (size_t at = std::max<size_t>(from, 1); (at = text.find(' ', at)) != std::string_view::npos; ++at) {
    size_t last = at - 1;  // the beginning of the character before
    while (last > 0 && at - last < 4 && (uint8_t(text[last]) & 0xC0) == 0x80) --last;
    Utf8 c = utf8_at(text.data() + last, text.data() + at);
    bool whole = c.code >= 0 && last + size_t(c.length) == at;
    if (whole && !(parts_->classes(c.code) & CharClasses::space)) return at;
  }
  return text.size();
}

const std::string& Tokenizer::token_of(int32_t id) const {
  bool known = id >= 0 && size_t(id) < parts_->tokens.size() && parts_->tokens[size_t(id)];
  check(known, "[tokenizer] {} is no id of a token: ids are from 0 to {}", id, vocab_size() - 1);
  return *parts_->tokens[size_t(id)];
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  DecodeStream stream(*this, skip_special);
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  return text + stream.end();
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  auto found = parts_->ids.find(token);
  return found == parts_->ids.end() ? std::nullopt : std::optional(found->second);
}

int64_t Tokenizer::vocab_size() const { return int64_t(parts_->tokens.size()); }

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && size_t(id) < parts_->special.size() && parts_->special[size_t(id)];
}

const DocumentTokens& Tokenizer::document_tokens() const { return parts_->document; }

// The ids of pieces of up to 23 bytes, by a hash of them: one line of the processor's cache each. What was met last
// stays. Pieces wait for their lines, which are fetched meanwhile.
struct Encoder::Cache {
  static constexpr size_t most_bytes = 23, most_ids = 9, lines = size_t(1) << 16, most_waiting = 32;
  using Key = std::array<uint64_t, 3>;  // the bytes, zeros, and in the last byte the length
  struct alignas(64) Line {
    Key key;
    int32_t ids[most_ids];
    uint32_t count;
  };
  struct Waiting {
    std::string_view piece;
    Key key;
    Line* line;  // none of a longer piece
  };
  std::vector<Line> table = std::vector<Line>(lines, Line{{~uint64_t(0), 0, 0}, {}, 0});
  std::array<Waiting, most_waiting> waiting;
  size_t count = 0;  // of these
  std::vector<Symbol> symbols;

  // `end`: of what can be read.
  static Key key_of(std::string_view piece, const char* end) {
    static constexpr auto masks = [] {  // from the middle on zeros
      std::array<uint8_t, 2 * sizeof(Key)> m{};
      std::fill_n(m.begin(), sizeof(Key), uint8_t(0xFF));
      return m;
    }();
    Key key{}, mask;
    if (size_t(end - piece.data()) >= sizeof key) {
      std::memcpy(&key, piece.data(), sizeof key);
      std::memcpy(&mask, &masks[sizeof key - piece.size()], sizeof mask);
      for (size_t i = 0; i < key.size(); ++i) key[i] &= mask[i];
    } else {
      std::memcpy(&key, piece.data(), piece.size());
    }
    key[2] |= uint64_t(piece.size()) << 56;
    return key;
  }
  Line* line_of(const Key& key) {
    uint64_t h = (key[0] ^ key[2]) * 0x9E3779B97F4A7C15u ^ (key[1] * 0xC2B2AE3D27D4EB4Fu);
    return &table[size_t((h * 0x9E3779B97F4A7C15u) >> (64 - std::countr_zero(lines)))];
  }
};

Encoder::Encoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer), cache_(std::make_unique<Cache>()) {}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

inline void Encoder::append_piece(std::string_view piece, const char* end, std::vector<int32_t>& ids) {
  Cache& c = *cache_;
  Cache::Waiting& w = c.waiting[c.count++];
  w.piece = piece, w.line = nullptr;
  if (piece.size() <= Cache::most_bytes) {
    w.key = Cache::key_of(piece, end);
    w.line = c.line_of(w.key);
    __builtin_prefetch(w.line);
  }
  if (c.count == Cache::most_waiting) append_waiting(ids);
}

void Encoder::append_waiting(std::vector<int32_t>& ids) {
  Cache& c = *cache_;
  size_t size = ids.size();
  ids.resize(size + c.count * Cache::most_ids);
  for (const Cache::Waiting& w : std::span(c.waiting).first(c.count)) {
    if (w.line && w.line->key == w.key) [[likely]] {
      std::copy_n(w.line->ids, Cache::most_ids, &ids[size]);
      size += w.line->count;
      continue;
    }
    c.symbols.clear();
    tokenizer_.parts_->bpe->append(w.piece, c.symbols);
    bool fits = w.line && c.symbols.size() <= Cache::most_ids;
    if (fits) w.line->key = w.key, w.line->count = uint32_t(c.symbols.size());
    if (!fits) ids.resize(ids.size() + c.symbols.size());
    for (size_t i = 0; i < c.symbols.size(); ++i) {
      ids[size++] = c.symbols[i].id;
      if (fits) w.line->ids[i] = c.symbols[i].id;
    }
  }
  ids.resize(size);
  c.count = 0;
}

void Encoder::append_section(std::string_view text, std::vector<int32_t>& ids) {
  const auto& t = *tokenizer_.parts_;
  auto piece = [&](std::string_view p) { append_piece(p, text.data() + text.size(), ids); };
  switch (*t.pre_tokenizer.known()) {
    case KnownPattern::gpt2:
      for_pieces<KnownPattern::gpt2>(t.classes, text, piece);
      break;
    case KnownPattern::llama3:
      for_pieces<KnownPattern::llama3>(t.classes, text, piece);
      break;
    case KnownPattern::qwen:
      for_pieces<KnownPattern::qwen>(t.classes, text, piece);
      break;
  }
  append_waiting(ids);
}

void Encoder::append(std::string_view text, std::vector<int32_t>& ids) {
  const auto& t = *tokenizer_.parts_;
  if (!t.pre_tokenizer.known() || !t.in_normalized.empty() || !is_utf8(text) || !t.normalizer.keeps(text)) {
    AlignedText valid = replace_invalid(text);
    if (!t.pre_tokenizer.looks_at_origins()) valid.from.clear(), valid.tracked = false;
    t.for_sections(
        valid, [&](int32_t id, size_t, size_t) { ids.push_back(id); },
        [&](const AlignedText& piece) {
          const char* end = piece.text.data() + piece.text.size();
          t.bpe->for_words(piece.text, [&](std::string_view word) { append_piece(word, end, ids); });
          append_waiting(ids);  // before the piece is gone
        });
    return;
  }
  size_t at = 0;
  if (!t.in_text.empty())
    t.in_text.for_tokens(text, t.classes, [&](size_t begin, size_t end, int32_t id) {
      append_section(text.substr(at, begin - at), ids);
      ids.push_back(id);
      at = end;
    });
  append_section(text.substr(at), ids);
}

struct DecodeStream::State {
  Decoder::Run run;
};

DecodeStream::DecodeStream(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer),
      skip_special_(skip_special),
      state_(std::make_unique<State>(State{tokenizer.parts_->decoder.begin()})) {}
DecodeStream::~DecodeStream() = default;

std::string DecodeStream::push(int32_t id) {
  const std::string& token = tokenizer_.token_of(id);
  return skip_special_ && tokenizer_.is_special(id) ? "" : state_->run.push(token);
}

std::string DecodeStream::end() { return state_->run.end(); }

}  // namespace dtensor::nn
