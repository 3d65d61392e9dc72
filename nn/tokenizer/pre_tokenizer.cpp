#include "nn/tokenizer/pre_tokenizer.h"

#include "nn/tokenizer/normalizer.h"
#include "nn/tokenizer/section.h"

namespace dtensor::nn {
namespace {

struct Piece {
  size_t begin, end;
  bool match;
};

enum class Behavior : uint8_t { isolated, removed, with_previous, with_next, contiguous };

Behavior behavior_of(const std::string& name, const std::string& path) {
  constexpr const char* names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
  for (size_t i = 0; i < 5; ++i)
    if (name == names[i]) return Behavior(i);
  fail(
      "[tokenizer] {}.behavior is {}: Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous are "
      "supported",
      path, name);
}

// What of matches and what lies between them belongs together.
std::vector<Piece> join(const std::vector<Piece>& parts, Behavior behavior) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Piece& p = parts[i];
    bool to_last = false;
    if (i > 0) {
      const Piece& last = parts[i - 1];
      to_last = (behavior == Behavior::with_previous && p.match && !last.match) ||
                (behavior == Behavior::with_next && last.match && !p.match) ||
                (behavior == Behavior::contiguous && last.match == p.match);
    }
    if (to_last)
      pieces.back().end = p.end;
    else if (!(behavior == Behavior::removed && p.match))
      pieces.push_back(p);
  }
  return pieces;
}

template <class ForMatches>
void split(const AlignedText& text, bool invert, Behavior behavior, std::vector<AlignedText>& pieces,
           ForMatches for_matches) {
  std::vector<Piece> parts;
  size_t at = 0;
  auto add = [&](size_t begin, size_t end, bool match) {
    if (end > begin) parts.push_back({begin, end, match != invert});
  };
  for_matches([&](size_t begin, size_t end) {
    add(at, begin, false), add(begin, end, true);
    at = end;
  });
  add(at, text.text.size(), false);
  for (const Piece& p : join(parts, behavior)) pieces.push_back(text.part(p.begin, p.end - p.begin));
}

template <class F>
void for_text(const std::string& in, const std::string& text, F f) {
  for (size_t at = 0; (at = in.find(text, at)) != std::string::npos; at += text.size()) f(at, at + text.size());
}

template <class F>
void for_known(KnownPattern pattern, const CharClasses& classes, const std::string& text, F f) {
  auto piece = [&](std::string_view p) {
    auto begin = size_t(p.data() - text.data());
    f(begin, begin + p.size());
  };
  switch (pattern) {
    case KnownPattern::gpt2:
      return for_pieces<KnownPattern::gpt2>(classes, text, piece);
    case KnownPattern::llama3:
      return for_pieces<KnownPattern::llama3>(classes, text, piece);
    case KnownPattern::qwen:
      return for_pieces<KnownPattern::qwen>(classes, text, piece);
  }
}

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::ordered_json& section, const std::string& path) {
  if (!section.is_null()) add(section, path);
}

void PreTokenizer::add(const nlohmann::ordered_json& json, const std::string& path) {
  Section s(json, path);
  check(!byte_level_, "[tokenizer] {} is behind ByteLevel, which must be the last step", path);
  auto type = s.get<std::string>("type");
  // More than one step that cuts; ByteLevel may cut no more.
  if (type != "Sequence" && type != "ByteLevel" && !steps_.empty()) known_.reset();
  if (type == "Sequence") {
    const auto& list = s.required("pretokenizers");
    for (size_t i = 0; i < list.size(); ++i) add(list[i], fmt::format("{}.pretokenizers[{}]", path, i));
  } else if (type == "Split") {
    add_split(s);
  } else if (type == "ByteLevel") {
    add_byte_level(s);
  } else if (type == "Metaspace") {
    add_metaspace(s);
  } else if (type == "Digits") {
    Behavior behavior = s.get<bool>("individual_digits", false) ? Behavior::isolated : Behavior::contiguous;
    steps_.push_back([=](const AlignedText& t, const CharClasses& classes, Pieces& pieces) {
      split(t, false, behavior, pieces, [&](auto match) {
        const char* end = t.text.data() + t.text.size();
        for (size_t at = 0; at < t.text.size();) {
          Utf8 c = utf8_at(t.text.data() + at, end);
          if (classes(c.code) & CharClasses::number) match(at, at + size_t(c.length));
          at += size_t(c.length);
        }
      });
    });
  } else {
    fail("[tokenizer] {} has the type {}: supported are Sequence, Split, ByteLevel, Metaspace and Digits", path, type);
  }
  s.end();
}

