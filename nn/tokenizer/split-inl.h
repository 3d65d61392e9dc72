// The three known patterns by hand; included by split.h.
#pragma once

#include <bit>
#include <cstring>

namespace dtensor::nn {

// A reading position: the class of the character there, and the way to the next.
class PieceReader {
 public:
  PieceReader(const CharClasses& classes, std::string_view text)
      : classes_(classes), ascii_(classes.ascii()), end_(text.data() + text.size()) {}

  // The class of the character at p (p < end), and its length.
  struct Char {
    uint8_t cls;
    int length;
  };
  Char at(const char* p) const {
    uint8_t c = uint8_t(*p);
    if (c < 0x80) [[likely]]
      return {ascii_[c], 1};
    // Valid UTF-8: no checks.
    auto tail = [p](int i) { return p[i] & 0x3F; };
    if (c < 0xE0) return {classes_((c & 0x1F) << 6 | tail(1)), 2};
    if (c < 0xF0) return {classes_((c & 0x0F) << 12 | tail(1) << 6 | tail(2)), 3};
    return {classes_((c & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3)), 4};
  }
  const char* end() const { return end_; }

  // Behind the run of characters from p on that have one of the classes in `wanted`, or none of those with a name.
  const char* run(const char* p, uint8_t wanted) const {
    while (p < end_) {
      Char c = at(p);
      if (!(c.cls & wanted)) break;
      p += c.length;
    }
    return p;
  }
  const char* letters(const char* p) const {
    // Eight bytes at once: the high bit of each is set in `ends` where it is no letter of ASCII.
    while (end_ - p >= 8) {
      constexpr uint64_t ones = 0x0101010101010101u;
      uint64_t bytes;
      std::memcpy(&bytes, p, 8);
      uint64_t small = (bytes | 0x20 * ones) & 0x7F * ones;
      uint64_t ends = ~((small + (0x80 - 'a') * ones) & ~(small + (0x7F - 'z') * ones) & ~bytes) & 0x80 * ones;
      if (ends) {
        int ascii = (std::endian::native == std::endian::little ? std::countr_zero(ends) : std::countl_zero(ends)) / 8;
        p += ascii;
        return uint8_t(*p) < 0x80 ? p : run(p, CharClasses::letter);
      }
      p += 8;
    }
    return run(p, CharClasses::letter);
  }
  const char* run_of_others(const char* p) const {
    constexpr uint8_t named = CharClasses::letter | CharClasses::number | CharClasses::space;
    while (p < end_) {
      Char c = at(p);
      if (c.cls & named) break;
      p += c.length;
    }
    return p;
  }
  static bool is_newline(char c) { return c == '\n' || c == '\r'; }

  // Behind 's 't 're 've 'm 'll 'd where p is the apostrophe; p where it is none of them.
  template <bool any_case>
  const char* contraction(const char* p) const {
    auto letter = [&](int i) -> int {
      if (end_ - p <= i) return 0;
      int c = uint8_t(p[i]);
      return any_case && c >= 'A' && c <= 'Z' ? c + 32 : c;
    };
    int a = letter(1), b = letter(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return p + 3;
    if (any_case && a == 0xC5 && b == 0xBF) return p + 3;  // U+017F is a form of s
    return p;
  }

  // White space at p: all of a run but its last character, unless it is the only one or text ends there.
  const char* white_space(const char* p) const {
    const char *q = p, *last = p;
    while (q < end_) {
      Char c = at(q);
      if (!(c.cls & CharClasses::space)) break;
      last = q;
      q += c.length;
    }
    return q < end_ && last > p ? last : q;
  }

 private:
  const CharClasses& classes_;
  const uint8_t* ascii_;
  const char* end_;
};

// Behind the piece that begins at p.
template <KnownPattern pattern>
inline const char* piece_end(const PieceReader& r, const char* p) {
  constexpr bool gpt2 = pattern == KnownPattern::gpt2;
  using C = CharClasses;
  if (*p == '\'')
    if (const char* q = r.contraction<!gpt2>(p); q > p) return q;
  PieceReader::Char c = r.at(p);
  const char* next = p + c.length;
  if (c.cls & C::letter) return r.letters(next);
  if constexpr (gpt2) {
    if (c.cls & C::number) return r.run(next, C::number);
    if (*p == ' ' && next < r.end()) {
      uint8_t after = r.at(next).cls;
      if (after & C::letter) return r.letters(next);
      if (after & C::number) return r.run(next, C::number);
      if (!(after & C::space)) return r.run_of_others(next);
    }
    if (!(c.cls & C::space)) return r.run_of_others(next);
    return r.white_space(p);
  } else {
    if (c.cls & C::number) {
      for (int digits = 1; pattern == KnownPattern::llama3 && digits < 3 && next < r.end(); ++digits) {
        PieceReader::Char n = r.at(next);
        if (!(n.cls & C::number)) break;
        next += n.length;
      }
      return next;
    }
    if (next < r.end() && !PieceReader::is_newline(*p) && (r.at(next).cls & C::letter)) return r.letters(next);
    constexpr uint8_t named = C::letter | C::number | C::space;
    bool other = !(c.cls & named);
    if (other || (*p == ' ' && next < r.end() && !(r.at(next).cls & named))) {
      const char* q = r.run_of_others(next);
      while (q < r.end() && PieceReader::is_newline(*q)) ++q;
      return q;
    }
    // White space: up to its last line break, where it has one.
    const char *q = p, *line = p;
    for (const char* end = r.run(p, C::space); q < end; ++q)
      if (PieceReader::is_newline(*q)) line = q + 1;
    return line > p ? line : r.white_space(p);
  }
}

template <KnownPattern pattern, class F>
void for_pieces(const CharClasses& classes, std::string_view text, F f) {
  PieceReader reader(classes, text);
  for (const char* p = text.data(); p < reader.end();) {
    const char* q = piece_end<pattern>(reader, p);
    f(std::string_view(p, size_t(q - p)));
    p = q;
  }
}

}  // namespace dtensor::nn
