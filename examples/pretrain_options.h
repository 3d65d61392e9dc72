// The options of llama_pretrain: what they are, their help, and the file that may have them.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <limits>
#include <map>

#include "examples/pretrain_checkpoints.h"
#include "examples/pretrain_samples.h"
#include "nn/json.h"
#include "nn/train/causal_lm.h"
#include "placement/nearest.h"

namespace dtensor {

struct Options {
  std::string model, mesh = "dp=1", plan, metrics, config;
  CheckpointOptions checkpoints;
  SampleOptions samples;
  std::string device = "cpu", dtype = "fp32", launch = "threads", comm = "auto", cuda_graph = "auto";
  std::string tune_gemm, hardware, report, tensorboard, trace, profile;
  double deadline = 600, max_time = std::numeric_limits<double>::infinity();
  std::vector<std::string> data, eval_data;
  std::vector<double> data_weights;
  std::string tokenizer, data_mode = "pack";
  int64_t batch_size = 16, seq_len = 128, epochs = 0, eval_every = 0, trace_steps = 3;
  bool shuffle = false, document_mask = false;
  nn::LlamaTrainingOptions train{
      .seed = 42, .steps = 0, .lr = 1e-3, .warmup_steps = 0, .clip = 1.0, .adamw = {.weight_decay = 0.1}};
  double ema = 0;
  bool hash = false, module_norms = false;
  int threads = 0;
  bool tf32 = false, strict = false, dry_run = false, check = false, explain = false, json = false;

