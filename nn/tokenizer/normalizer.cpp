#include "nn/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <new>

#include "nn/tokenizer/section.h"

namespace dtensor::nn {
namespace {

// The ranges of the characters of text[begin, end).
std::vector<AlignedText::Range> characters(std::string_view text, size_t begin, size_t end) {
  std::vector<AlignedText::Range> list;
  while (begin < end) {
    size_t next = begin + size_t(utf8_at(text.data() + begin, text.data() + end).length);
    list.push_back({begin, next});
    begin = next;
  }
  return list;
}

// How many code points a character decomposes into.
int64_t decomposed(std::string_view text, AlignedText::Range c, int options) {
  utf8proc_int32_t codes[32];
  int boundclass = 0;
  auto kind = utf8proc_option_t((options & UTF8PROC_COMPAT) | UTF8PROC_DECOMPOSE);
  return utf8proc_decompose_char(utf8_at(text.data() + c.begin, text.data() + c.end).code, codes, 32, kind,
                                 &boundclass);
}

// `normal` is what from.text[begin, end) became: each of its characters comes from the one where its own decomposition
// begins, so a composed one from its base.
void append_changed(AlignedText& to, std::string_view normal, const AlignedText& from, size_t begin, size_t end,
                    int options) {
  auto old = characters(from.text, begin, end);
  int64_t at = 0, old_end = decomposed(from.text, old[0], options);  // in decomposed text
  size_t k = 0;
  for (AlignedText::Range c : characters(normal, 0, normal.size())) {
    while (at >= old_end && k + 1 < old.size()) old_end += decomposed(from.text, old[++k], options);
    to.append(normal.substr(c.begin, c.end - c.begin),
              {from.origin(old[k].begin).begin, from.origin(old[k].end - 1).end});
    at += decomposed(normal, c, options);
  }
}

// Normalizes what lies between two characters at which a normal form cannot reach across: starters that nothing
// composes with. Those of ASCII suffice as such places.
AlignedText normal_form(const AlignedText& from, int options) {
  AlignedText to = from.emptied();
  const std::string& text = from.text;
  auto is_ascii = [&](size_t i) { return uint8_t(text[i]) < 0x80; };
  for (size_t at = 0; at < text.size();) {
    size_t end = at + 1;
    if (is_ascii(at) && (end == text.size() || is_ascii(end))) {  // nothing combines with it
      to.append(from, at, 1);
      at = end;
      continue;
    }
    while (end < text.size() && !is_ascii(end)) ++end;
    // Inside, cut before each character that is a starter and composes with nothing before it.
    size_t begin = at;
    auto flush = [&](size_t until) {
      std::string_view part(text.data() + begin, until - begin);
      utf8proc_uint8_t* made = nullptr;
      utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(part.data()),
                                           utf8proc_ssize_t(part.size()), &made, utf8proc_option_t(options));
      if (size < 0) throw std::bad_alloc();  // all else that can fail is text that is no UTF-8
      std::string_view normal(reinterpret_cast<char*>(made), size_t(size));
      if (normal == part)
        to.append(from, begin, part.size());
      else
        append_changed(to, normal, from, begin, until, options);
      std::free(made);
      begin = until;
    };
    for (size_t i = at; i < end;) {
      Utf8 c = utf8_at(text.data() + i, text.data() + text.size());
      const utf8proc_property_t* p = utf8proc_get_property(c.code);
      bool hangul = c.code >= 0x1100 && c.code < 0x1200;  // vowels and trailing consonants compose with what leads
      bool second = p->comb_index != UINT16_MAX;          // it may compose, as the first or the second
      if (i > begin && p->combining_class == 0 && !second && !hangul && p->decomp_seqindex == UINT16_MAX) flush(i);
      i += size_t(c.length);
    }
    flush(end);
    at = end;
  }
  return to;
}

// A bit for each character that stands as it is in these normal forms, whatever such characters are beside it: it has
// no other form and composes with nothing before it.
std::vector<bool> that_stay(const std::vector<int>& forms) {
  constexpr int32_t all = 0x110000;
  std::vector<bool> stays(all), second(all);
  auto changes = [&](int32_t c) {
    std::string text = utf8(c);
    for (int options : forms)
      if (normal_form({text}, options).text != text) return true;
    return false;
  };
  for (int32_t c = 0; c < all; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const utf8proc_property_t* p = utf8proc_get_property(c);
    bool hangul = c >= 0xAC00 && c < 0xD7A4;
    stays[size_t(c)] = p->combining_class == 0;
    if (p->decomp_seqindex == UINT16_MAX && !hangul) continue;
    if (changes(c)) stays[size_t(c)] = false;
    utf8proc_int32_t codes[32];
    int boundclass = 0;
    auto size = utf8proc_decompose_char(c, codes, 32, UTF8PROC_DECOMPOSE, &boundclass);
    for (int i = 1; i < size; ++i) second[size_t(codes[i])] = true;
  }
  for (size_t c = 0; c < stays.size(); ++c) stays[c] = stays[c] && !second[c];
  return stays;
}

AlignedText lowercase(const AlignedText& from) {
  AlignedText to = from.emptied();
  for (size_t at = 0; at < from.text.size();) {
    Utf8 c = utf8_at(from.text.data() + at, from.text.data() + from.text.size());
    size_t last = at + size_t(c.length) - 1;
    // The one character whose small form is two: U+0130.
    std::string lower = c.code == 0x130 ? "i\xCC\x87" : utf8(utf8proc_tolower(c.code));
    to.append(lower, {from.origin(at).begin, from.origin(last).end});
    at = last + 1;
  }
  return to;
}

AlignedText strip(const AlignedText& from, bool left, bool right) {
  size_t begin = 0, end = from.text.size();
  CharClasses classes;
  auto is_space = [&](size_t i) {
    return (classes(utf8_at(&from.text[i], from.text.data() + from.text.size()).code) & CharClasses::space) != 0;
  };
  while (left && begin < end && is_space(begin)) begin += size_t(utf8_at(&from.text[begin], &from.text[end]).length);
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (uint8_t(from.text[last]) & 0xC0) == 0x80) --last;
    if (!is_space(last)) break;
    end = last;
  }
  return from.part(begin, end - begin);
}

}  // namespace

