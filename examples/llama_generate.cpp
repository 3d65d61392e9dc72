// llama_generate: text by a trained model, on any mesh.
//
//     llama_generate --from SmolLM2-135M --prompt "Once upon a time" --temperature 0.8 --seed 7
//     llama_generate --from runs/one --prompt "Once" --prompt "Then" --mesh tp=2 --json
//
// writes the new text to standard output as it comes. Exit codes: 0 done, 1 the run failed, 2 bad input (nothing was
// started).
#include <fmt/format.h>

#include <cstdio>
#include <deque>
#include <nlohmann/json.hpp>

#include "dtensor/cuda/runtime.h"
#include "dtensor/launch.h"
#include "examples/program/program.h"
#include "nn/generate/generate.h"
#include "nn/generate/model_folder.h"
#include "nn/models/auto_plan.h"

using namespace dtensor;

namespace {

struct Options {
  std::string from, tokenizer, mesh = "tp=1", plan = "auto", device = "cpu", dtype = "fp32";
  std::vector<std::string> prompts;
  int64_t max_new_tokens = 128;
  nn::SamplingOptions sampling{.temperature = 1};
  int threads = 0;
  bool no_cache = false, json = false;
};

void declare(CLI::App& app, Options& o) {
  app.option_defaults()->always_capture_default();
  app.add_option(
         "--from", o.from,
         "Hugging Face folder (config.json, tokenizer.json, model.safetensors or its index), a checkpoint, or a "
         "folder of checkpoints, whose newest is taken")
      ->required();
  app.add_option("--prompt", o.prompts, "text to go on from; several of them are one batch")
      ->required()
      ->allow_extra_args(false);
  app.add_option("--max-new-tokens", o.max_new_tokens, "of each prompt; the model's end of a text ends it earlier");
  app.add_option("--temperature", o.sampling.temperature, "0: always the likeliest token");
  app.add_option("--top-k", o.sampling.top_k, "choose among the likeliest K tokens; 0: among all");
  app.add_option("--top-p", o.sampling.top_p, "choose among the fewest likeliest tokens of this probability");
  app.add_option("--seed", o.sampling.seed, "of the choices");
  app.add_option("--tokenizer", o.tokenizer,
                 "tokenizer.json, or bytes; without it the folder's own, or bytes for a checkpoint trained on them");
  app.add_option("--mesh", o.mesh, "axes and sizes; tp divides the model's heads, dp the prompts");
  app.add_option("--plan", o.plan,
                 "JSON plan: how the model is parallelized; auto: tensor parallelism of the model_type over tp");
  app.add_option("--device", o.device, "where tensors are: cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--dtype", o.dtype, "to compute in")->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--threads", o.threads, "of each rank's kernels; 0: the cores divided by the ranks")
      ->check(CLI::Range(0, 1024));
  app.add_flag("--no-cache", o.no_cache, "keep no keys and values: each token costs a pass over all before it");
  app.add_flag(
      "--json", o.json,
      "one line for each prompt: {\"prompt_ids\": [...], \"ids\": [...], \"text\": \"...\"}, of the new tokens");
}

// Everything a run needs, checked.
struct Run {
  nn::ModelFolder folder;
  MeshShape mesh;
  nn::ParallelPlan plan;
  std::vector<std::vector<int32_t>> prompts = {};
};

Run prepare(const Options& o) {
  o.sampling.check_for("llama_generate");
  check(o.max_new_tokens >= 1, "[llama_generate] --max-new-tokens {} is not above 0", o.max_new_tokens);
  if (o.device == "cuda")
    check(cuda::unavailable().empty(), "[llama_generate] --device cuda: {}; use --device cpu", cuda::unavailable());
  Run run{nn::ModelFolder(o.from, o.tokenizer), MeshShape::parse(o.mesh), {}};
  run.plan = o.plan == "auto" ? nn::auto_plan(run.folder.config(), run.mesh) : nn::ParallelPlan::load(o.plan);
  run.plan.check_uses(run.mesh);
  check(!run.plan.context_parallel, "[llama_generate] --plan {} has context_parallel, which generation cannot use",
        o.plan);
  int64_t most = run.folder.config().max_position_embeddings();
  for (const std::string& text : o.prompts) {
    std::vector<int32_t> ids = run.folder.prompt(text);
    check(!ids.empty(), "[llama_generate] --prompt \"{}\" has no tokens, and nothing begins a text: give a longer one",
          text);
    check(int64_t(ids.size()) + o.max_new_tokens <= most,
          "[llama_generate] a prompt of {} tokens and --max-new-tokens {} are more than the model's "
          "max_position_embeddings {}",
          ids.size(), o.max_new_tokens, most);
    run.prompts.push_back(std::move(ids));
  }
  return run;
}

void print(std::string_view text) {
  check(std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0,
        "[llama_generate] cannot write to standard output");
}

// The texts as their tokens come. Of several, the first is shown as it grows, the others behind it when all are done.
class Output {
 public:
  Output(const Options& o, const Run& run) : options_(o), run_(run) {
    for (const std::vector<int32_t>& ids : run.prompts) {
      texts_.emplace_back(run.folder.tokenizer());
      for (int32_t id : ids) texts_.back().stream.push(id);  // words go on from the prompt's
    }
  }
  void add(size_t prompt, int32_t id) {
    Text& t = texts_[prompt];
    t.ids.push_back(id);
    if (id < run_.folder.tokenizer().vocab_size()) t.text += t.stream.push(id);  // the model may have more than it
    if (!options_.json && prompt == 0) show(t);
  }
  void end() {
    for (size_t i = 0; i < texts_.size(); ++i) {
      Text& t = texts_[i];
      t.text += t.stream.end();
      if (options_.json) {
        nlohmann::ordered_json line{{"prompt_ids", run_.prompts[i]}, {"ids", t.ids}, {"text", t.text}};
        print(line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
        continue;
      }
      if (i > 0) heading(i);
      show(t);
      print("\n");
    }
  }
  void begin() {
    if (!options_.json) heading(0);
  }

 private:
  struct Text {
    explicit Text(const nn::Tokenizer& tokenizer) : stream(tokenizer) {}
    nn::DecodeStream stream;
    std::vector<int32_t> ids = {};
    std::string text = {};
    size_t shown = 0;
  };
  void show(Text& t) {
    print(std::string_view(t.text).substr(t.shown));
    t.shown = t.text.size();
  }
  void heading(size_t i) const {
    if (texts_.size() > 1) print(fmt::format("==> {} <==\n", options_.prompts[i]));
  }

  const Options& options_;
  const Run& run_;
  std::deque<Text> texts_;
};

void generate(const Options& o, const Run& run) {
  Output output(o, run);
  output.begin();
  launch(run.mesh.world(),
         [&](Rank& rank) {
           DeviceMesh mesh(rank, run.mesh);
           auto model = run.folder.config().make(mesh);
           for (nn::Parameter* p : model->parameters()) p->compute_in(o.dtype == "bf16" ? DType::bf16 : DType::f32);
           run.plan.apply(*model);
           nn::materialize(*model, 0);
           run.folder.load(*model);
           nn::GenerateOptions options{.max_new_tokens = o.max_new_tokens,
                                       .sampling = o.sampling,
                                       .stop = run.folder.stop(),
                                       .cache = !o.no_cache,
                                       .batch = nn::batch_layout(run.mesh, run.plan)};
           if (rank.rank() == 0) options.on_token = [&](size_t prompt, int32_t id) { output.add(prompt, id); };
           nn::generate(*model, run.prompts, options);
         },
         {.threads = o.threads, .device = o.device == "cuda" ? Device::cuda : Device::cpu});
  output.end();
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Text by a trained model.", "llama_generate");
  declare(app, o);
  std::optional<Run> run;
  return run_program(
      app, argc, argv, [&] { run = prepare(o); }, [&] { generate(o, *run); });
}