  bool saves() const { return !checkpoints.folder.empty(); }
  bool only_looks() const { return dry_run || check || explain; }  // nothing runs: no data, steps or device are needed
  bool looks_closely() const { return !trace.empty() || !profile.empty(); }  // call by call
};

// Numbers of options. CLI11's own PositiveNumber and Range print the largest double, all 309 digits, and let nan pass.
inline CLI::Validator number(const char* name, std::function<std::string(double)> wrong) {
  return CLI::Validator(
      [wrong](std::string& text) {
        char* end = nullptr;
        double n = std::strtod(text.c_str(), &end);
        std::string what = *end ? "" : wrong(n);  // what is no number is said when it is read
        return what.empty() ? "" : fmt::format("{} is {}", text, what);
      },
      name);
}
inline const CLI::Validator positive = number("POSITIVE", [](double n) {
  return std::isnan(n) ? "no number" : n > 0 ? "" : "not above 0";
});
inline const CLI::Validator not_negative = number("NONNEGATIVE", [](double n) {
  return !std::isfinite(n) ? "not finite" : n >= 0 ? "" : "below 0";
});
inline const CLI::Validator fraction = number("FRACTION", [](double n) {
  return !(n >= 0) ? "below 0" : n < 1 ? "" : "not below 1";
});
constexpr int most_threads = 1024;
inline const CLI::Validator thread_count = number("THREADS", [](double n) {
  return n < 0 ? "below 0" : n > most_threads ? fmt::format("more than {} threads of a rank", most_threads) : "";
});

inline const std::map<std::string, nn::Decay> decays = {
    {"cosine", nn::Decay::cosine}, {"linear", nn::Decay::linear}, {"wsd", nn::Decay::wsd}};

inline void declare(CLI::App& app, Options& o) {
  app.option_defaults()->always_capture_default();
  app.add_option("--model", o.model,
                 "Hugging Face config.json, or its folder: of a Llama, Mistral, Qwen2, Qwen3, Phi-3, GPT-2 or GLA")
      ->capture_default_str();
  app.add_option("--mesh", o.mesh,
                 "axes and sizes, the last one fastest; dp, dp_replicate and dp_shard divide the batch");
  app.add_option("--plan", o.plan,
                 "JSON plan: how the model is parallelized; auto: tensor parallelism of the model_type over tp");
  app.add_option(
      "--data", o.data,
      "text files, JSON lines (.jsonl), both also .gz and .zst, or shards of tokens: data_prepare's, llm.c's, "
      "Megatron's, nanotron's");
  app.add_option("--data-weights", o.data_weights,
                 "a mixture: one number for each path of --data, in whose proportions sequences are taken from them")
      ->check(positive)
      ->delimiter(',');
  app.add_option("--tokenizer", o.tokenizer,
                 "Hugging Face tokenizer.json; without one, tokens are bytes, then [BOT], [EOT] and [PAD]");
  app.add_option(
         "--data-mode", o.data_mode,
         "pack: documents one after the other, cut into sequences; pad: a document in each, clipped or filled up")
      ->check(CLI::IsMember({"pack", "pad"}));
  app.add_flag("--document-mask", o.document_mask,
               "tokens attend to those of their own document alone, and positions begin anew with each");
  app.add_flag("--shuffle", o.shuffle, "sequences in an order of each epoch's own, by --seed");
  app.add_option("--steps", o.train.steps, "training steps")->check(positive);
  app.add_option("--epochs", o.epochs, "instead of --steps: as many as the data has whole batches, so many times")
      ->check(positive);
  app.add_option("--eval-data", o.eval_data, "as --data: its loss is computed every --eval-every steps and at the end");
  app.add_option("--eval-every", o.eval_every, "steps; 0: only at the end")->check(not_negative);
  app.add_option("--sample-every", o.samples.every,
                 "steps between texts that the model writes, also at the end; 0: none")
      ->check(not_negative);
  app.add_option("--sample-prompt", o.samples.prompts,
                 "what such a text goes on from; may be given again; without one it begins as documents do")
      ->allow_extra_args(false);
  app.add_option("--sample-tokens", o.samples.tokens, "most tokens of such a text")->check(positive);
  app.add_option("--sample-temperature", o.samples.temperature, "of such a text; 0: always the likeliest token")
      ->check(not_negative);
  app.add_option("--batch-size", o.batch_size, "sequences per step, over all ranks")->check(positive);
  app.add_option(
         "--micro-batch-size", o.train.micro_batch_size,
         "of these, sequences in one forward and backward pass, over all ranks; it divides --batch-size; 0: all")
      ->check(not_negative);
  app.add_option("--seq-len", o.seq_len, "tokens per sequence")->check(positive);
  app.add_option("--seed", o.train.seed, "of the initial parameters");
  app.add_option("--lr", o.train.lr, "peak learning rate")->check(not_negative);
  app.add_option("--min-lr", o.train.min_lr, "least learning rate, at the last step")->check(not_negative);
  app.add_option("--schedule", o.train.decay,
                 "how the learning rate falls: as a cosine, in a line, or (wsd) in a line over the last fifth of all "
                 "steps")
      ->transform(CLI::CheckedTransformer(decays).description(""))
      ->default_str("cosine")
      ->type_name("cosine|linear|wsd");
  app.add_option("--warmup-steps", o.train.warmup_steps, "linear warm-up from a tenth, before --schedule begins")
      ->check(not_negative);
  app.add_option("--weight-decay", o.train.adamw.weight_decay, "of AdamW")->check(not_negative);
  app.add_option("--no-decay", o.train.adamw.no_decay,
                 "parameters that do not decay, by the last parts of their paths: bias, *norm.weight");
  app.add_option("--clip", o.train.clip, "largest global gradient norm; 0: no clipping")->check(not_negative);
  app.add_option("--skip-bad-steps", o.train.skip_bad_steps,
                 "in a row: those whose loss or gradient norm is not finite, or whose norm is ten times its average, "
                 "change nothing; 0: what is not finite is an error")
      ->check(not_negative);
  app.add_option("--ema", o.ema, "decay of an average of the parameters, as 0.999, with which --eval-data is evaluated")
      ->check(fraction);
  app.add_option("--z-loss", o.train.z_loss, "times the squared log of the sum of exp(logits), added to the loss")
      ->check(not_negative);
  app.add_flag("--hash", o.hash, "hashes of parameters and gradients in --metrics, for dtensor_bisect");
  app.add_flag("--module-norms", o.module_norms, "gradient norm of each module in --metrics");
  app.add_option("--metrics", o.metrics, "JSON lines, one per step");
  app.add_option("--tensorboard", o.tensorboard,
                 "folder of TensorBoard's event files: the numbers of --metrics as curves");
  app.add_option("--trace", o.trace,
                 "file for Perfetto (ui.perfetto.dev): what each rank computes and communicates in some steps");
  app.add_option("--profile", o.profile,
                 "file of a table, also printed: how long the first rank's ops take in some steps, beside --hardware");
  app.add_option("--trace-steps", o.trace_steps, "how many steps --trace and --profile have, from the second on")
      ->check(positive);
  app.add_option("--config", o.config,
                 "JSON file with any of these options, {\"lr\": 0.003, ...}; options on the command line win");
  app.add_option(
      "--checkpoint-dir", o.checkpoints.folder,
      "where checkpoints are written, after the last step and where SIGTERM, SIGINT or --max-time end the run");
  app.add_option("--checkpoint-every", o.checkpoints.every, "steps between checkpoints; 0: only those")
      ->check(not_negative);
  app.add_option("--keep", o.checkpoints.keep, "of the checkpoints, the last ones to keep; 0: all")
      ->check(not_negative);
  app.add_option("--resume", o.checkpoints.resume,
                 "auto: from the newest sound checkpoint in --checkpoint-dir, if there is one; never; or the path of a "
                 "checkpoint or of a folder of them [auto where there is --checkpoint-dir]");
  app.add_option("--init-from", o.checkpoints.init_from,
                 "Hugging Face folder (config.json, model.safetensors or its index) whose weights the run begins with");
  app.add_option("--max-time", o.max_time, "seconds after which the run ends, with a checkpoint")->check(positive);
  app.add_option("--device", o.device, "where tensors are: cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--dtype", o.dtype, "to compute in; bf16 keeps fp32 parameters")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--launch", o.launch,
                 "threads: ranks are threads of this process; mpi: each is one of the processes that mpirun or srun "
                 "started, by MPI on cpu and NCCL on cuda")
      ->check(CLI::IsMember({"threads", "mpi"}));
  app.add_option("--comm", o.comm,
                 "threads: ranks are threads of this process; nccl: processes that torchrun, mpirun or srun started, a "
                 "GPU each; auto: nccl on cuda where one of these did")
      ->check(CLI::IsMember({"auto", "threads", "nccl"}));
  app.add_option("--cuda-graph", o.cuda_graph, "auto: a step is one CUDA graph where nothing forbids it; or never")
      ->check(CLI::IsMember({"auto", "never"}));
  app.add_option(
      "--tune-gemm", o.tune_gemm,
      "file of the fastest cuBLASLt algorithms and engines of cuDNN's attention on this GPU: read, or measured after "
      "the first step, said and written");
  app.add_flag("--tf32", o.tf32, "on cuda, products of fp32 may round their factors to tf32");
  app.add_option("--deadline", o.deadline, "seconds that a rank waits for the others; inf: for ever")->check(positive);
  app.add_option("--threads", o.threads, "of each rank's kernels; 0: the cores divided by the ranks")
      ->check(thread_count);
  app.add_flag("--strict", o.strict, "communication that nobody asked for is an error");
  app.add_flag("--dry-run", o.dry_run,
               "say what a step communicates, holds and takes, and stop; needs neither --data nor --steps");
  app.add_flag("--check", o.check,
               "say \"fits\", or what is wrong with model, mesh and plan, and stop; needs neither --data nor --steps");
  app.add_flag("--explain", o.explain,
               "say of each collective of a step why it is there and what else it could have been, and stop");
  app.add_option(
      "--hardware", o.hardware,
      "what --dry-run and --check predict for: a100, h100, h200, b200, or a file as dtensor_calibrate writes");
  app.add_option("--report", o.report,
                 "file for one HTML page to look at: the run, while it goes on and at its end, or --dry-run");
  app.add_flag("--json", o.json, "print --dry-run and --explain as JSON");
}

inline std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* o : app.get_options()) names.push_back(o->get_name().substr(2));
  return names;
}

// Options from the file, where the command line does not have them.
inline void apply_config(CLI::App& app, const std::string& file) {
  nlohmann::ordered_json json = nn::load_json(file, "config");
  check(json.is_object(), "[config] {} is not a JSON object", file);
  std::vector<std::string> names = option_names(app);
  std::erase_if(names, [](const std::string& n) { return n == "config" || n == "help"; });
  for (const auto& [key, value] : json.items()) {
    CLI::Option* option = app.get_option_no_throw("--" + key);
    check(std::find(names.begin(), names.end(), key) != names.end(), "[config] there is no option \"{}\"{} (in {})",
          key, nearest_hint(key, names), file);
    if (option->count()) continue;
    auto add = [&](const nlohmann::ordered_json& v) {
      option->add_result(v.is_string() ? v.get<std::string>() : v.dump());
    };
    if (value.is_array())
      for (const auto& v : value) add(v);
    else
      add(value);
    option->run_callback();
  }
}

}  // namespace dtensor
