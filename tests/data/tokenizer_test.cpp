// Ids, offsets and decoded text are those of the tokenizers package (tests/data/reference/tokenizers_reference.py).
#include "nn/tokenizer/tokenizer.h"

#include "nn/tokenizer/bpe.h"
#include "nn/tokenizer/train.h"
#include "nn/tokenizer/unicode.h"
#include "tests/data/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// The package counts characters: of a part of a character, all of it.
std::vector<std::array<size_t, 2>> in_characters(const std::string& text,
                                                 const std::vector<Encoding::Offsets>& offsets) {
  std::vector<size_t> character(text.size() + 1);  // of each byte
  size_t n = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    n += i > 0 && (uint8_t(text[i]) & 0xC0) != 0x80;
    character[i] = n;
  }
  character[text.size()] = text.empty() ? 0 : n + 1;
  std::vector<std::array<size_t, 2>> list;
  for (auto o : offsets)
    list.push_back({character[o.begin], o.end == o.begin ? character[o.begin] : character[o.end - 1] + 1});
  return list;
}

void compare(const Tokenizer& t, const Json& cases, bool fixed_length = false) {
  for (const Json& c : cases) {
    auto text = c["text"].get<std::string>();
    INFO(c["text"].dump());
    Encoding e = t.encode(text);
    CHECK(e.ids == c["ids"].get<std::vector<int32_t>>());
    CHECK(in_characters(text, e.offsets) == c["offsets"].get<std::vector<std::array<size_t, 2>>>());
    CHECK(t.encode(text, false).ids == c["bare"].get<std::vector<int32_t>>());
    if (!fixed_length) CHECK(t.ids(text) == c["bare"].get<std::vector<int32_t>>());
    CHECK(t.decode(e.ids) == c["decoded"].get<std::string>());
    CHECK(t.decode(e.ids, false) == c["with_special"].get<std::string>());
    DecodeStream stream(t);
    std::string streamed;
    for (int32_t id : e.ids) {
      streamed += stream.push(id);
      CHECK(is_utf8(streamed));
    }
    CHECK(streamed + stream.end() == c["decoded"].get<std::string>());
  }
}

uint64_t fnv(const std::vector<int32_t>& ids) {
  uint64_t h = 0xCBF29CE484222325u;
  for (int32_t i : ids) h = (h ^ uint64_t(i)) * 0x100000001B3u;
  return h;
}

