#include "nn/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <queue>

#include "nn/tokenizer/unicode.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

// Drops the symbols that were merged into another, which have no bytes any more; how many are left.
size_t without_merged(Symbol* s, size_t n) {
  size_t kept = 0;
  for (size_t i = 0; i < n; ++i)
    if (s[i].bytes > 0) s[kept++] = s[i];
  return kept;
}

constexpr size_t few = 48;  // symbols of which the lowest rank is found by looking at all

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, const Options& options)
    : vocabulary_(std::move(vocabulary)), options_(options) {
  size_t slots = std::bit_ceil(2 * merges.size() + 2);
  shift_ = 64 - std::countr_zero(slots);
  table_.assign(slots, {no_pair, 0, 0});
  std::unordered_map<int32_t, std::string_view> texts;
  for (const auto& [text, id] : vocabulary_) texts.emplace(id, text);
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    auto [left, right] = merges[rank];
    auto l = texts.find(left), r = texts.find(right);
    check(l != texts.end() && r != texts.end(), "[tokenizer] merge {} joins ids {} and {}, which are not both tokens",
          rank, left, right);
    joined.assign(l->second).append(r->second);
    auto made = vocabulary_.find(joined);
    if (made == vocabulary_.end())
      fail("[tokenizer] merge {} makes \"{}\", which is not in the vocabulary", rank, joined);
    uint64_t pair = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
    size_t i = slot(pair);
    while (table_[i].pair != no_pair && table_[i].pair != pair) i = (i + 1) & (slots - 1);
    table_[i] = {pair, uint32_t(rank), made->second};  // of a merge that stands twice, the last
  }
  for (int b = 0; b < 256; ++b) {
    char byte = char(b);
    auto found =
        options_.bytes ? vocabulary_.find(std::string_view(&byte, 1)) : vocabulary_.find(fmt::format("<0x{:02X}>", b));
    byte_tokens_[size_t(b)] = found == vocabulary_.end() ? -1 : found->second;
    auto character = b < 128 ? vocabulary_.find(std::string_view(&byte, 1)) : vocabulary_.end();
    if (b < 128) ascii_tokens_[size_t(b)] = character == vocabulary_.end() ? -1 : character->second;
  }
  find_joins(merges, texts);
}

// A merge over a place in a text joins the character before it with that behind it: somewhere in the merge's token they
// stand side by side, and first did so where the parts of some merge met.
void Bpe::find_joins(const std::vector<Merge>& merges, const std::unordered_map<int32_t, std::string_view>& texts) {
  auto is_byte = [&](int32_t id) { return std::ranges::count(byte_tokens_, id) > 0; };
  // Unknown characters side by side may be one; a byte is a part of a character that its text does not show.
  if (options_.bytes || options_.ignore_merges || !options_.byte_fallback || is_byte(-1)) return;
  joins_.resize(classes_ * classes_);
  for (auto [left, right] : merges) {
    if (is_byte(left) || is_byte(right)) return joins_.clear();
    std::string_view l = texts.at(left), r = texts.at(right);
    if (l.empty() || r.empty()) continue;  // no text becomes that
    size_t last = l.size() - 1, next = 1;
    while (last > 0 && (uint8_t(l[last]) & 0xC0) == 0x80) --last;
    while (next < r.size() && (uint8_t(r[next]) & 0xC0) == 0x80) ++next;
    joins_[class_of(l.substr(last)) * classes_ + class_of(r.substr(0, next))] = true;
  }
}

void Bpe::append_unknown(std::string_view character, std::vector<Symbol>& symbols, size_t begin) const {
  if (options_.byte_fallback) {
    bool all = true;
    for (char c : character) all &= byte_tokens_[uint8_t(c)] >= 0;
    if (all) {
      for (char c : character) symbols.push_back({byte_tokens_[uint8_t(c)], 1});
      return;
    }
  }
  auto size = uint32_t(character.size());
  bool after_another = symbols.size() > begin && symbols.back().id == options_.unknown;
  if (!options_.unknown) {  // left out; its bytes go to a neighbour, so that offsets still add up
    if (symbols.size() > begin) symbols.back().bytes += size;
  } else if (options_.fuse_unknown && after_another) {
    symbols.back().bytes += size;
  } else {
    symbols.push_back({*options_.unknown, size});
  }
}

