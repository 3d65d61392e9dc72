#include "nn/tokenizer/train.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>
#include <unordered_set>

#include "nn/tokenizer/decoder.h"
#include "nn/tokenizer/normalizer.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

Json normalizer_of(KnownPattern pattern) { return pattern == KnownPattern::qwen ? Json{{"type", "NFC"}} : Json(); }

Json pre_tokenizer_of(KnownPattern pattern) {
  bool gpt2 = pattern == KnownPattern::gpt2;
  Json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", gpt2}};
  if (gpt2) return bytes;
  Json split{
      {"type", "Split"}, {"pattern", {{"Regex", regex_of(pattern)}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}};
}

// The pairs of neighbours in all words, and how often each occurs.
class Pairs {
 public:
  using Pair = uint64_t;  // left id << 32 | right id: ordered as the pair
  struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
  };
  explicit Pairs(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w)
      for (size_t i = 0; i + 1 < words_[w].symbols.size(); ++i) {
        Pair p = pair(words_[w].symbols[i], words_[w].symbols[i + 1]);
        counts_[p] += words_[w].count;
        where_[p].insert(w);
      }
    for (const auto& [p, n] : counts_) queue_.push({n, p});
  }

  static Pair pair(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }
  static int32_t left(Pair p) { return int32_t(p >> 32); }
  static int32_t right(Pair p) { return int32_t(p); }

  // The most frequent pair, the lowest of equals; none is left where it is false.
  bool pop(Pair& best) {
    while (!queue_.empty()) {
      Candidate c = queue_.top();
      queue_.pop();
      int64_t now = counts_[c.pair];
      if (now < 1) continue;
      if (now != c.count) {  // it was counted before other merges
        queue_.push({now, c.pair});
        continue;
      }
      best = c.pair;
      return true;
    }
    return false;
  }

  // Every occurrence of the pair becomes `made`.
  void merge(Pair p, int32_t made) {
    std::unordered_set<size_t> where = std::move(where_[p]);
    where_.erase(p);
    std::set<Pair> fresh;
    for (size_t w : where) merge_in(w, p, made, fresh);
    for (Pair f : fresh)
      if (counts_[f] > 0) queue_.push({counts_[f], f});
  }

 private:
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& o) const { return count != o.count ? count < o.count : pair > o.pair; }
  };

  void merge_in(size_t w, Pair p, int32_t made, std::set<Pair>& fresh) {
    auto& [symbols, count] = words_[w];
    auto lose = [this, count = count](int32_t a, int32_t b) { counts_[pair(a, b)] -= count; };
    auto gain = [&, count = count](int32_t a, int32_t b) {
      counts_[pair(a, b)] += count;
      where_[pair(a, b)].insert(w);
      fresh.insert(pair(a, b));
    };
    size_t to = 0;
    for (size_t i = 0; i < symbols.size(); ++to) {
      if (i + 1 == symbols.size() || symbols[i] != left(p) || symbols[i + 1] != right(p)) {
        symbols[to] = symbols[i++];
        continue;
      }
      if (to > 0) lose(symbols[to - 1], left(p)), gain(symbols[to - 1], made);
      if (i + 2 < symbols.size()) lose(right(p), symbols[i + 2]), gain(made, symbols[i + 2]);
      symbols[to] = made;
      i += 2;
    }
    symbols.resize(to);
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, int64_t> counts_;
  std::unordered_map<Pair, std::unordered_set<size_t>> where_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

TokenizerTrainer::TokenizerTrainer(TrainOptions options) : options_(std::move(options)) {
  std::set<std::string> seen;
  for (const std::string& s : options_.special)
    check(!s.empty() && seen.insert(s).second && is_utf8(s),
          "[tokenizer_train] special token \"{}\" is empty, stands twice or is no UTF-8", s);
  int64_t least = 256 + int64_t(options_.special.size());
  check(options_.vocab_size >= least,
        "[tokenizer_train] a vocabulary of {} tokens is less than the {} of bytes and special tokens",
        options_.vocab_size, least);
}

void TokenizerTrainer::add(std::string_view text) {
  std::string changed;  // valid and normalized
  if (options_.pattern == KnownPattern::qwen || !is_utf8(text)) {
    AlignedText valid = replace_invalid(text);
    changed = Normalizer(normalizer_of(options_.pattern), "normalizer")(std::move(valid)).text;
    text = changed;
  }
  auto count = [&](std::string_view piece) {
    auto found = counts_.find(piece);
    if (found == counts_.end()) found = counts_.emplace(piece, 0).first;
    ++found->second;
  };
  switch (options_.pattern) {
    case KnownPattern::gpt2:
      return for_pieces<KnownPattern::gpt2>(classes_, text, count);
    case KnownPattern::llama3:
      return for_pieces<KnownPattern::llama3>(classes_, text, count);
    case KnownPattern::qwen:
      return for_pieces<KnownPattern::qwen>(classes_, text, count);
  }
}

Json TokenizerTrainer::finish() const {
  Json vocabulary = Json::object(), merges = Json::array(), added = Json::array();
  std::vector<std::string> tokens;  // in the byte alphabet
  std::unordered_map<std::string, int32_t> ids;
  auto add = [&](const std::string& token) {
    auto [known, fresh] = ids.emplace(token, int32_t(tokens.size()));
    if (fresh) tokens.push_back(token);
    return known->second;
  };
  for (const std::string& s : options_.special) {
    Json token{{"id", add(s)},    {"content", s},        {"single_word", false}, {"lstrip", false},
               {"rstrip", false}, {"normalized", false}, {"special", true}};
    added.push_back(token);
  }
  std::vector<std::string> alphabet;
  for (int b = 0; b < 256; ++b) alphabet.push_back(byte_char(uint8_t(b)));
  std::sort(alphabet.begin(), alphabet.end());  // UTF-8 sorts as its code points
  for (const std::string& c : alphabet) add(c);

  std::vector<Pairs::Word> words;
  for (const auto& [piece, count] : counts_) {
    Pairs::Word word{{}, count};
    for (char c : piece) word.symbols.push_back(ids.at(byte_char(uint8_t(c))));
    words.push_back(std::move(word));
  }
  Pairs pairs(std::move(words));
  for (Pairs::Pair best; int64_t(tokens.size()) < options_.vocab_size && pairs.pop(best);) {
    const std::string left = tokens[size_t(Pairs::left(best))], right = tokens[size_t(Pairs::right(best))];
    merges.push_back({left, right});
    pairs.merge(best, add(left + right));
  }
  for (size_t i = 0; i < tokens.size(); ++i) vocabulary[tokens[i]] = i;
  Json level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  Json model{{"type", "BPE"},
             {"dropout", nullptr},
             {"unk_token", nullptr},
             {"continuing_subword_prefix", nullptr},
             {"end_of_word_suffix", nullptr},
             {"fuse_unk", false},
             {"byte_fallback", false},
             {"ignore_merges", false},
             {"vocab", vocabulary},
             {"merges", merges}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", normalizer_of(options_.pattern)},
          {"pre_tokenizer", pre_tokenizer_of(options_.pattern)},
          {"post_processor", level},
          {"decoder", level},
          {"model", model}};
}

}  // namespace dtensor::nn
