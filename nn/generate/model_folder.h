// A folder that has all that generation needs: how the model is made, its weights, its tokenizer.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nn/checkpoint/checkpoint.h"
#include "nn/models/causal_lm.h"
#include "nn/tokenizer/tokenizer.h"

namespace dtensor::nn {

// A Hugging Face folder (config.json, tokenizer.json, model.safetensors or its index), or a checkpoint of
// llama_pretrain or llama_convert, or a folder of them, of which the newest is taken. Beside a checkpoint, or in the
// folder of checkpoints, may be tokenizer.json and generation_config.json.
class ModelFolder {
 public:
  // `tokenizer`: a tokenizer.json, "bytes" for Tokenizer::bytes(), or empty for the folder's own; a checkpoint of a run
  // that was given none has bytes. Errors: a folder that is neither; what is wrong with its files; no tokenizer.
  ModelFolder(const std::filesystem::path& folder, const std::string& tokenizer);

  const ModelConfig& config() const { return *config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // The tokens that end a text: the eos_token_id of generation_config.json, else of config.json, else the token that
  // ends the tokenizer's documents; of a run of llama_pretrain that last one, as its documents ended.
  const std::vector<int32_t>& stop() const { return stop_; }
  // The tokens of a prompt: as `encode` of the tokenizers package has them; of a run of llama_pretrain as its
  // documents began.
  std::vector<int32_t> prompt(std::string_view text) const;
  // Fills the parameters of a model of config(), in place; the ranks call it together.
  void load(CausalLM& model) const;

 private:
  std::filesystem::path beside(const char* name) const;
  bool is_of_run() const { return checkpoint_ && checkpoint_->values().contains("run"); }
  void find_tokenizer(const std::string& given);
  void find_stop();

  std::filesystem::path folder_;
  std::optional<Checkpoint> checkpoint_;
  nlohmann::ordered_json config_json_;
  std::optional<ModelConfig> config_;
  std::optional<Tokenizer> tokenizer_;
  std::vector<int32_t> stop_;
};

// The tokens of a prompt as llama_pretrain's documents begin; of an empty one where nothing begins them, what ends the
// document before.
std::vector<int32_t> document_prompt(const Tokenizer& tokenizer, std::string_view text);

}  // namespace dtensor::nn
