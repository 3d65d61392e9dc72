#include "nn/tokenizer/dialect.h"

#include <fmt/format.h>
#include <array>
#include <utility>
#include <vector>

#include "placement/error.h"

namespace dtensor::nn {
namespace {

// What may stand in a set. PCRE2 knows Alphabetic from 10.40 on, so \w does without it.
#define DTENSOR_WORD \
  R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})"
#define DTENSOR_GRAPH R"(\p{L}\p{M}\p{N}\p{P}\p{S}\p{Cf}\p{Co})"
constexpr std::string_view word = DTENSOR_WORD, space = R"(\t-\r\x{85}\p{Z})", hexadecimal = "0-9A-Fa-f",
                           word_alone = DTENSOR_WORD R"(\xB2\xB3\xB9\xBC-\xBE)";  // superscripts, fractions of Latin-1
constexpr std::pair<std::string_view, std::string_view> posix[] = {{"alpha", R"(\p{Alphabetic})"},
                                                                   {"alnum", R"(\p{Alphabetic}\p{Nd})"},
                                                                   {"upper", R"(\p{Uppercase})"},
                                                                   {"lower", R"(\p{Lowercase})"},
                                                                   {"punct", R"(\p{P}\p{S})"},
                                                                   {"graph", DTENSOR_GRAPH},
                                                                   {"print", DTENSOR_GRAPH R"(\p{Zs})"},
                                                                   {"blank", R"(\t\p{Zs})"},
                                                                   {"cntrl", R"(\p{Cc})"},
                                                                   {"digit", R"(\p{Nd})"},
                                                                   {"xdigit", hexadecimal},
                                                                   {"space", space},
                                                                   {"word", word}};
#undef DTENSOR_GRAPH
#undef DTENSOR_WORD

// Characters, or all others.
struct Class {
  std::string_view characters;
  bool others = false;
};

// Of an escape that is one; else none. In a set \w knows fewer characters.
Class class_of(std::string_view escape, bool in_set) {
  switch (escape.size() == 2 && escape[0] == '\\' ? escape[1] : '\0') {
    case 'w':
    case 'W':
      return {in_set ? word : word_alone, escape[1] == 'W'};
    case 's':
    case 'S':
      return {space, escape[1] == 'S'};
    case 'h':
    case 'H':
      return {hexadecimal, escape[1] == 'H'};
    default:
      return {};
  }
}

class Translation {
 public:
  explicit Translation(std::string_view pattern) : pattern_(pattern), rest_(pattern) {}

  std::string run() {
    std::string to;
    while (!rest_.empty()) {
      if (rest_[0] == '[')
        to += set();
      else if (rest_[0] == '\\')
        to += escape();
      else if (rest_.starts_with("(?"))
        to += group();
      else if (at_most())
        take(1), to += "{0";
      else
        to += take(1);
    }
    return to;
  }

 private:
  std::string_view take(size_t n) {
    std::string_view taken = rest_.substr(0, n);
    rest_.remove_prefix(taken.size());
    return taken;
  }

  // Whether a quantifier {,n} stands here.
  bool at_most() const {
    size_t end = rest_.starts_with("{,") ? rest_.find_first_not_of("0123456789", 2) : 0;
    return end > 2 && end < rest_.size() && rest_[end] == '}';
  }

  // What a backslash begins and means the same in a set and outside.
  std::string common_escape() {
    if (rest_.starts_with("\\u") && rest_.size() >= 6) {
      take(2);
      return fmt::format("\\x{{{}}}", take(4));
    }
    if (rest_.starts_with("\\v")) {
      take(2);
      return "\\x0B";
    }
    return std::string(take(2));
  }

  std::string escape() {
    std::string_view two = rest_.substr(0, 2);
    if (Class c = class_of(two, false); !c.characters.empty()) {
      take(2);
      return fmt::format("[{}{}]", c.others ? "^" : "", c.characters);
    }
    bool boundary = two == "\\b", none = two == "\\B";
    if (boundary || none) {
      take(2);
      return fmt::format("(?:(?<=[{0}])(?{1}[{0}])|(?<![{0}])(?{2}[{0}]))", word_alone, none ? "=" : "!",
                         none ? "!" : "=");
    }
    if (two == "\\O") {
      take(2);
      return "(?s:.)";
    }
    return common_escape();
  }

  // Options, or another group: only the options of "(?imx-imx" are of another name.
  std::string group() {
    std::string to(take(2));
    size_t n = rest_.find_first_not_of("imx-");
    if (n == std::string_view::npos || n == 0 || (rest_[n] != ')' && rest_[n] != ':')) return to;
    for (char c : take(n)) to += c == 'm' ? 's' : c;
    return to;
  }

  // A set, as an expression of one character: a set of PCRE2's where it can be one, else alternatives and conditions.
  std::string set() {
    take(1);
    check(++depth_ <= most_deep,
          "[tokenizer] {} is no regular expression: sets in sets more than {} deep are not supported", pattern_,
          most_deep);
    bool others = rest_.starts_with("^");
    if (others) take(1);
    std::string characters, condition;
    std::vector<std::string> sets;
    auto joined = [&] {
      if (sets.empty()) return fmt::format("[{}]", characters);
      std::string alternatives = fmt::format("{}", fmt::join(sets, "|"));
      return characters.empty() ? fmt::format("(?:{})", alternatives)
                                : fmt::format("(?:[{}]|{})", characters, alternatives);
    };
    for (bool first = true; !rest_.empty(); first = false) {
      if (rest_[0] == ']' && !first) {
        take(1), --depth_;
        bool plain = sets.empty() && condition.empty();
        if (plain) return fmt::format("[{}{}]", others ? "^" : "", characters);
        std::string one = condition.empty() ? joined() : fmt::format("(?:{}{})", condition, joined());
        return others ? fmt::format("(?:(?!{})(?s:.))", one) : one;
      }
      if (rest_.starts_with("&&")) {
        take(2);
        condition += fmt::format("(?={})", joined());
        characters.clear(), sets.clear();
      } else if (Class c = take_class(); !c.characters.empty()) {
        if (c.others)
          sets.push_back(fmt::format("[^{}]", c.characters));
        else
          characters += c.characters;
      } else if (rest_[0] == '[') {
        sets.push_back(set());
      } else {
        characters += rest_[0] == '\\' ? common_escape() : std::string(take(1));
      }
    }
    return "[";  // not closed: PCRE2 says so
  }

  // Of an escape or a name in a set.
  Class take_class() {
    if (Class c = class_of(rest_.substr(0, 2), true); !c.characters.empty()) {
      take(2);
      return c;
    }
    for (const auto& [name, characters] : posix)
      for (bool others : {false, true})
        if (std::string text = fmt::format("[:{}{}:]", others ? "^" : "", name); rest_.starts_with(text)) {
          take(text.size());
          return {characters, others};
        }
    return {};
  }

  static constexpr int most_deep = 50;
  std::string_view pattern_, rest_;
  int depth_ = 0;  // of sets in sets
};

}  // namespace

std::string pcre2_from_oniguruma(std::string_view pattern) { return Translation(pattern).run(); }

}  // namespace dtensor::nn
