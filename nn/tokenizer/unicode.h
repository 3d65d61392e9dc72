// UTF-8 and classes of characters, as tokenizers need them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dtensor::nn {

// One character of UTF-8 at `p` (p < end): how many bytes it takes, and its code point, or -1 where the bytes are no
// character; then `length` is the maximal part of an ill-formed sequence, which Python's errors="replace" turns into
// one U+FFFD (Unicode 15, section 3.9, table 3-8).
struct Utf8 {
  int32_t code;
  int length;
};
Utf8 utf8_at(const char* p, const char* end);

bool is_utf8(std::string_view text);
void append_utf8(std::string& text, int32_t code);
std::string utf8(int32_t code);
constexpr std::string_view replacement = "\xEF\xBF\xBD";  // U+FFFD

// Text and where each of its bytes came from: a range of bytes of the text that it was made of. While nothing has
// changed, `from` is empty and byte i came from first + i.
struct AlignedText {
  struct Range {
    size_t begin, end;
  };
  std::string text;
  std::vector<Range> from = {};
  size_t first = 0;
  bool tracked = true;  // false: nobody asks where bytes came from, and `from` stays empty

  AlignedText emptied() const { return {{}, {}, first, tracked}; }  // to be filled with what this text becomes

  Range origin(size_t byte) const { return from.empty() ? Range{first + byte, first + byte + 1} : from[byte]; }
  void append(std::string_view bytes, Range origin);              // all from one place
  void append(const AlignedText& other, size_t at, size_t size);  // a part of another, with its origins
  AlignedText part(size_t at, size_t size) const;
};

// Each ill-formed sequence becomes U+FFFD.
AlignedText replace_invalid(std::string_view text);

// The classes of a code point, by a table of two stages: one load for ASCII, two for the others.
class CharClasses {
 public:
  enum : uint8_t { letter = 1, number = 2, space = 4, word = 8 };
  CharClasses();
  const uint8_t* ascii() const { return blocks_.data(); }
  uint8_t operator()(int32_t code) const { return blocks_[size_t(stage_[size_t(code) >> 7]) << 7 | (code & 127)]; }

 private:
  std::vector<uint16_t> stage_;  // of each 128 code points, their block
  std::vector<uint8_t> blocks_;  // the first is ASCII
};

}  // namespace dtensor::nn
