// Text to batches.
#pragma once

#include <string>
#include <vector>

#include "dtensor/distributed_tensor.h"

namespace dtensor::nn {

// Without a tokenizer file, tokens are bytes, then [BOT], [EOT] and [PAD].
struct ByteTokenizer {
  static constexpr int64_t bot = 256, eot = 257, pad = 258, vocab_size = 259;
};

// Documents (one per file), each wrapped in [BOT] ... [EOT], one after the other, cut into windows of seq_len + 1
// tokens that overlap by one: inputs and targets.
class PackedText {
 public:
  // Errors: a file that cannot be read; less text than one window.
  PackedText(const std::vector<std::string>& files, int64_t seq_len);

  int64_t windows() const { return windows_; }
  int64_t seq_len() const { return seq_len_; }

  struct Batch {
    DistributedTensor inputs, targets;  // i64 [batch, seq_len]
    operator std::vector<DistributedTensor>() const { return {inputs, targets}; }
  };
  // Windows step * batch_size .. of the text, round and round. Each rank reads the rows of its part of `layout` only.
  Batch batch(const DeviceMesh& mesh, const Layout& layout, int64_t step, int64_t batch_size) const;

 private:
  std::vector<int64_t> tokens_;
  int64_t seq_len_, windows_;
};

// A batch of the right shapes without values, for dry runs.
PackedText::Batch meta_batch(const DeviceMesh& mesh, const Layout& layout, int64_t batch_size, int64_t seq_len);

}  // namespace dtensor::nn
