#include "nn/tokenizer/decoder.h"

#include <array>

#include "nn/tokenizer/normalizer.h"
#include "nn/tokenizer/section.h"

namespace dtensor::nn {
namespace {

// Printable bytes stand for themselves, the others, in order, for the characters from 256 on (GPT-2's encoder.py).
struct Alphabet {
  std::array<int32_t, 256> code;
  std::array<int16_t, 512> byte;
  constexpr Alphabet() : code(), byte() {
    for (auto& b : byte) b = -1;
    for (int32_t b = 0, next = 256; b < 256; ++b) {
      bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      code[size_t(b)] = printable ? b : next++;
      byte[size_t(code[size_t(b)])] = int16_t(b);
    }
  }
};
constexpr Alphabet alphabet;

// Bytes become characters; a sequence that may go on is held back.
class ByteLevelStep : public Decoder::Step {
 public:
  void token(std::string text, const Decoder::Emit& emit) override {
    auto bytes = of_byte_alphabet(text);
    held_ += bytes ? *bytes : text;
    // An unfinished sequence at the end is its maximal part: up to three bytes that reach the end.
    size_t keep = held_.size();
    for (size_t back = 1; back <= 3 && back <= held_.size(); ++back) {
      auto lead = uint8_t(held_[held_.size() - back]);
      if ((lead & 0xC0) == 0x80) continue;
      Utf8 c = utf8_at(held_.data() + held_.size() - back, held_.data() + held_.size());
      if (c.code < 0 && c.length == int(back) && lead >= 0xC2 && lead <= 0xF4) keep = held_.size() - back;
      break;
    }
    if (keep == 0) return;
    std::string ready = replace_invalid(std::string_view(held_).substr(0, keep)).text;
    held_.erase(0, keep);
    emit(std::move(ready));
  }
  void end(const Decoder::Emit& emit) override {
    if (!held_.empty()) emit(replace_invalid(held_).text);
    held_.clear();
  }

 private:
  std::string held_;
};

// A run of tokens <0x..> is the characters of these bytes; where they are none, one U+FFFD for each.
class ByteFallbackStep : public Decoder::Step {
 public:
  void token(std::string text, const Decoder::Emit& emit) override {
    auto digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                    : -1;
    };
    if (text.size() == 6 && text.starts_with("<0x") && text[5] == '>' && digit(text[3]) >= 0 && digit(text[4]) >= 0) {
      held_.push_back(char(digit(text[3]) * 16 + digit(text[4])));
      return;
    }
    end(emit);
    emit(std::move(text));
  }
  void end(const Decoder::Emit& emit) override {
    if (held_.empty()) return;
    if (is_utf8(held_)) {
      emit(held_);
    } else {
      for (size_t i = 0; i < held_.size(); ++i) emit(std::string(replacement));
    }
    held_.clear();
  }

 private:
  std::string held_;
};

class ReplaceStep : public Decoder::Step {
 public:
  explicit ReplaceStep(Replace replace) : replace_(std::move(replace)) {}
  void token(std::string text, const Decoder::Emit& emit) override { emit(replace_({std::move(text)}).text); }

 private:
  Replace replace_;
};

// Takes up to `start` times `content` off each token, or behind Fuse off the whole text.
class StripStep : public Decoder::Step {
 public:
  StripStep(std::string content, int64_t start, bool whole)
      : content_(std::move(content)), start_(start), left_(start), whole_(whole) {}
  void token(std::string text, const Decoder::Emit& emit) override {
    if (!whole_) left_ = start_;
    size_t at = 0;
    while (left_ > 0 && text.compare(at, content_.size(), content_) == 0) at += content_.size(), --left_;
    if (at < text.size()) left_ = 0;
    emit(text.substr(at));
  }

 private:
  std::string content_;
  int64_t start_, left_;
  bool whole_;
};

// Marks become spaces; where a tokenizer puts one before the text, those of the first token go, as in the package.
class MetaspaceStep : public Decoder::Step {
 public:
  MetaspaceStep(std::string mark, bool prepended) : mark_(std::move(mark)), prepended_(prepended) {}
  void token(std::string text, const Decoder::Emit& emit) override {
    std::string plain;
    for (size_t at = 0; at < text.size();) {
      bool is_mark = text.compare(at, mark_.size(), mark_) == 0;
      if (!is_mark)
        plain += text[at];
      else if (!(first_ && prepended_))
        plain += ' ';
      at += is_mark ? mark_.size() : 1;
    }
    first_ = false;
    emit(std::move(plain));
  }