void Bpe::append_first_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  size_t begin = symbols.size();
  const char* end = piece.data() + piece.size();
  for (size_t at = 0; at < piece.size();) {
    auto size = options_.bytes ? 1u : uint32_t(utf8_at(piece.data() + at, end).length);
    std::string_view character = piece.substr(at, size);
    int32_t id = -1;
    if (options_.bytes)
      id = byte_tokens_[uint8_t(piece[at])];
    else if (size == 1 && uint8_t(piece[at]) < 128)
      id = ascii_tokens_[uint8_t(piece[at])];
    else if (auto found = vocabulary_.find(character); found != vocabulary_.end())
      id = found->second;
    if (id >= 0)
      symbols.push_back({id, size});
    else
      append_unknown(character, symbols, begin);
    at += size;
  }
}

void Bpe::append(std::string_view piece, std::vector<Symbol>& symbols) const {
  for_words(piece, [&](std::string_view word) { append_word(word, symbols); });
}

void Bpe::append_word(std::string_view piece, std::vector<Symbol>& symbols) const {
  if (options_.ignore_merges)
    if (auto found = vocabulary_.find(piece); found != vocabulary_.end()) {
      symbols.push_back({found->second, uint32_t(piece.size())});
      return;
    }
  size_t begin = symbols.size();
  append_first_symbols(piece, symbols);
  size_t n = symbols.size() - begin;
  if (n > 1) n = n <= few ? merge_few(&symbols[begin], n) : merge_many(&symbols[begin], n);
  symbols.resize(begin + n);
}

// A linked list, and of each symbol and its next one their merge's rank, above the place: the least of these numbers is
// the leftmost of the lowest rank.
size_t Bpe::merge_few(Symbol* s, size_t n) const {
  constexpr uint32_t none = std::numeric_limits<uint32_t>::max();
  static_assert(few <= 64);  // six bits of place below the rank
  uint32_t keys[few];
  int32_t made[few];
  uint8_t next[few], previous[few];
  auto look = [&](size_t i) {
    const Entry* e = next[i] < n ? find(s[i].id, s[next[i]].id) : nullptr;
    keys[i] = e ? e->rank << 6 | uint32_t(i) : none;
    made[i] = e ? e->id : -1;
  };
  for (size_t i = 0; i < n; ++i) next[i] = uint8_t(i + 1), previous[i] = uint8_t(i - 1);
  for (size_t i = 0; i < n; ++i) look(i);
  for (;;) {
    uint32_t least = none;
    for (size_t i = 0; i < n; ++i) least = std::min(least, keys[i]);
    if (least == none) break;
    size_t at = least & 63, right = next[at];
    s[at] = {made[at], s[at].bytes + s[right].bytes};
    s[right].bytes = 0, keys[right] = none;
    next[at] = next[right];
    if (next[at] < n) previous[next[at]] = uint8_t(at);
    look(at);
    if (at > 0) look(previous[at]);
  }
  return without_merged(s, n);
}

// A linked list of symbols and a queue of the pairs that were merges when they met; those that are stale are passed.
size_t Bpe::merge_many(Symbol* s, size_t n) const {
  struct Candidate {
    uint32_t rank, at;
    int32_t id;
    bool operator<(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  constexpr uint32_t none = std::numeric_limits<uint32_t>::max();
  std::vector<uint32_t> next(n), previous(n);
  std::priority_queue<Candidate> queue;
  auto look = [&](uint32_t left, uint32_t right) {
    if (const Entry* e = find(s[left].id, s[right].id)) queue.push({e->rank, left, e->id});
  };
  for (uint32_t i = 0; i < n; ++i) next[i] = i + 1 < n ? i + 1 : none, previous[i] = i ? i - 1 : none;
  for (uint32_t i = 0; i + 1 < n; ++i) look(i, i + 1);
  while (!queue.empty()) {
    Candidate c = queue.top();
    queue.pop();
    uint32_t right = next[c.at];
    if (s[c.at].bytes == 0 || right == none) continue;  // merged into another since
    const Entry* e = find(s[c.at].id, s[right].id);
    if (!e || e->rank != c.rank) continue;
    s[c.at] = {e->id, s[c.at].bytes + s[right].bytes};
    s[right].bytes = 0;
    next[c.at] = next[right];
    if (next[c.at] != none) previous[next[c.at]] = c.at, look(c.at, next[c.at]);
    if (previous[c.at] != none) look(previous[c.at], c.at);
  }
  return without_merged(s, n);
}

}  // namespace dtensor::nn