// A megabyte each without a space, as in the script.
std::string long_text(const std::string& name) {
  std::string text;
  auto repeat = [&](int64_t n, auto f) {
    for (int64_t i = 0; i < n; ++i) text += f(i);
    return text;
  };
  if (name == "one letter") return std::string(1'000'000, 'a');
  if (name == "spaces") return std::string(1'000'000, ' ');
  if (name == "letters") return repeat(1'000'000, [](int64_t i) { return char(97 + i * i % 26); });
  if (name == "digits") return repeat(1'000'000, [](int64_t i) { return char('0' + i * i % 10); });
  if (name == "Chinese") return repeat(333'333, [](int64_t i) { return utf8(int32_t(0x4E00 + i * i % 997)); });
  return repeat(500'000, [](int64_t) { return "!?"; });
}

constexpr const char* families[] = {"gpt2", "llama3", "qwen", "tinyllama"};

Json changed(const std::string& base, const Json& sections) {
  Json file = reference_json(base + ".json");
  for (const auto& [key, value] : sections.items()) file[key] = value;
  return file;
}

}  // namespace

TEST_CASE("ids, offsets and texts are those of the tokenizers package") {
  Json reference = reference_json("reference.json");
  for (const char* family : families) {
    INFO(family);
    compare(Tokenizer::load(reference_file(std::string(family) + ".json")), reference["families"][family]["cases"]);
  }
}

TEST_CASE("sections of tokenizer files act as in the tokenizers package") {
  Json reference = reference_json("reference.json");
  for (const auto& [name, v] : reference["variants"].items()) {
    INFO(name);
    bool lengths = name.starts_with("truncation") || name.starts_with("padding");
    compare(Tokenizer::parse(changed(v["base"], v["sections"])), v["cases"], lengths);
  }
}

TEST_CASE("a megabyte without a space has the ids of the tokenizers package") {
  Json reference = reference_json("reference.json");
  for (const char* family : families) {
    Tokenizer t = Tokenizer::load(reference_file(std::string(family) + ".json"));
    for (const auto& [name, expected] : reference["families"][family]["long"].items()) {
      INFO(family << ", " << name);
      Encoding e = t.encode(long_text(name));
      CHECK(e.ids.size() == expected[0].get<size_t>());
      CHECK(std::to_string(fnv(e.ids)) == expected[1].get<std::string>());
    }
  }
}

TEST_CASE("merges of a trained tokenizer are those of the tokenizers package's trainer") {
  Json reference = reference_json("reference.json");
  for (const auto& [name, merges] : reference["trained"].items()) {
    INFO(name);
    TokenizerTrainer trainer(
        {.vocab_size = 600, .pattern = pattern_by_name(name), .special = {"[BOT]", "[EOT]", "[PAD]"}});
    trainer.add(reference["text_to_train"].get<std::string>());
    Json file = trainer.finish();
    CHECK(file["model"]["merges"] == merges);
    Tokenizer t = Tokenizer::parse(file);
    CHECK(t.vocab_size() == 600);
    CHECK(t.id_of("[PAD]") == 2);
    auto text = reference["text_to_train"].get<std::string>();
    if (name != "qwen") CHECK(t.decode(t.ids(text), false) == text);
    CHECK(t.ids("[BOT]a[EOT]").size() == 3);
  }
}

TEST_CASE("a trained tokenizer may have fewer tokens than asked for") {
  TokenizerTrainer trainer({.vocab_size = 1000});
  trainer.add("aaaa");
  Json file = trainer.finish();
  CHECK(file["model"]["merges"] == Json::parse(R"([["a","a"],["aa","aa"]])"));
  CHECK(Tokenizer::parse(file).vocab_size() == 258);
}

TEST_CASE("a token that is a single word stands beside fractions, and not beside what joins characters") {
  Tokenizer t = Tokenizer::load(reference_file("gpt2.json"));
  int32_t word = *t.id_of("wordinside");
  auto found = [&](const std::string& text) {
    std::vector<int32_t> ids = t.ids(text);
    return std::count(ids.begin(), ids.end(), word) == 1;
  };
  for (const char* beside : {" ", "!", "½", "²"}) CHECK(found(std::string(" wordinside") + beside));
  for (const char* beside : {"s", "1", "_", "é", "\u200d", "\u0301"})
    CHECK(!found(std::string(" wordinside") + beside));
}

TEST_CASE("a text is cut where both parts have its ids") {
  const char* words[] = {" ",  "  ", "\n", " \n", "\t",       "a",        "Bc's", "12",       "!?",    "é",
                         "中", "½",  "⑴",  "¨",   "\xCC\x81", "\xC2\xA0", "\xFF", "\xE4\xB8", "[EOT]", "wordinside"};
  struct Case {
    const char *family, *normalizer;
  };
  for (Case c : {Case{"gpt2", "null"},
                 {"llama3", "null"},
                 {"llama3", R"({"type": "NFD"})"},
                 {"qwen", R"({"type": "NFC"})"},
                 {"qwen", R"({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]})"}}) {
    Json file = changed(c.family, {{"normalizer", Json::parse(c.normalizer)}});
    for (Json& token : file["added_tokens"]) token["rstrip"] = false;
    Tokenizer t = Tokenizer::parse(file);
    std::mt19937 random(3);
    int cuts = 0;
    Encoder encoder(t);
    std::vector<int32_t> ids, whole;
    for (int i = 0; i < 2000; ++i) {
      std::string text;
      for (int n = int(random() % 12); n > 0; --n) text += words[random() % std::size(words)];
      INFO(c.family << ", " << c.normalizer << ": " << Json(replace_invalid(text).text).dump());
      for (size_t at = 0; (at = t.cut(text, at + 1)) < text.size(); ++cuts) {
        ids.clear(), whole.clear();
        encoder.append(text.substr(0, at), ids), encoder.append(text.substr(at), ids), encoder.append(text, whole);
        REQUIRE(ids == whole);
      }
    }
    CHECK(cuts > 500);
  }
  // Nothing is known where all of the text counts, or a token that was added goes over spaces.
  Json prepends = {{"normalizer", {{"type", "Prepend"}, {"prepend", "x"}}}};
  CHECK(Tokenizer::parse(changed("llama3", prepends)).cut("a b", 0) == 3);
  CHECK(Tokenizer::load(reference_file("tinyllama.json")).cut("a b", 0) == 3);
  CHECK(Tokenizer::load(reference_file("gpt2.json")).cut("a b", 0) == 3);  // its <mask> takes the space behind it
  Json file = reference_json("llama3.json");
  CHECK(Tokenizer::parse(file).cut("a b", 0) == 1);
  CHECK(Tokenizer::parse(file).cut("a b", 2) == 3);
  file["added_tokens"][0]["content"] = "two words";
  file["model"]["vocab"].erase("<|begin_of_text|>");
  file["post_processor"] = nullptr;
  CHECK(Tokenizer::parse(file).cut("a b", 0) == 3);
}

TEST_CASE("an encoder that remembers pieces gives the ids of a text looked at alone") {
  const char* words[] = {" ",
                         "  ",
                         "\n",
                         "a",
                         "word",
                         " the",
                         "12",
                         "!?",
                         "\xC3\xA9",
                         "e\xCC\x81",
                         "\xCC\x81",
                         "中",
                         "’",
                         "가",
                         "ᄀ",
                         "ᅡ",
                         "ᆨ",
                         "\xFF",
                         "\xC2\xBD",
                         "\xE2\x84\xAB",
                         "▁",
                         "[EOT]",
                         "0123456789012345678901234"};
  std::mt19937 random(5);
  for (const char* family : families) {
    Tokenizer t = Tokenizer::load(reference_file(std::string(family) + ".json"));
    Json file = reference_json(std::string(family) + ".json");
    auto& added = file["added_tokens"].get_ref<Json::array_t&>();
    std::erase_if(added, [](const Json& token) { return !token["special"].get<bool>(); });
    Tokenizer special = Tokenizer::parse(file);  // of Qwen, one whose normal form is looked at before anything else
    Encoder encoder(t), of_special(special);
    for (int i = 0; i < 2000; ++i) {
      std::string text;
      for (int n = int(random() % 40); n > 0; --n) text += words[random() % std::size(words)];
      INFO(family << ": " << Json(replace_invalid(text).text).dump());
      std::vector<int32_t> ids{7}, expected = t.encode(text, false).ids;
      encoder.append(text, ids);
      expected.insert(expected.begin(), 7);
      REQUIRE(ids == expected);
      ids.clear();
      of_special.append(text, ids);
      REQUIRE(ids == special.encode(text, false).ids);
    }
  }
}

TEST_CASE("merges are those of the definition, for short and long pieces, cut at what no merge joins or whole") {
  const std::vector<std::string> characters{"a", "b", "c", "d", "▁", "é", "中"};
  std::mt19937 random(6);
  int words = 0, pieces = 0;
  for (int round = 0; round < 60; ++round) {
    Vocabulary vocabulary;
    std::vector<std::string> texts;  // by id
    auto add = [&](const std::string& text) {
      if (vocabulary.emplace(text, int32_t(texts.size())).second) texts.push_back(text);
      return vocabulary.at(text);
    };
    for (int b = 0; b < 256; ++b) add(fmt::format("<0x{:02X}>", b));
    for (const std::string& c : characters) add(c);
    std::vector<Bpe::Merge> merges;
    for (int i = 0; i < 6 + round % 20; ++i) {
      auto any = [&] { return int32_t(256 + random() % (texts.size() - 256)); };
      int32_t left = any(), right = any();
      if (std::ranges::count(merges, Bpe::Merge(left, right)) > 0 || texts[size_t(left)].size() > 12) continue;
      merges.emplace_back(left, right);
      add(texts[size_t(left)] + texts[size_t(right)]);
    }
    Bpe bpe(vocabulary, merges, {.byte_fallback = true, .unknown = 0});
    for (int i = 0; i < 200; ++i) {
      std::string text;
      std::vector<int32_t> expected, ids;
      for (int n = int(random() % (i % 10 ? 20 : 200)); n > 0; --n) {
        const std::string& c = characters[random() % characters.size()];
        text += c, expected.push_back(vocabulary.at(c));
      }
      for (size_t best = 0; best < merges.size();) {  // the lowest rank, leftmost first
        auto [left, right] = merges[best];
        size_t at = 0;
        while (at + 1 < expected.size() && (expected[at] != left || expected[at + 1] != right)) ++at;
        if (at + 1 >= expected.size()) {
          ++best;
          continue;
        }
        expected[at] = vocabulary.at(texts[size_t(left)] + texts[size_t(right)]);
        expected.erase(expected.begin() + long(at) + 1);
        best = 0;
      }
      std::vector<Symbol> symbols;
      bpe.append(text, symbols);
      for (Symbol symbol : symbols) ids.push_back(symbol.id);
      INFO("round " << round << ": " << text);
      REQUIRE(ids == expected);
      std::string joined;
      bpe.for_words(text, [&](std::string_view word) { joined += word, ++words; });
      CHECK(joined == text);
      pieces += !text.empty();
    }
  }
  CHECK(words > 2 * pieces);  // much was cut
}

TEST_CASE("merges, unknown characters and bytes in cases that trained vocabularies do not have") {
  auto with_bytes = [](Vocabulary v) {  // ids from 100 on
    for (int b = 0; b < 256; ++b) v.emplace(fmt::format("<0x{:02X}>", b), 100 + b);
    return v;
  };
  const Vocabulary abc{{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}}, few{{"?", 0}, {"a", 1}, {"<0xC3>", 2}};
  const Vocabulary abcd{{"a", 0}, {"b", 1}, {"c", 2}, {"d", 3}, {"ab", 4}, {"bc", 5}, {"bcd", 6}, {"abc", 7}};
  std::string a51(51, 'a'), many;
  std::vector<int32_t> a25(25, 1), many_ids;
  a25.push_back(0);
  for (int i = 0; i < 20; ++i) many += "abcd", many_ids.insert(many_ids.end(), {0, 6});
  struct Row {
    const char* what;
    Vocabulary vocabulary;
    std::vector<Bpe::Merge> merges;
    BpeOptions options;
    std::string text;
    std::vector<int32_t> ids;
  };
  const Row rows[] = {
      {"a merge that stands twice has its last rank", abc, {{0, 1}, {1, 2}, {0, 1}}, {}, "abc", {0, 4}},
      {"a token that no merge makes", abc, {}, {.ignore_merges = true}, "ab", {3}},
      {"which is not cut", with_bytes(abc), {}, {.ignore_merges = true, .byte_fallback = true}, "ab", {3}},
      {"a byte that merges with the next character",
       with_bytes({{"a", 0}, {"<0xA9>a", 1}}),
       {{100 + 0xA9, 0}},
       {.byte_fallback = true},
       "éa",
       {100 + 0xC3, 1}},
      {"a merge of nothing", with_bytes({{"", 0}, {"a", 1}}), {{0, 1}}, {.byte_fallback = true}, "aa", {1, 1}},
      {"a byte is missing", few, {}, {.byte_fallback = true, .fuse_unknown = true, .unknown = 0}, "aéé", {1, 0}},
      {"unknown ones are fused only where asked for", few, {}, {.unknown = 0}, "éé", {0, 0}},
      {"the leftmost of a long piece", {{"a", 0}, {"aa", 1}}, {{0, 0}}, {}, a51, a25},
      {"a pair of a long piece that has become another", abcd, {{1, 2}, {0, 1}, {5, 3}, {0, 5}}, {}, many, many_ids},
  };
  for (const Row& row : rows) {
    INFO(row.what);
    std::vector<Symbol> symbols;
    Bpe(row.vocabulary, row.merges, row.options).append(row.text, symbols);
    std::vector<int32_t> ids;
    for (Symbol symbol : symbols) ids.push_back(symbol.id);
    CHECK(ids == row.ids);
  }
  std::vector<Symbol> symbols;
  Bpe(few, {}, {}).append("aé", symbols);  // left out, but its bytes count
  REQUIRE(symbols.size() == 1);
  CHECK(symbols[0].bytes == 3);
  symbols.clear();
  Bpe fuses(few, {}, {.fuse_unknown = true, .unknown = 0});
  fuses.append("é", symbols), fuses.append("é", symbols);  // not over pieces
  CHECK(symbols.size() == 2);
}

TEST_CASE("a token of no byte alphabet is its text, and bytes that can be no character come at once") {
  Json file = reference_json("llama3.json");
  file["added_tokens"].push_back({{"id", 5000}, {"content", "<中>"}});
  CHECK(Tokenizer::parse(file).decode(std::vector<int32_t>{5000}) == "<中>");
  DecodeStream stream(Tokenizer::bytes());
  CHECK(stream.push(0xF0) == "");
  CHECK(stream.push(0x80) == "\uFFFD\uFFFD");
}

TEST_CASE("without a file, tokens are bytes") {
  Tokenizer t = Tokenizer::bytes();
  CHECK(t.vocab_size() == 259);
  CHECK(t.ids(std::string("a\0\n[EOT]", 8)) == std::vector<int32_t>{97, 0, 10, 257});
  CHECK(t.ids("é") == std::vector<int32_t>{0xC3, 0xA9});
  CHECK(t.decode(t.ids("é b")) == "é b");
  CHECK(t.document_tokens().begin == 256);
  CHECK(t.document_tokens().end == 257);
  CHECK(t.document_tokens().pad == 258);
}
