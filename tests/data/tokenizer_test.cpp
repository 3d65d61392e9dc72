// Ids, offsets and decoded text are those of the tokenizers package (tests/data/reference/tokenizers_reference.py).
#include "nn/tokenizer/tokenizer.h"

#include "nn/tokenizer/bpe.h"
#include "nn/tokenizer/decoder.h"
#include "nn/tokenizer/normalizer.h"
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
    bool lengths = v["sections"].contains("truncation") || v["sections"].contains("padding");
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
  CHECK(Tokenizer::parse(file).cut(" a b", 0) == 2);
  file["added_tokens"][0]["content"] = "two words";
  file["model"]["vocab"].erase("<|begin_of_text|>");
  file["post_processor"] = nullptr;
  CHECK(Tokenizer::parse(file).cut("a b", 0) == 3);
}

TEST_CASE("an encoder that remembers pieces gives the ids of a text looked at alone") {
  const std::string words[] = {" ",
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
                               "\u0316",
                               "\u0334",
                               std::string("\0", 1),
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

TEST_CASE("ids are those of encode, whatever cuts the text") {
  const Json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}},
      gpt2{{"type", "ByteLevel"}, {"add_prefix_space", false}}, prefix{{"type", "ByteLevel"}},
      digits{{"type", "Digits"}, {"individual_digits", true}};
  auto split = [](const char* behavior, bool invert) {
    return Json{{"type", "Split"},
                {"pattern", {{"Regex", regex_of(KnownPattern::llama3)}}},
                {"behavior", behavior},
                {"invert", invert}};
  };
  const Json llama3 = split("Isolated", false);
  std::vector<std::vector<Json>> rows{
      {bytes}, {gpt2}, {prefix}, {digits, gpt2}, {digits, llama3, bytes}, {llama3, digits, bytes}, {llama3, gpt2}};
  for (const char* behavior : {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"})
    for (bool invert : {false, true}) rows.push_back({split(behavior, invert), bytes});
  std::string text = " Hello World 1234567 there's the  12 x'LL!?\n\n a";
  for (const auto& row : rows) {
    Json section{{"type", "Sequence"}, {"pretokenizers", row}};
    INFO(section.dump());
    Tokenizer t = Tokenizer::parse(changed("gpt2", {{"pre_tokenizer", section}}));
    CHECK(t.ids(text) == t.encode(text, false).ids);
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
  CHECK(stream.push(0xC1) == "\uFFFD");
  CHECK(stream.push(0xF5) == "\uFFFD");
}

// Values of the tokenizers package.
TEST_CASE("decoders of tokens that trained vocabularies do not have") {
  struct Row {
    const char* decoder;
    std::vector<std::string> tokens;
    const char* text;
  };
  const char *bytes = R"({"type": "ByteFallback"})",
             *strip = R"({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1}]})",
             *fused = R"({"type": "Sequence", "decoders": [{"type": "Fuse"},
                                                           {"type": "Strip", "content": " ", "start": 2}]})";
  const Row rows[] = {
      {bytes, {"<0xC3>", "<0xa9>", "<0x1G>", "<0x41>x", "<0x41x"}, "é<0x1G><0x41>x<0x41x"},
      {bytes, {"<0xFF>", "<0xFE>", "a"}, "\uFFFD\uFFFDa"},
      {strip, {"  a", " b"}, " ab"},
      {fused, {" a", " b"}, "a b"},
      {fused, {" ", " ", " b"}, " b"},
      {R"({"type": "Metaspace", "prepend_scheme": "always"})", {"▁a▁b", "▁c", "▁▁"}, "ab c  "},
      {R"({"type": "Metaspace", "prepend_scheme": "never"})", {"▁a▁b", "▁c"}, " a b c"},
      {R"({"type": "Metaspace", "add_prefix_space": false})", {"▁a"}, " a"},
  };
  for (const Row& row : rows) {
    INFO(row.decoder << ": " << Json(row.tokens).dump());
    Decoder::Run run = Decoder(Json::parse(row.decoder), "decoder").begin();
    std::string text;
    for (const std::string& token : row.tokens) text += run.push(token);
    CHECK(text + run.end() == row.text);
  }
}

// Values of the tokenizers package.
TEST_CASE("normalizers of rare characters") {
  struct Row {
    const char *normalizer, *text, *normal;
  };
  const Row rows[] = {
      {R"({"type": "NFC"})", "\u09C7\u09BE", "\u09CB"},  // the second is no mark
      {R"({"type": "NFC"})", "\u0F72\u0F73", "\u0F71\u0F72\u0F72"},
      {R"({"type": "NFC"})", "\u0316\u0334", "\u0334\u0316"},  // they compose with nothing
      {R"({"type": "NFC"})", "\u1100\u1161\u11A8", "\uAC01"},
      {R"({"type": "Lowercase"})", "\u0130X", "i\u0307x"},
      {R"({"type": "Strip"})", "\u3000 a \u00E9\u3000", "a \u00E9"},
      {R"({"type": "Prepend", "prepend": "x"})", "", ""},
  };
  for (const Row& row : rows) {
    INFO(row.normalizer << ": " << row.text);
    Normalizer normalizer(Json::parse(row.normalizer), "normalizer");
    CHECK(normalizer({row.text}).text == row.normal);
    CHECK((!normalizer.keeps(row.text) || row.text == std::string(row.normal)));
  }
  AlignedText::Range origin = prepend("x", {"\u00E9"}).origin(0);
  CHECK(std::pair(origin.begin, origin.end) == std::pair<size_t, size_t>(0, 2));
}

