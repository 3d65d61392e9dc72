#include "nn/generate/model_folder.h"

#include "nn/checkpoint/checkpoint_folder.h"
#include "nn/checkpoint/hugging_face.h"
#include "nn/json.h"

namespace dtensor::nn {
namespace fs = std::filesystem;

namespace {

// A token or a list of them; nothing where there is none.
std::vector<int32_t> end_tokens(const nlohmann::ordered_json& config, const std::string& file) {
  auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) return {};
  std::vector<int32_t> ids;
  for (const auto& id : found->is_array() ? *found : nlohmann::ordered_json::array({*found})) {
    check(id.is_number_integer(), "[ModelFolder] eos_token_id of {} is {}, which is no token and no list of tokens",
          file, found->dump());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

ModelFolder::ModelFolder(const fs::path& folder, const std::string& tokenizer) : folder_(folder) {
  check(fs::is_directory(folder), "[ModelFolder] there is no folder {}", folder.string());
  if (std::vector<int64_t> steps = checkpoint_steps(folder); !steps.empty())
    checkpoint_.emplace(checkpoint_of_step(folder, steps.back()));
  else if (fs::exists(folder / "checkpoint.json"))
    checkpoint_.emplace(folder);
  check(
      checkpoint_ || fs::exists(folder / "config.json"),
      "[ModelFolder] {} is neither a checkpoint nor a Hugging Face folder: it has no checkpoint.json, no steps and no "
      "config.json",
      folder.string());
  config_json_ = checkpoint_ ? checkpoint_->value("config") : load_json(config_file(folder.string()), "model config");
  config_ = ModelConfig::from_json(config_json_);
  if (!checkpoint_) Safetensors weights(folder);  // its errors, before anything is started
  find_tokenizer(tokenizer);
  find_stop();
}

// A file of this name in the folder, in the checkpoint or beside it; empty: there is none.
fs::path ModelFolder::beside(const char* name) const {
  std::vector<fs::path> folders{folder_};
  if (checkpoint_) folders = {checkpoint_->folder(), checkpoint_->folder().parent_path()};
  for (const fs::path& f : folders)
    if (fs::exists(f / name)) return f / name;
  return {};
}

void ModelFolder::find_tokenizer(const std::string& given) {
  fs::path own = beside("tokenizer.json");
  if (given == "bytes") {
    tokenizer_ = Tokenizer::bytes();
  } else if (!given.empty()) {
    tokenizer_ = Tokenizer::load(given);
  } else if (!own.empty()) {
    tokenizer_ = Tokenizer::load(own.string());
  } else {
    // Only the command of the run that wrote it knows; options may also have come from a --config.
    std::string command = is_of_run() ? checkpoint_->value("run").value("command", std::string()) : "";
    check(!command.empty() && command.find("--tokenizer") == std::string::npos &&
              command.find("--config") == std::string::npos,
          "[ModelFolder] {} has no tokenizer.json: give the tokenizer of its training, or \"bytes\"", folder_.string());
    tokenizer_ = Tokenizer::bytes();
  }
  check(tokenizer_->vocab_size() <= config_->vocab_size(),
        "[ModelFolder] the tokenizer has {} tokens, the model only {}: is it another model's?",
        tokenizer_->vocab_size(), config_->vocab_size());
}

void ModelFolder::find_stop() {
  if (fs::path file = beside("generation_config.json"); !file.empty())
    stop_ = end_tokens(load_json(file.string(), "generation config"), file.string());
  if (stop_.empty() && !is_of_run()) stop_ = end_tokens(config_json_, "the config of " + folder_.string());
  if (stop_.empty() && tokenizer_->document_tokens().end) stop_ = {*tokenizer_->document_tokens().end};
}

std::vector<int32_t> ModelFolder::prompt(std::string_view text) const {
  return is_of_run() ? document_prompt(*tokenizer_, text) : tokenizer_->encode(text).ids;
}

void ModelFolder::load(CausalLM& model) const {
  if (checkpoint_)
    checkpoint_->load({{"model", model}});
  else
    load_weights(folder_, model);
}

std::vector<int32_t> document_prompt(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.ids(text);
  const DocumentTokens& t = tokenizer.document_tokens();
  if (t.begin) ids.insert(ids.begin(), *t.begin);
  if (ids.empty() && t.end) ids = {*t.end};
  return ids;
}

}  // namespace dtensor::nn
