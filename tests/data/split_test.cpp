#include "nn/tokenizer/split.h"

#include "tests/data/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// Characters that PCRE2's Unicode may class otherwise than our tables: newer ones, and U+180E.
bool same_classes(int32_t code, const CharClasses& classes) {
  static const Regex letters(R"(^\p{L}$)"), numbers(R"(^\p{N}$)"), spaces(R"(^\s$)");
  auto is = [&](const Regex& r) {
    bool found = false;
    r.for_matches(utf8(code), [&](size_t, size_t) { found = true; });
    return found;
  };
  uint8_t c = classes(code);
  return is(letters) == bool(c & CharClasses::letter) && is(numbers) == bool(c & CharClasses::number) &&
         (code == '\n' || is(spaces) == bool(c & CharClasses::space));
}

// Text in which all that the patterns look at is frequent.
std::string random_text(std::mt19937& random, const CharClasses& classes) {
  static const char* parts[] = {
      "'s", "'S",       "'LL",          "'re",     "'",  "\xC5\xBF", " ", "  ", "\n", "\r\n",     "\t",           "a",
      "Bc", "1",        "22",           "!",       "?.", "_-",       "é", "中", "٣",  "\xC2\xA0", "\xE2\x80\x83", "½",
      "😀",  "\xCC\x81", "\xE2\x80\xA8", "\xC2\x85"};
  std::string text;
  for (int n = int(random() % 24); n > 0; --n) {
    if (random() % 8) {
      text += parts[random() % std::size(parts)];
      continue;
    }
    auto code = int32_t(random() % (random() % 2 ? 0x3000 : 0x20000));
    if ((code < 0xD800 || code > 0xDFFF) && same_classes(code, classes)) append_utf8(text, code);
  }
  return text;
}

template <KnownPattern pattern>
void compare(int texts, uint32_t seed) {
  CharClasses classes;
  Regex regex(regex_of(pattern));
  std::mt19937 random(seed);
  for (int i = 0; i < texts; ++i) {
    std::string text = random_text(random, classes);
    std::vector<std::string> by_hand, by_regex;
    for_pieces<pattern>(classes, text, [&](std::string_view p) { by_hand.emplace_back(p); });
    regex.for_matches(text, [&](size_t begin, size_t end) { by_regex.push_back(text.substr(begin, end - begin)); });
    if (by_hand == by_regex) continue;
    INFO("seed " << seed << ", text " << i << ": " << Json(text).dump());
    REQUIRE(by_hand == by_regex);
  }
}

void compare_all(int texts, uint32_t seed) {
  compare<KnownPattern::gpt2>(texts, seed);
  compare<KnownPattern::llama3>(texts, seed);
  compare<KnownPattern::qwen>(texts, seed);
}

}  // namespace

TEST_CASE("pieces of the known patterns are those of PCRE2 on random text") { compare_all(5000, 1); }

