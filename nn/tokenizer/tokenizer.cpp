#include "nn/tokenizer/tokenizer.h"

#include <algorithm>
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
    if (t.post.trim_offsets) o = trimmed(o, token, t.post.prefix_space && (body.ids.empty() || begin == 0));
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
// stays.
struct Encoder::Cache {
  static constexpr size_t most_bytes = 23, most_ids = 9, lines = size_t(1) << 15;
  struct alignas(64) Line {
    uint64_t key[3];  // the bytes, zeros, and in the last one the length
    int32_t ids[most_ids];
    uint32_t count;
  };
  std::vector<Line> table = std::vector<Line>(lines, Line{{~uint64_t(0), 0, 0}, {}, 0});
  std::vector<Symbol> symbols;

  static void key_of(std::string_view piece, uint64_t (&key)[3]) {
    size_t n = piece.size();
    key[0] = key[1] = key[2] = 0;
    std::memcpy(key, piece.data(), n);
    key[2] |= uint64_t(n) << 56;
  }
  Line& line(const uint64_t (&key)[3]) {
    uint64_t h = (key[0] ^ key[2]) * 0x9E3779B97F4A7C15u ^ (key[1] * 0xC2B2AE3D27D4EB4Fu);
    return table[size_t((h * 0x9E3779B97F4A7C15u) >> 49)];
  }
};

Encoder::Encoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer), cache_(std::make_unique<Cache>()) {}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

inline void Encoder::append_piece(std::string_view piece, std::vector<int32_t>& ids) {
  const Bpe& bpe = *tokenizer_.parts_->bpe;
  if (piece.size() > Cache::most_bytes) {
    cache_->symbols.clear();
    bpe.append(piece, cache_->symbols);
    for (Symbol s : cache_->symbols) ids.push_back(s.id);
    return;
  }
  uint64_t key[3];
  Cache::key_of(piece, key);
  Cache::Line& line = cache_->line(key);
  if (line.key[0] != key[0] || line.key[1] != key[1] || line.key[2] != key[2]) [[unlikely]] {
    cache_->symbols.clear();
    bpe.append(piece, cache_->symbols);
    if (cache_->symbols.size() > Cache::most_ids) {
      for (Symbol s : cache_->symbols) ids.push_back(s.id);
      return;
    }
    std::copy(key, key + 3, line.key);
    line.count = 0;
    for (Symbol s : cache_->symbols) line.ids[line.count++] = s.id;
  }
  ids.insert(ids.end(), line.ids, line.ids + line.count);
}

void Encoder::append_section(std::string_view text, std::vector<int32_t>& ids) {
  const auto& t = *tokenizer_.parts_;
  auto piece = [&](std::string_view p) { append_piece(p, ids); };
  switch (*t.pre_tokenizer.known()) {
    case KnownPattern::gpt2:
      return for_pieces<KnownPattern::gpt2>(t.classes, text, piece);
    case KnownPattern::llama3:
      return for_pieces<KnownPattern::llama3>(t.classes, text, piece);
    case KnownPattern::qwen:
      return for_pieces<KnownPattern::qwen>(t.classes, text, piece);
  }
}

void Encoder::append(std::string_view text, std::vector<int32_t>& ids) {
  const auto& t = *tokenizer_.parts_;
  bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 0x80; });
  bool as_it_is = t.normalizer.empty() || (ascii && t.normalizer.keeps_ascii());
  if (!t.pre_tokenizer.known() || !as_it_is || !t.in_normalized.empty() || !(ascii || is_utf8(text))) {
    t.for_sections(
        replace_invalid(text), [&](int32_t id, size_t, size_t) { ids.push_back(id); },
        [&](const AlignedText& piece) { append_piece(piece.text, ids); });
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
