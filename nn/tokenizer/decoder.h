// From tokens back to text: "decoder" of a tokenizer.json.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace dtensor::nn {

// Steps through which the texts of tokens go, one token after the other. A step may hold back what the next token could
// still change: bytes of a character that is not complete.
class Decoder {
 public:
  using Emit = std::function<void(std::string)>;
  class Step {
   public:
    virtual ~Step() = default;
    virtual void token(std::string text, const Emit& emit) = 0;
    virtual void end(const Emit&) {}
  };

  // One decoding.
  class Run {
   public:
    // Text that is complete with this token.
    std::string push(std::string token);
    // What was held back: what is no character becomes U+FFFD.
    std::string end();

   private:
    friend class Decoder;
    void pass(size_t step, std::string text, std::string& out);
    std::vector<std::unique_ptr<Step>> steps_;
  };

  // Without a section, tokens are joined by spaces. Supported: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip,
  // Metaspace. Errors: another type; a field that is missing or unknown.
  Decoder(const nlohmann::ordered_json& section, const std::string& path);
  Decoder() = default;
  Run begin() const;

 private:
  void add(const nlohmann::ordered_json& section, const std::string& path);
  std::vector<std::function<std::unique_ptr<Step>()>> steps_;
  bool spaces_ = true;  // tokens are joined by spaces
};

// The 256 characters of GPT-2's byte alphabet, in which tokens of byte-level files are written: byte b's is
// byte_char(b); of_alphabet gives raw bytes back. A text with any other character is not of that alphabet: nullopt.
std::string byte_char(uint8_t byte);
std::optional<std::string> of_byte_alphabet(std::string_view text);

}  // namespace dtensor::nn