TEST_CASE("pieces of the known patterns are those of PCRE2 on millions of random texts", "[nightly]") {
  for (uint32_t seed = 2; seed < 12; ++seed) compare_all(200'000, seed);
}

TEST_CASE("PCRE2 and the tables agree on nearly all characters") {
  CharClasses classes;
  int other = 0;
  for (int32_t c = 0; c < 0x30000; c += 7) other += (c < 0xD800 || c > 0xDFFF) && !same_classes(c, classes);
  CHECK(other < 0x30000 / 7 / 20);  // what newer Unicode added
}

TEST_CASE("ill-formed UTF-8 is replaced as Python does") {
  struct Case {
    std::string_view bytes, text;
  };
  for (Case c : {Case{"a\xFF"
                      "b",
                      "a�b"},
                 {"\xE4\xB8", "�"},
                 {"\xE4\xB8\xE4\xB8\xAD", "�中"},
                 {"\xC0\xAF", "��"},
                 {"\xED\xA0\x80", "���"},
                 {"\xE0\x9F\xBF", "���"},
                 {"\xF0\x8F\xBF\xBF", "����"},
                 {"\xF0\x9F\x98", "�"},
                 {"\xF0\x9F\x98"
                  "a",
                  "�a"},
                 {"\xF5\x80", "��"},
                 {"\x80\x80", "��"},
                 {"\xF4\x90\x80\x80", "����"},
                 {"é", "é"},
                 {"", ""}}) {
    CHECK(replace_invalid(c.bytes).text == c.text);
    CHECK(is_utf8(c.bytes) == (c.bytes == c.text));
  }
}

TEST_CASE("what replaces ill-formed UTF-8 comes from all of it") {
  AlignedText::Range origin = replace_invalid("a\xE4\xB8z").origin(1);
  CHECK(std::pair(origin.begin, origin.end) == std::pair<size_t, size_t>(1, 3));
}

TEST_CASE("characters are read as they are written") {
  for (int32_t code : {0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF}) {
    std::string text = utf8(code);
    Utf8 c = utf8_at(text.data(), text.data() + text.size());
    CHECK(c.code == code);
    CHECK(size_t(c.length) == text.size());
  }
}

// Values of the tokenizers package.
TEST_CASE("patterns of tokenizer files mean what they mean to Oniguruma") {
  struct Row {
    const char* pattern;
    std::vector<std::string> matches;
  };
  const std::string text = "a\nab a.b, c\r\n\v1\u00E9 \u00C9 \u00B2\u24D0 e\u0301 \u180E_{,2}-[x]";
  const Row rows[] = {
      {R"(^[ab]+)", {"a", "ab"}},
      {R"(b$)", {}},
      {R"((?m)a.b)", {"a.b"}},
      {R"((?im-x:A.)B)", {}},
      {R"(a.b)", {"a.b"}},
      {R"(\ba)", {"a", "a", "a"}},
      {R"(\w\b)", {"a", "b", "a", "b", "c", "\u00E9", "\u00C9", "\u24D0", "\u0301", "_", "2", "x"}},
      {R"(\B.)", {"b", " ", "\v", "\u00E9", "\u24D0", "\u0301", "\u180E", ",", "-", "["}},
      {R"(]\z)", {"]"}},
      {R"(\w+)", {"a", "ab", "a", "b", "c", "1\u00E9", "\u00C9", "\u00B2\u24D0", "e\u0301", "_", "2", "x"}},
      {R"(\W+)", {"\n", " ", ".", ", ", "\r\n\v", " ", " ", " ", " \u180E", "{,", "}-[", "]"}},
      {R"([\w-]+)", {"a", "ab", "a", "b", "c", "1\u00E9", "\u00C9", "\u24D0", "e\u0301", "_", "2", "-", "x"}},
      {R"(\s+)", {"\n", " ", " ", "\r\n\v", " ", " ", " ", " "}},
      {R"(\S+)", {"a", "ab", "a.b,", "c", "1\u00E9", "\u00C9", "\u00B2\u24D0", "e\u0301", "\u180E_{,2}-[x]"}},
      {R"(\h+)", {"a", "ab", "a", "b", "c", "1", "e", "2"}},
      {R"(\H+)", {"\n", " ", ".", ", ", "\r\n\v", "\u00E9 \u00C9 \u00B2\u24D0 ", "\u0301 \u180E_{,", "}-[x]"}},
      {R"([^\h]+)", {"\n", " ", ".", ", ", "\r\n\v", "\u00E9 \u00C9 \u00B2\u24D0 ", "\u0301 \u180E_{,", "}-[x]"}},
      {R"([^(\s|[.,])]+)",
       {"a", "ab", "a", "b", "c", "1\u00E9", "\u00C9", "\u00B2\u24D0", "e\u0301", "\u180E_{", "2}-[x]"}},
      {R"([[:alpha:]]+)", {"a", "ab", "a", "b", "c", "\u00E9", "\u00C9", "\u24D0", "e", "x"}},
      {R"([^[:^alpha:]]+)", {"a", "ab", "a", "b", "c", "\u00E9", "\u00C9", "\u24D0", "e", "x"}},
      {R"([[:punct:]]+)", {".", ",", "\u24D0", "_{,", "}-[", "]"}},
      {R"([a-c&&b])", {"b", "b"}},
      {R"([\w&&[^a]]+)", {"b", "b", "c", "1\u00E9", "\u00C9", "\u24D0", "e\u0301", "_", "2", "x"}},
      {R"([^\w&&[^a]]+)", {"a\na", " a.", ", ", "\r\n\v", " ", " \u00B2", " ", " \u180E", "{,", "}-[", "]"}},
      {R"([\W\d]+)", {"\n", " ", ".", ", ", "\r\n\v1", " ", " \u00B2", " ", " \u180E", "{,2}-[", "]"}},
      {R"([^\Wa]+)", {"b", "b", "c", "1\u00E9", "\u00C9", "\u24D0", "e\u0301", "_", "2", "x"}},
      {R"([^a[b-d]]+)", {"\n", " ", ".", ", ", "\r\n\v1\u00E9 \u00C9 \u00B2\u24D0 e\u0301 \u180E_{,2}-[x]"}},
      {R"([]x]+)", {"x]"}},
      {R"([\w[:punct:]]+)", {"a", "ab", "a.b,", "c", "1\u00E9", "\u00C9", "\u24D0", "e\u0301", "_{,2}-[x]"}},
      {R"(a{,})", {}},
      {R"(a{,x})", {}},
      {R"(a{,2})", {"a", "a", "a"}},
      {R"([\u0061-c]+)", {"a", "ab", "a", "b", "c"}},
      {R"(\O+)", {"a\nab a.b, c\r\n\v1\u00E9 \u00C9 \u00B2\u24D0 e\u0301 \u180E_{,2}-[x]"}},
      {R"(\v)", {"\v"}},
      {R"([\v])", {"\v"}},
  };
  for (const Row& row : rows) {
    INFO(row.pattern);
    std::vector<std::string> matches;
    Regex(row.pattern).for_matches(text, [&](size_t begin, size_t end) {
      matches.push_back(text.substr(begin, end - begin));
    });
    CHECK(matches == row.matches);
  }
  for (const char* open : {"[a", "[a&&", "[[a]", "[\\"})
    CHECK_THAT(error_of([&] { Regex{open}; }), Contains(" is no regular expression: "));
  CHECK_THAT(error_of([&] { Regex(std::string(100'000, '[')); }),
             EndsWith(" is no regular expression: sets in sets more than 50 deep are not supported"));
}

TEST_CASE("a pattern that needs more than the stack of PCRE2's compiled code is matched without it") {
  std::string text(20000, 'a');
  size_t found = 0;
  Regex("(?:(a)|b)*").for_matches(text, [&](size_t begin, size_t end) { found += end - begin; });
  CHECK(found == text.size());
}

TEST_CASE("errors of patterns") {
  CHECK_THAT(error_of([] { Regex("\\C"); }), StartsWith("[tokenizer] \\C is no regular expression: "));
  CHECK_THAT(error_of([] { Regex("a("); }), StartsWith("[tokenizer] a( is no regular expression: "));
  CHECK(error_of([] { pattern_by_name("gpt5"); }) ==
        "[tokenizer] there is no pattern \"gpt5\": gpt2, llama3 and qwen are known");
  CHECK_THAT(error_of([] { Regex("(?:(a+)+)+[bd]").for_matches(std::string(50, 'a') + "c", [](size_t, size_t) {}); }),
             StartsWith("[tokenizer] cannot match (?:(a+)+)+[bd]: "));
}
