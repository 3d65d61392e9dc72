// Text by a causal language model, token by token.
//
//     std::vector<int32_t> ids = tokenizer.encode("Once upon a time").ids;
//     auto texts = generate(model, {ids}, {.max_new_tokens = 100, .sampling = {.temperature = 0.8, .seed = 7}});
//     std::string text = tokenizer.decode(texts[0]);
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "nn/generate/sampling.h"
#include "nn/models/causal_lm.h"

namespace dtensor::nn {

struct GenerateOptions {
  int64_t max_new_tokens = 16;  // of each prompt
  SamplingOptions sampling = {};
  std::vector<int32_t> stop = {};  // each of these ends a text, as its last token
  // Keys and values are kept, in memory for the longest prompt and its new tokens, so that a token costs one pass over
  // one token. Without, every token costs a pass over all before it: for attentions that keep none.
  bool cache = true;
  // How rows are sharded, as batch_layout(mesh, plan) says; absent: as batch_layout(mesh).
  std::optional<Layout> batch = {};
  // Called on every rank with each token as it comes: whose it is, the index of the prompt, and which.
  std::function<void(size_t prompt, int32_t id)> on_token = {};
};

// The new ids of each prompt. All ranks of the model's mesh call it with the same arguments, and get the same. Prompts
// may be of different lengths; they are one batch, in which each gets the text that it gets alone, to the bit where a
// row's products do not depend on the number of rows (on the CPU). The model is used as it stands, without dropout.
// Errors: no prompt, one without tokens or with an id outside of the vocabulary; options that make no sense; a batch
// whose sequence is sharded; attentions that a plan replaced, with a cache.
std::vector<std::vector<int32_t>> generate(CausalLM& model, const std::vector<std::vector<int32_t>>& prompts,
                                           const GenerateOptions& options = {});

}  // namespace dtensor::nn
