// --sample-every of llama_pretrain: texts by the model as it is, while it is trained.
#pragma once

#include "nn/generate/generate.h"
#include "nn/generate/model_folder.h"

namespace dtensor {

struct SampleOptions {
  std::vector<std::string> prompts;  // none: one text, which begins as documents do
  int64_t every = 0, tokens = 64;
  double temperature = 0.8;
};

class Samples {
 public:
  // Errors: options that make no sense; a prompt that does not fit into the model; a sequence that is divided.
  Samples(SampleOptions options, std::optional<nn::Tokenizer> tokenizer, const nn::ModelConfig& model,
          const MeshShape& mesh, const nn::ParallelPlan& plan)
      : options_(std::move(options)),
        tokenizer_(tokenizer ? std::move(*tokenizer) : nn::Tokenizer::bytes()),
        batch_(nn::batch_layout(mesh, plan)) {
    check(options_.every > 0 || options_.prompts.empty(), "[llama_pretrain] --sample-prompt needs --sample-every");
    if (options_.every == 0) return;
    check(!plan.context_parallel && batch_.split[1].count == 0,
          "[llama_pretrain] --sample-every: texts come token by token, and mesh {} divides the sequence: leave it out, "
          "and give a checkpoint to llama_generate",
          mesh);
    if (options_.prompts.empty()) options_.prompts = {""};
    int64_t most = model.max_position_embeddings();
    for (const std::string& text : options_.prompts) {
      ids_.push_back(nn::document_prompt(tokenizer_, text));
      check(!ids_.back().empty(),
            "[llama_pretrain] --sample-prompt \"{}\" has no tokens, and nothing begins a document: give a text", text);
      check(int64_t(ids_.back().size()) + options_.tokens <= most,
            "[llama_pretrain] a --sample-prompt of {} tokens and --sample-tokens {} are more than the model's "
            "max_position_embeddings {}",
            ids_.back().size(), options_.tokens, most);
    }
  }

  const std::vector<std::string>& prompts() const { return options_.prompts; }
  bool are_due(int64_t step, bool is_last) const {
    return options_.every > 0 && (is_last || step % options_.every == 0);
  }

  // What goes on from each prompt; all ranks call it. The numbers drawn depend on the seed and the place in the text
  // alone, so texts of different steps differ by the model.
  std::vector<std::string> take(nn::CausalLM& model, uint64_t seed) const {
    nn::GenerateOptions options{.max_new_tokens = options_.tokens,
                                .sampling = {.temperature = options_.temperature, .seed = seed},
                                .batch = batch_};
    if (auto end = tokenizer_.document_tokens().end) options.stop = {*end};
    std::vector<std::vector<int32_t>> all = nn::generate(model, ids_, options);
    std::vector<std::string> texts;
    for (size_t i = 0; i < all.size(); ++i) {
      nn::DecodeStream stream(tokenizer_);
      for (int32_t id : ids_[i]) stream.push(id);  // words go on from the prompt's
      std::string text;
      for (int32_t id : all[i])
        if (id < tokenizer_.vocab_size()) text += stream.push(id);  // the model may have more than it
      texts.push_back(text + stream.end());
    }
    return texts;
  }

 private:
  SampleOptions options_;
  nn::Tokenizer tokenizer_;
  Layout batch_;
  std::vector<std::vector<int32_t>> ids_;
};

}  // namespace dtensor