 private:
  std::string mark_;
  bool prepended_, first_ = true;
};

class SpacesStep : public Decoder::Step {
 public:
  void token(std::string text, const Decoder::Emit& emit) override {
    emit(first_ ? std::move(text) : " " + text);
    first_ = false;
  }

 private:
  bool first_ = true;
};

}  // namespace

std::string byte_char(uint8_t byte) { return utf8(alphabet.code[byte]); }

std::optional<std::string> of_byte_alphabet(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    Utf8 c = utf8_at(text.data() + at, text.data() + text.size());
    if (c.code < 0 || c.code >= 512 || alphabet.byte[size_t(c.code)] < 0) return std::nullopt;
    bytes.push_back(char(alphabet.byte[size_t(c.code)]));
    at += size_t(c.length);
  }
  return bytes;
}

Decoder::Decoder(const nlohmann::ordered_json& section, const std::string& path) {
  if (!section.is_null()) add(section, path);
}

void Decoder::add(const nlohmann::ordered_json& json, const std::string& path) {
  Section s(json, path);
  auto type = s.get<std::string>("type");
  spaces_ = false;
  if (type == "Sequence") {
    const auto& list = s.required("decoders");
    bool fused = false;
    for (size_t i = 0; i < list.size(); ++i) {
      std::string where = fmt::format("{}.decoders[{}]", path, i);
      Section step(list[i], where);
      auto name = step.get<std::string>("type");
      if (name == "Fuse") {
        fused = true;  // what follows sees one text
        step.end();
      } else if (name == "Strip") {
        auto content = step.get<std::string>("content");
        auto start = step.get<int64_t>("start", 0), stop = step.get<int64_t>("stop", 0);
        check(stop == 0 && !content.empty(),
              "[tokenizer] {} takes {} times \"{}\" off the end: only a text off the start is supported", where, stop,
              content);
        steps_.push_back([=] { return std::make_unique<StripStep>(content, start, fused); });
        step.end();
      } else {
        check(!fused, "[tokenizer] {} is a {} behind Fuse: only Strip is supported there", where, name);
        add(list[i], where);
      }
    }
  } else if (type == "ByteLevel") {
    for (const char* unused : {"add_prefix_space", "trim_offsets", "use_regex"}) s.find(unused);  // of encoding
    steps_.push_back([] { return std::make_unique<ByteLevelStep>(); });
  } else if (type == "Replace") {
    Section pattern(s.required("pattern"), s.at("pattern"));
    Replace replace{pattern.get<std::string>("String", ""), {}, s.get<std::string>("content")};
    if (pattern.find("Regex")) replace.regex.emplace(pattern.get<std::string>("Regex"));
    check(replace.regex || !replace.text.empty(), "[tokenizer] {} replaces nothing: its pattern is empty", path);
    pattern.end();
    steps_.push_back([=] { return std::make_unique<ReplaceStep>(replace); });
  } else if (type == "ByteFallback") {
    steps_.push_back([] { return std::make_unique<ByteFallbackStep>(); });
  } else if (type == "Fuse") {
    // tokens are joined anyway
  } else if (type == "Metaspace") {
    auto mark = s.get<std::string>("replacement", "\xE2\x96\x81");
    auto scheme = s.get<std::string>("prepend_scheme", s.get<bool>("add_prefix_space", true) ? "always" : "never");
    s.find("split");
    steps_.push_back([=] { return std::make_unique<MetaspaceStep>(mark, scheme != "never"); });
  } else {
    fail(
        "[tokenizer] {} has the type {}: supported are Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip and "
        "Metaspace",
        path, type);
  }
  s.end();
}

Decoder::Run Decoder::begin() const {
  Run run;
  for (const auto& make : steps_) run.steps_.push_back(make());
  if (spaces_) run.steps_.push_back(std::make_unique<SpacesStep>());
  return run;
}

void Decoder::Run::pass(size_t step, std::string text, std::string& out) {
  if (step == steps_.size())
    out += text;
  else
    steps_[step]->token(std::move(text), [&](std::string next) { pass(step + 1, std::move(next), out); });
}

std::string Decoder::Run::push(std::string token) {
  std::string out;
  pass(0, std::move(token), out);
  return out;
}

std::string Decoder::Run::end() {
  std::string out;
  for (size_t i = 0; i < steps_.size(); ++i)
    steps_[i]->end([&](std::string next) { pass(i + 1, std::move(next), out); });
  return out;
}

}  // namespace dtensor::nn
