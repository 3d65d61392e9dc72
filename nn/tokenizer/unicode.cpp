#include "nn/tokenizer/unicode.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <span>

namespace dtensor::nn {
namespace {

struct CodeRange {
  int32_t begin, end;
};
#include "nn/tokenizer/unicode_classes.inc"

}  // namespace

Utf8 utf8_at(const char* p, const char* end) {
  auto byte = [&](int i) { return p + i < end ? uint8_t(p[i]) : 0; };
  uint8_t a = byte(0);
  if (a < 0x80) return {a, 1};
  if (a < 0xC2 || a > 0xF4) return {-1, 1};
  // Only the second byte's range depends on the first: no overlong forms, surrogates or codes above U+10FFFF.
  uint8_t low = a == 0xE0 ? 0xA0 : a == 0xF0 ? 0x90 : 0x80, high = a == 0xED ? 0x9F : a == 0xF4 ? 0x8F : 0xBF;
  uint8_t b = byte(1);
  if (b < low || b > high) return {-1, 1};
  if (a < 0xE0) return {(a & 0x1F) << 6 | (b & 0x3F), 2};
  uint8_t c = byte(2);
  if ((c & 0xC0) != 0x80) return {-1, 2};
  if (a < 0xF0) return {(a & 0x0F) << 12 | (b & 0x3F) << 6 | (c & 0x3F), 3};
  uint8_t d = byte(3);
  if ((d & 0xC0) != 0x80) return {-1, 3};
  return {(a & 0x07) << 18 | (b & 0x3F) << 12 | (c & 0x3F) << 6 | (d & 0x3F), 4};
}

bool is_utf8(std::string_view text) {
  const char *p = text.data(), *end = p + text.size();
  while (p < end) {
    uint64_t eight = 0;
    if (end - p >= 8 && (std::memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) {
      p += 8;
      continue;
    }
    Utf8 c = utf8_at(p, end);
    if (c.code < 0) return false;
    p += c.length;
  }
  return true;
}

void append_utf8(std::string& text, int32_t code) {
  auto add = [&](int c) { text.push_back(char(c)); };
  auto tail = [&](int shift) { add(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | code >> 6), tail(0);
  } else if (code < 0x10000) {
    add(0xE0 | code >> 12), tail(6), tail(0);
  } else {
    add(0xF0 | code >> 18), tail(12), tail(6), tail(0);
  }
}

std::string utf8(int32_t code) {
  std::string text;
  append_utf8(text, code);
  return text;
}

void AlignedText::append(std::string_view bytes, Range origin) {
  text += bytes;
  if (tracked) from.insert(from.end(), bytes.size(), origin);
}

void AlignedText::append(const AlignedText& other, size_t at, size_t size) {
  text.append(other.text, at, size);
  for (size_t i = at; tracked && i < at + size; ++i) from.push_back(other.origin(i));
}

AlignedText AlignedText::part(size_t at, size_t size) const {
  AlignedText p{text.substr(at, size), {}, first + at, tracked};
  if (!from.empty()) p.from.assign(from.begin() + long(at), from.begin() + long(at + size));
  return p;
}

AlignedText replace_invalid(std::string_view text) {
  AlignedText valid;
  if (is_utf8(text)) return {std::string(text)};
  const char* end = text.data() + text.size();
  for (size_t at = 0; at < text.size();) {
    Utf8 c = utf8_at(text.data() + at, end);
    size_t next = at + size_t(c.length);
    if (c.code < 0)
      valid.append(replacement, {at, next});
    else
      for (size_t i = at; i < next; ++i) valid.append(text.substr(i, 1), {i, i + 1});
    at = next;
  }
  return valid;
}

CharClasses::CharClasses() {
  std::vector<uint8_t> classes(0x110000);
  auto add = [&](std::span<const CodeRange> ranges, uint8_t bit) {
    for (CodeRange r : ranges)
      for (int32_t c = r.begin; c < r.end; ++c) classes[size_t(c)] |= bit;
  };
  add(letters, letter), add(numbers, number), add(spaces, space), add(words, word);
  std::map<std::string_view, uint16_t> known;
  for (size_t c = 0; c < classes.size(); c += 128) {
    std::string_view block(reinterpret_cast<const char*>(classes.data()) + c, 128);
    auto [found, fresh] = known.emplace(block, uint16_t(known.size()));
    if (fresh) blocks_.insert(blocks_.end(), block.begin(), block.end());
    stage_.push_back(found->second);
  }
}

}  // namespace dtensor::nn