AlignedText Replace::operator()(const AlignedText& from) const {
  AlignedText to = from.emptied();
  size_t at = 0;
  auto match = [&](size_t begin, size_t end) {
    to.append(from, at, begin - at);
    to.append(content, {from.origin(begin).begin, from.origin(end - 1).end});
    at = end;
  };
  if (regex) {
    regex->for_matches(from.text, match);
  } else {
    for (size_t found; (found = from.text.find(text, at)) != std::string::npos;) match(found, found + text.size());
  }
  if (at == 0) return from;
  to.append(from, at, from.text.size() - at);
  return to;
}

AlignedText prepend(std::string_view text, const AlignedText& to) {
  if (to.text.empty()) return to;
  size_t first = size_t(utf8_at(to.text.data(), to.text.data() + to.text.size()).length);
  AlignedText longer = to.emptied();
  longer.append(text, {to.origin(0).begin, to.origin(first - 1).end});
  longer.append(to, 0, to.text.size());
  return longer;
}

Normalizer::Normalizer(const nlohmann::ordered_json& section, const std::string& path) {
  if (!section.is_null()) add(section, path);
  if (is_form_ && !empty()) stays_ = that_stay(forms_);
}

void Normalizer::add(const nlohmann::ordered_json& json, const std::string& path) {
  Section s(json, path);
  auto type = s.get<std::string>("type");
  is_form_ &= type == "Sequence" || type.starts_with("NF");
  is_local_ &= type == "Sequence" || type.starts_with("NF") || type == "Lowercase";
  constexpr int d = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, c = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  auto form = [&](int options) {
    forms_.push_back(options);
    steps_.push_back([options](const AlignedText& t) { return normal_form(t, options); });
  };
  if (type == "Sequence") {
    const auto& list = s.required("normalizers");
    for (size_t i = 0; i < list.size(); ++i) add(list[i], fmt::format("{}.normalizers[{}]", path, i));
  } else if (type == "NFC") {
    form(c);
  } else if (type == "NFD") {
    form(d);
  } else if (type == "NFKC") {
    form(c | UTF8PROC_COMPAT);
  } else if (type == "NFKD") {
    form(d | UTF8PROC_COMPAT);
  } else if (type == "Prepend") {
    steps_.push_back([text = s.get<std::string>("prepend")](const AlignedText& t) { return prepend(text, t); });
  } else if (type == "Replace") {
    Section pattern(s.required("pattern"), s.at("pattern"));
    Replace replace{pattern.get<std::string>("String", ""), {}, s.get<std::string>("content")};
    if (pattern.find("Regex")) replace.regex.emplace(pattern.get<std::string>("Regex"));
    check(replace.regex || !replace.text.empty(), "[tokenizer] {} replaces nothing: its pattern is empty", path);
    pattern.end();
    steps_.push_back(replace);
  } else if (type == "Lowercase") {
    steps_.push_back(lowercase);
  } else if (type == "Strip") {
    bool left = s.get<bool>("strip_left", true), right = s.get<bool>("strip_right", true);
    steps_.push_back([=](const AlignedText& t) { return strip(t, left, right); });
  } else {
    fail(
        "[tokenizer] {} has the type {}: supported are Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace, Lowercase and "
        "Strip",
        path, type);
  }
  s.end();
}

bool Normalizer::keeps(std::string_view text) const {
  if (empty()) return true;
  const char* end = text.data() + text.size();
  for (const char* p = text.data(); is_form_ && p < end;) {
    if (uint8_t(*p) < 0x80) {  // stays in all forms
      ++p;
      continue;
    }
    Utf8 c = utf8_at(p, end);
    if (c.code < 0 || !stays_[size_t(c.code)]) return false;
    p += c.length;
  }
  return is_form_;
}

AlignedText Normalizer::operator()(AlignedText text) const {
  for (const Step& step : steps_) text = step(std::move(text));
  return text;
}

}  // namespace dtensor::nn
