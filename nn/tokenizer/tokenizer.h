// Text to token ids and back, as a Hugging Face tokenizer.json says.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dtensor::nn {

// What `encode` gives. All vectors are of one length.
struct Encoding {
  struct Offsets {
    size_t begin, end;
    bool operator==(const Offsets&) const = default;
  };
  std::vector<int32_t> ids;
  std::vector<Offsets> offsets;  // the bytes of the text that a token stands for; 0, 0 of one that was added
  std::vector<bool> attended;    // false: padding
};

// Which tokens begin, end and fill up a document.
struct DocumentTokens {
  std::optional<int32_t> begin, end, pad;
};

struct TokenizerParts;

// An immutable tokenizer, shared by copies. Its results are those of the tokenizers package: BPE of bytes (GPT-2, Llama
// 3, Qwen 2) or of characters with byte fallback (files made from SentencePiece models, as TinyLlama's). Sections that
// are not supported are errors, for they would change ids. Text that is no UTF-8 is read as Python's errors="replace"
// does.
class Tokenizer {
 public:
  // Errors: a file that cannot be read; what is no tokenizer.json; a section, type or field that is not supported.
  static Tokenizer load(const std::string& file);
  static Tokenizer parse(const nlohmann::ordered_json& json);
  // Bytes, then [BOT], [EOT] and [PAD]: 259 tokens.
  static Tokenizer bytes();

  // With what the file's post-processor, truncation and padding sections say; `special`: whether the post-processor
  // adds its tokens.
  Encoding encode(std::string_view text, bool special = true) const;
  // The text alone: no tokens are added, nothing is cut or padded.
  std::vector<int32_t> ids(std::string_view text) const;
  // The first place from `from` on where a long text may be cut: ids() of both parts, joined, are its own. Its end
  // where there is none, or the file does to text what depends on all of it.
  size_t cut(std::string_view text, size_t from) const;
  // `skip_special` leaves special tokens out. Errors: an id that is no token.
  std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;

  std::optional<int32_t> id_of(std::string_view token) const;
  const std::string& token_of(int32_t id) const;  // as it stands in the file. Errors: an id that is no token
  int64_t vocab_size() const;                     // one more than the largest id
  bool is_special(int32_t id) const;

  // What the post-processor puts before and behind a text; where it puts nothing, tokens of well-known names: [BOT],
  // <|begin_of_text|>, <s> ...; of GPT-2's file <|endoftext|> ends a document and nothing begins it.
  const DocumentTokens& document_tokens() const;

 private:
  friend class Encoder;
  friend class DecodeStream;
  explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}
  std::shared_ptr<const TokenizerParts> parts_;
};

// Encodes many texts quickly, for one thread: it remembers the ids of pieces that it met, in 4 MB.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);
  Encoder(Encoder&&) noexcept;
  ~Encoder();
  // Appends Tokenizer::ids(text).
  void append(std::string_view text, std::vector<int32_t>& ids);

 private:
  struct Cache;
  void append_section(std::string_view text, std::vector<int32_t>& ids);
  void append_piece(std::string_view piece, const char* end, std::vector<int32_t>& ids);
  void append_waiting(std::vector<int32_t>& ids);
  Tokenizer tokenizer_;
  std::unique_ptr<Cache> cache_;
};

// Decodes ids as they come, for text that is shown while it is generated. All that it returns, joined, is what decode()
// gives of all ids.
class DecodeStream {
 public:
  explicit DecodeStream(const Tokenizer& tokenizer, bool skip_special = true);
  ~DecodeStream();
  // The text that is complete with this token: empty in the middle of a character. Errors: an id that is no token.
  std::string push(int32_t id);
  std::string end();  // what is left

 private:
  struct State;
  Tokenizer tokenizer_;
  bool skip_special_;
  std::unique_ptr<State> state_;
};

}  // namespace dtensor::nn
