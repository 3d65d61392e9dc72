// llama_convert: a checkpoint to a Hugging Face folder, or back; what --from is, is seen.
//
//     llama_convert --from runs/one --to exported --dtype bf16    # config.json and model.safetensors
//     llama_convert --from exported --to imported                 # a checkpoint with the weights under "model"
//
// Of each family of docs/models.md. What belongs to the tokenizer and to generation goes along.
//
// Exit codes: 0 done, 1 it failed, 2 bad input (nothing was written).
#include <fmt/format.h>

#include <cstdio>

#include "examples/program/program.h"
#include "nn/checkpoint/checkpoint_folder.h"
#include "nn/checkpoint/hugging_face.h"
#include "nn/json.h"
#include "nn/models/bert.h"
#include "nn/models/causal_lm.h"

using namespace dtensor;
namespace fs = std::filesystem;

namespace {

struct Options {
  std::string from, to, dtype = "fp32";
  int64_t step = -1;
};

// The checkpoint that --from and --step name, or nothing.
std::optional<fs::path> find_checkpoint(const Options& o) {
  if (fs::exists(fs::path(o.from) / "checkpoint.json")) return o.from;
  std::vector<int64_t> steps = nn::checkpoint_steps(o.from);
  if (steps.empty()) return {};
  if (o.step < 0) return nn::checkpoint_of_step(o.from, steps.back());
  check(std::find(steps.begin(), steps.end(), o.step) != steps.end(),
        "[llama_convert] {} has no checkpoint of --step {}, but those of {}", o.from, o.step, fmt::join(steps, ", "));
  return nn::checkpoint_of_step(o.from, o.step);
}

// What a folder has besides weights and config.json: of each file the first of the folders that has it.
void copy_others(const std::vector<fs::path>& from, const fs::path& to) {
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"})
    for (const fs::path& folder : from)
      if (fs::exists(folder / name)) {
        std::error_code error;
        fs::copy_file(folder / name, to / name, error);
        check(!error, "[llama_convert] cannot copy {} to {}: {}", (folder / name).string(), to.string(),
              error.message());
        break;
      }
}

bool is_bert(const nlohmann::ordered_json& config) { return config.value("model_type", "") == "bert"; }

std::unique_ptr<nn::Module> make(const nlohmann::ordered_json& config, const DeviceMesh& mesh) {
  if (is_bert(config)) return std::make_unique<nn::BertForMaskedLM>(mesh, nn::BertConfig::from_json(config));
  return nn::ModelConfig::from_json(config).make(mesh);
}

// The model's config with what transformers needs to know which model it is of.
nlohmann::ordered_json complete(nlohmann::ordered_json config) {
  if (is_bert(config)) return config;
  nn::ModelConfig model = nn::ModelConfig::from_json(config);
  config["model_type"] = model.model_type();
  if (!config.contains("architectures")) config["architectures"] = {model.architecture()};
  return config;
}

void to_folder(const Options& o, const fs::path& checkpoint) {
  nn::Checkpoint c(checkpoint);
  c.verify();
  nn::export_weights(c, "model", complete(c.value("config")), o.to, o.dtype == "bf16" ? DType::bf16 : DType::f32);
  copy_others({checkpoint, checkpoint.parent_path()}, o.to);
}

void to_checkpoint(const Options& o) {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  nlohmann::ordered_json config = nn::load_json(nn::config_file(o.from), "model config");
  std::unique_ptr<nn::Module> model = make(config, mesh);
  nn::materialize(*model, 0);
  nn::load_weights(o.from, *model);
  nn::save_checkpoint(mesh, o.to, {{"config", config}, {"model", *model}});
  copy_others({o.from}, o.to);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Converts a checkpoint to a Hugging Face folder, or back.", "llama_convert");
  app.add_option("--from", o.from, "a checkpoint, a folder of them, or a Hugging Face folder")->required();
  app.add_option("--to", o.to, "the folder to write, which must be empty or not there")->required();
  app.add_option("--step", o.step, "of a folder of checkpoints, the one of this step [the newest]")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--dtype", o.dtype, "of the weights of a Hugging Face folder")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  std::optional<fs::path> checkpoint;
  auto look = [&] {
    check(fs::is_directory(o.from), "[llama_convert] --from {}: there is no such folder", o.from);
    check(!fs::exists(o.to) || (fs::is_directory(o.to) && fs::is_empty(o.to)),
          "[llama_convert] --to {} is not empty: name a new folder", o.to);
    checkpoint = find_checkpoint(o);
    check(checkpoint || fs::exists(fs::path(o.from) / "config.json"),
          "[llama_convert] --from {} is neither a checkpoint nor a Hugging Face folder", o.from);
    check(checkpoint || (o.step < 0 && o.dtype == "fp32"),
          "[llama_convert] --step and --dtype are for checkpoints, and --from {} is a Hugging Face folder", o.from);
  };
  return run_program(app, argc, argv, look, [&] {
    checkpoint ? to_folder(o, *checkpoint) : to_checkpoint(o);
    fmt::print("written to {}\n", o.to);
  });
}