TEST_CASE("a field that is absent is as its default") {
  struct Row {
    const char *base, *sections;  // with the default at `place`
    const char *place, *other, *text;
  };
  const char *roberta = R"({"post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 0],
                            "cls": ["<|endoftext|>", 0], "trim_offsets": true, "add_prefix_space": true}})",
             *level = R"({"post_processor": {"type": "ByteLevel", "trim_offsets": true, "add_prefix_space": true}})",
             *strip = R"({"normalizer": {"type": "Strip", "strip_left": true, "strip_right": true}})",
             *bytes = R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}})",
             *token = R"({"added_tokens": [{"id": 700, "content": "zq", "single_word": false, "lstrip": false,
                          "rstrip": false, "special": false}]})",
             *model = R"({"model": {"fuse_unk": false, "byte_fallback": false}})";
  const Row rows[] = {
      {"gpt2", token, "/added_tokens/0/single_word", "true", "xzq"},
      {"gpt2", token, "/added_tokens/0/lstrip", "true", "x zq"},
      {"gpt2", token, "/added_tokens/0/rstrip", "true", "zq x"},
      {"gpt2", token, "/added_tokens/0/special", "true", "zq"},
      {"gpt2",
       R"({"added_tokens": [{"id": 700, "content": "AB", "normalized": true}], "normalizer": {"type": "Lowercase"}})",
       "/added_tokens/0/normalized", "false", "ab AB"},
      {"gpt2", strip, "/normalizer/strip_left", "false", " a "},
      {"gpt2", strip, "/normalizer/strip_right", "false", " a "},
      {"gpt2", bytes, "/pre_tokenizer/add_prefix_space", "false", "'there"},
      {"gpt2", bytes, "/pre_tokenizer/use_regex", "false", " Hello World 1234567 there's the  12 x'LL!?"},
      {"tinyllama", R"({"normalizer": null, "pre_tokenizer": {"type": "Digits", "individual_digits": false}})",
       "/pre_tokenizer/individual_digits", "true", "1234567890"},
      {"tinyllama",
       R"({"normalizer": null, "pre_tokenizer": {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed",
           "invert": false}})",
       "/pre_tokenizer/invert", "true", "the a"},
      {"gpt2", level, "/post_processor/trim_offsets", "false", "  a  a"},
      {"gpt2", level, "/post_processor/add_prefix_space", "false", " a"},
      {"gpt2", roberta, "/post_processor/trim_offsets", "false", "  a  a"},
      {"gpt2", roberta, "/post_processor/add_prefix_space", "false", " a"},
      {"tinyllama", model, "/model/fuse_unk", "true", "\u0F00\u0F01"},
      {"tinyllama", model, "/model/byte_fallback", "true", "\u0F00\u0F01"},
      {"gpt2", R"({"model": {"vocab": {"zqz": 701}, "ignore_merges": false}})", "/model/ignore_merges", "true", "zqz"},
      {"gpt2", R"({"truncation": {"max_length": 1, "direction": "Right"}})", "/truncation/direction", R"("Left")",
       "a b"},
      {"gpt2", R"({"padding": {"strategy": {"Fixed": 5}, "pad_id": 0, "direction": "Right"}})", "/padding/pad_id", "1",
       "a"},
      {"gpt2", R"({"padding": {"strategy": {"Fixed": 5}, "pad_id": 0, "direction": "Right"}})", "/padding/direction",
       R"("Left")", "a"},
      {"gpt2", R"({"padding": {"strategy": {"Fixed": 5}, "pad_to_multiple_of": 0}})", "/padding/pad_to_multiple_of",
       "8", "a"},
  };
  for (const Row& row : rows) {
    INFO(row.sections << ", " << row.place << ": " << row.text);
    Json file = reference_json(std::string(row.base) + ".json");
    const Json sections = Json::parse(row.sections);
    for (const auto& [key, value] : sections.items()) {
      if (key == "model")
        file[key].merge_patch(value);
      else
        file[key] = value;
    }
    auto results = [&] {
      Tokenizer t = Tokenizer::parse(file);
      Encoding e = t.encode(row.text);
      return std::tuple(e.ids, in_characters(row.text, e.offsets), t.decode(e.ids), t.ids(row.text));
    };
    auto expected = results();
    Json::json_pointer place(row.place);
    file[place.parent_pointer()].erase(place.back());
    CHECK(results() == expected);
    file[place] = Json::parse(row.other);
    CHECK(results() != expected);  // the text shows it
  }
}

TEST_CASE("a document begins, ends and is filled up with the tokens of its tokenizer's sections") {
  struct Row {
    const char* sections;
    DocumentTokens tokens;
  };
  const Row rows[] = {
      {R"({"post_processor": null})", {1, 2, {}}},
      {R"({"post_processor": {"type": "TemplateProcessing",
           "single": [{"SpecialToken": {"id": "x"}}, {"SpecialToken": {"id": "y"}}, {"Sequence": {"id": "A"}},
                      {"SpecialToken": {"id": "y"}}, {"SpecialToken": {"id": "x"}}],
           "special_tokens": {"x": {"ids": [0]}, "y": {"ids": [300]}}}})",
       {300, 300, {}}},
      {R"({"padding": {"strategy": "BatchLongest", "pad_id": 2}})", {1, 2, 2}},
  };
  for (const Row& row : rows) {
    INFO(row.sections);
    DocumentTokens found = Tokenizer::parse(changed("tinyllama", Json::parse(row.sections))).document_tokens();
    CHECK(found.begin.value_or(-1) == row.tokens.begin.value_or(-1));
    CHECK(found.end.value_or(-1) == row.tokens.end.value_or(-1));
    CHECK(found.pad.value_or(-1) == row.tokens.pad.value_or(-1));
  }
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