void PreTokenizer::add_split(Section& s) {
  Section pattern(s.required("pattern"), s.at("pattern"));
  Behavior behavior = behavior_of(s.get<std::string>("behavior"), s.path());
  bool invert = s.get<bool>("invert", false);
  if (pattern.find("String")) {
    auto text = pattern.get<std::string>("String");
    check(!text.empty(), "[tokenizer] {} cuts at nothing: its pattern is empty", s.path());
    steps_.push_back([=](const AlignedText& t, const CharClasses&, Pieces& pieces) {
      split(t, invert, behavior, pieces, [&](auto match) { for_text(t.text, text, match); });
    });
  } else {
    auto regex = pattern.get<std::string>("Regex");
    if (auto known = known_pattern(regex)) {
      // Its matches tile the text: matched and isolated, or all between matches removed, is the same.
      bool tiles =
          !invert ? behavior == Behavior::isolated : behavior == Behavior::removed || behavior == Behavior::isolated;
      if (tiles && steps_.empty()) known_ = known;
      steps_.push_back([=](const AlignedText& t, const CharClasses& classes, Pieces& pieces) {
        split(t, invert, behavior, pieces, [&](auto match) { for_known(*known, classes, t.text, match); });
      });
    } else {
      steps_.push_back([=, regex = Regex(regex)](const AlignedText& t, const CharClasses&, Pieces& pieces) {
        split(t, invert, behavior, pieces, [&](auto match) { regex.for_matches(t.text, match); });
      });
    }
  }
  pattern.end();
}

void PreTokenizer::add_byte_level(Section& s) {
  bool prefix = s.get<bool>("add_prefix_space", true), use_regex = s.get<bool>("use_regex", true);
  s.get<bool>("trim_offsets", true);  // only the post-processor's counts
  known_ = prefix           ? std::nullopt
           : !use_regex     ? known_
           : steps_.empty() ? std::optional(KnownPattern::gpt2)
                            : std::nullopt;
  byte_level_ = true;
  if (prefix)
    steps_.push_back([](const AlignedText& t, const CharClasses&, Pieces& pieces) {
      pieces.push_back(t.text.starts_with(' ') ? t : prepend(" ", t));
    });
  if (use_regex)
    steps_.push_back([](const AlignedText& t, const CharClasses& classes, Pieces& pieces) {
      split(t, false, Behavior::isolated, pieces,
            [&](auto match) { for_known(KnownPattern::gpt2, classes, t.text, match); });
    });
}

void PreTokenizer::add_metaspace(Section& s) {
  auto mark = s.get<std::string>("replacement", "\xE2\x96\x81");
  auto scheme = s.get<std::string>("prepend_scheme", s.get<bool>("add_prefix_space", true) ? "always" : "never");
  check(scheme == "always" || scheme == "first" || scheme == "never",
        "[tokenizer] {}.prepend_scheme is {}, not always, first or never", s.path(), scheme);
  bool cut = s.get<bool>("split", true);
  looks_at_origins_ |= scheme == "first";
  steps_.push_back([=, spaces = Replace{" ", {}, mark}](const AlignedText& t, const CharClasses&, Pieces& pieces) {
    AlignedText marked = spaces(t);
    bool first = !t.text.empty() && t.origin(0).begin == 0;
    if (!marked.text.starts_with(mark) && (scheme == "always" || (scheme == "first" && first)))
      marked = prepend(mark, marked);
    if (!cut) return pieces.push_back(marked);
    split(marked, false, Behavior::with_next, pieces, [&](auto match) { for_text(marked.text, mark, match); });
  });
}

std::vector<AlignedText> PreTokenizer::operator()(const AlignedText& text, const CharClasses& classes) const {
  Pieces pieces{text}, next;
  for (const Step& step : steps_) {
    next.clear();
    for (const AlignedText& p : pieces)
      if (!p.text.empty()) step(p, classes, next);
    pieces.swap(next);
  }
  std::erase_if(pieces, [](const AlignedText& p) { return p.text.empty(); });
  return pieces;
}

}  // namespace dtensor::nn
