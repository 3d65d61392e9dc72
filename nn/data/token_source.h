// Token ids on disk, mapped into memory: documents, one after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nn/tokenizer/tokenizer.h"

namespace dtensor::nn {

// Tokens of several files as one sequence. Pages are read when they are used and count to nobody's memory.
class TokenSource {
 public:
  // What is in a file is seen from it:
  //   a folder                its *.bin and *.ds files, by name
  //   *.bin                   a shard of data_prepare; of llm.c (uint16 of GPT-2, uint32 of Llama 3); or Megatron's,
  //   with its .idx
  //   *.ds                    nanotron's (datatrove's), with its .ds.index
  //   anything else           text (documents.h), tokenized here with all threads into a temporary file, each document
  //                           between the tokenizer's document tokens
  // Without a tokenizer, tokens are bytes, then [BOT], [EOT] and [PAD] (packed_text.h); plain text is mapped as it is.
  // Errors: a file that cannot be read, or is not what it says it is.
  explicit TokenSource(const std::vector<std::string>& files, const std::optional<Tokenizer>& tokenizer = std::nullopt);

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  // Where a document begins; tokens() of the number documents().
  int64_t document_begin(int64_t document) const;
  // The document that a token is in.
  int64_t document_of(int64_t token) const;
  // Tokens begin, begin + 1, ...
  void read(int64_t begin, std::span<int64_t> to) const;

 private:
  struct Shard;
  void add(const std::string& file, const std::optional<Tokenizer>& tokenizer);
  const Shard& shard_of_document(int64_t document) const;
  const Shard& shard_of_token(int64_t token) const;
  std::vector<std::shared_ptr<const Shard>> shards_;
  int64_t tokens_ = 0, documents_ = 0;
};

// Writes a shard: 40 bytes of header (magic "DTTOKENS", version 1, bytes per token, tokens, documents, vocabulary), the
// tokens as uint16 or uint32, zeros up to a multiple of 8, and where each document ends, as uint64; all little-endian.
// The file has another name until finish().
class ShardWriter {
 public:
  // Tokens take two bytes where the vocabulary fits. Errors: a file that cannot be written.
  ShardWriter(const std::string& file, int64_t vocab_size);
  // A temporary file in TMPDIR, which has no name: the system frees it when its last user is gone, also where that was
  // killed. Errors: a folder that cannot be written to.
  explicit ShardWriter(int64_t vocab_size);
  ShardWriter(const ShardWriter&) = delete;
  ~ShardWriter();
  // A document, or its next part: `last` ends it.
  void add(std::span<const int32_t> ids, bool last = true);
  // A file with a name is on the disk, not in the system's memory alone, before it has it.
  void finish();
  // Where the shard can be read: a temporary one until the writer is gone.
  std::string path() const;
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return int64_t(ends_.size()); }

 private:
  void begin();
  void write(const void* bytes, size_t size);
  std::string file_;
  bool named_;
  int64_t vocab_size_, width_, tokens_ = 0;
  std::vector<uint64_t> ends_;
  std::FILE* out_ = nullptr;
};

// f(ids, last) of each document of the files, in order: [begin] ids [end]. One of more than a megabyte comes in parts,
// where the tokenizer can cut it; `last` ends it. `threads` threads encode some 16 MB of text at a time; 0: as many as
// there are cores.
void tokenize_documents(const std::vector<std::string>& files, const Tokenizer& tokenizer, int threads,
                        const std::function<void(std::span<const int32_t>, bool)>& f);

}  // namespace dtensor::nn
