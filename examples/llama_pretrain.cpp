// llama_pretrain: trains a language model on text, on any mesh, as a JSON plan says.
//
//     llama_pretrain --model examples/configs/llama_tiny.json --mesh dp=2,tp=2 --plan examples/plans/tp_sp_loss.json
//                    --data text.txt --steps 200 --batch-size 16 --seq-len 128
//
// shows a progress bar on a terminal and prints a line per step elsewhere. With --dry-run it says what a step would
// communicate, hold and take instead, for a mesh of any size, in this process; with --check, whether such a step fits.
// Exit codes: 0 done, 1 the run failed, 2 bad input (nothing was started).
#include <fmt/format.h>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dtensor/launch.h"
#include "dtensor/launch_nccl.h"
#include "dtensor/mpi/launch_mpi.h"
#include "examples/metrics_file.h"
#include "examples/pretrain_options.h"
#include "examples/pretrain_processes.h"
#include "examples/program/program.h"
#include "examples/progress.h"
#include "examples/run_trace.h"
#include "nn/data/loader.h"
#include "nn/foresight/report.h"
#include "nn/json.h"
#include "nn/models/auto_plan.h"
#include "nn/report/event_file.h"
#include "nn/report/run_page.h"
#include "nn/train/causal_lm.h"
#include "nn/train/gradients.h"
#include "nn/train/value_hash.h"
#include "ops/cuda/attention_backend.h"
#include "ops/cuda/tuning.h"
#include "placement/nearest.h"

using namespace dtensor;

namespace {

// Everything a run needs, checked.
struct Run {
  MeshShape mesh;
  std::optional<nn::ModelConfig> model = {};
  nn::ParallelPlan plan;
  nn::LlamaTrainingOptions train;
  RunRecord record = {};
  Device device = Device::cpu;
  std::optional<Environment> processes = {};  // with NCCL or MPI
  std::optional<nn::Tokenizer> tokenizer = {};
  std::optional<nn::Hardware> hardware = {};  // to predict for
  std::optional<Samples> samples = {};
  std::shared_ptr<const nn::Dataset> data = nullptr, eval_data = nullptr;
};

// Whether this process speaks for all.
bool speaks(const Run& run) { return !run.processes || run.processes->rank == 0; }

// Where the run is and what it computes in.
void prepare_device(const Options& o, Run& run) {
  run.device = o.device == "cuda" ? Device::cuda : Device::cpu;
  run.train = o.train;
  run.train.dtype = o.dtype == "bf16" ? DType::bf16 : DType::f32;
  run.train.graph = o.cuda_graph == "auto" && !o.looks_closely();  // a replayed graph does not say what it runs
  run.train.keep_gradients = o.hash || o.module_norms;
  bool cuda = run.device == Device::cuda;
  check(cuda || o.tune_gemm.empty(), "[llama_pretrain] --tune-gemm needs --device cuda");
  check(cuda || !o.tf32, "[llama_pretrain] --tf32 needs --device cuda");
  check(cuda || o.comm != "nccl", "[llama_pretrain] --comm nccl needs --device cuda");
  check(!cuda || o.launch != "mpi" || o.comm != "threads",
        "[llama_pretrain] --launch mpi on --device cuda is --comm nccl: leave out --comm threads");
  if (o.only_looks()) return;
  if (!cuda) {
    run.processes = processes_of_mpi(o.launch == "mpi", run.mesh);
    return;
  }
  check(cuda::unavailable().empty(), "[llama_pretrain] --device cuda: {}; use --device cpu", cuda::unavailable());
  bool started = was_launched();
  check(
      started || (o.comm != "nccl" && o.launch != "mpi"),
      "[llama_pretrain] --comm nccl needs processes: start this with torchrun, mpirun or srun, or use --comm threads");
  if (o.comm == "threads" || !started) return;
  run.processes = read_environment();
  check_world(*run.processes, run.mesh);
}

// Runs checks that do not depend on each other, so that one call says all that is wrong.
class Checks {
 public:
  template <class F>
  void run(F f) {
    try {
      f();
    } catch (const Error& e) {
      errors_.emplace_back(e.what());
    }
  }
  // Throws what they found, a line each.
  void end() const {
    if (!errors_.empty()) throw Error(fmt::format("{}", fmt::join(errors_, "\nllama_pretrain: ")));
  }

 private:
  std::vector<std::string> errors_;
};

void check_sizes(const Options& o, const Run& run, Checks& checks) {
  checks.run([&] {
    int64_t tokens = run.tokenizer ? run.tokenizer->vocab_size() : nn::ByteTokenizer::vocab_size;
    check(run.model->vocab_size() >= tokens,
          "[llama_pretrain] the model's vocab_size {} is smaller than the tokenizer's {}", run.model->vocab_size(),
          tokens);
  });
  checks.run([&] {
    check(o.seq_len <= run.model->max_position_embeddings(),
          "[llama_pretrain] --seq-len {} is more than the model's max_position_embeddings {}", o.seq_len,
          run.model->max_position_embeddings());
  });
  checks.run([&] {
    int ranks = run.mesh.product(nn::batch_layout(run.mesh, run.plan).split[0].set());
    check(o.batch_size % ranks == 0,
          "[llama_pretrain] --batch-size {} does not divide over the {} data ranks of mesh {}", o.batch_size, ranks,
          o.mesh);
  });
}

// Where a run goes on from, as far as it can be said before it starts.
void check_resume(const Options& o) {
  const CheckpointOptions& c = o.checkpoints;
  check(o.saves() || c.every == 0, "[llama_pretrain] --checkpoint-every {} needs --checkpoint-dir", c.every);
  check(o.saves() || c.resume != "auto", "[llama_pretrain] --resume auto needs --checkpoint-dir");
  std::vector<int64_t> steps = o.saves() ? nn::checkpoint_steps(c.folder) : std::vector<int64_t>();
  check(c.resume != "never" || steps.empty(),
        "[llama_pretrain] --resume never, but --checkpoint-dir {} has checkpoints up to step {}: name another folder",
        c.folder, steps.empty() ? 0 : steps.back());
  bool path = c.resume != "auto" && c.resume != "never";
  check(!path || std::filesystem::is_directory(c.resume),
        "[llama_pretrain] --resume {}: there is no such folder; give auto, never or a checkpoint", c.resume);
}

// What is written into every checkpoint.
RunRecord record_of(const Options& o, const Run& run, const std::string& command) {
  nlohmann::ordered_json plan;
  if (!o.plan.empty()) plan = run.plan.to_json();
  return {.config = nn::load_json(nn::config_file(o.model), "model config"),
          .data = {{"files", o.data}, {"batch_size", o.batch_size}},
          .command = {{"command", command}, {"version", DTENSOR_VERSION}, {"mesh", o.mesh}, {"plan", plan}},
          .seed = o.train.seed,
          .tokenizer = o.tokenizer};
}

Run prepare(const Options& o, const std::string& command) {
  Run run;
  Checks files, rest;
  files.run([&] {
    check(!o.model.empty(),
          "[llama_pretrain] --model is missing: give a Hugging Face config.json, as examples/configs/llama_tiny.json");
    run.model = nn::ModelConfig::load(o.model);
  });
  files.run([&] { run.mesh = MeshShape::parse(o.mesh); });
  files.run([&] {
    if (!o.plan.empty() && o.plan != "auto") run.plan = nn::ParallelPlan::load(o.plan);
  });
  files.run([&] { check_resume(o); });
  files.run([&] {
    if (!o.tokenizer.empty()) run.tokenizer = nn::Tokenizer::load(o.tokenizer);
  });
  files.run([&] {
    if (!o.hardware.empty()) run.hardware = nn::Hardware::load(o.hardware);
  });
  files.end();
  if (o.plan == "auto") run.plan = nn::auto_plan(*run.model, run.mesh);
  run.record = record_of(o, run, command);
  rest.run([&] { prepare_device(o, run); });
  check_sizes(o, run, rest);
  rest.run([&] { run.samples.emplace(o.samples, run.tokenizer, *run.model, run.mesh, run.plan); });
  rest.run([&] {
    check(!o.dry_run || !o.check, "[llama_pretrain] --dry-run finds what --check finds: give one of them");
    check(!o.explain || !o.check, "[llama_pretrain] --explain finds what --check finds: give one of them");
    check(!o.json || o.dry_run || o.explain, "[llama_pretrain] --json is how --dry-run prints: give --dry-run too");
    check(o.report.empty() || !o.check,
          "[llama_pretrain] --report is a page of a run or of --dry-run: --check has none");
    check(
        o.hardware.empty() || o.only_looks() || !o.profile.empty(),
        "[llama_pretrain] --hardware is what --dry-run and --check predict for, and --profile compares with: give one "
        "of them too");
  });
  rest.run([&] {
    check(o.data_weights.empty() || o.data_weights.size() == o.data.size(),
          "[llama_pretrain] --data-weights {} for the {} paths of --data: give one number for each path",
          fmt::join(o.data_weights, " "), o.data.size());
  });
  if (!o.only_looks()) {
    rest.run([&] { check(!o.data.empty(), "[llama_pretrain] --data is missing: give text files, or --dry-run"); });
    rest.run([&] {
      check(o.train.steps >= 1 || o.epochs >= 1,
            "[llama_pretrain] --steps is missing: give a number of steps, or --dry-run");
      check(o.train.steps == 0 || o.epochs == 0,
            "[llama_pretrain] --steps and --epochs both say how long: give one of them");
    });
  }
  rest.end();
  return run;
}

std::shared_ptr<const nn::Dataset> open_data(const Options& o, const Run& run, const std::vector<std::string>& files,
                                             const std::vector<double>& weights, bool shuffle) {
  int64_t pad = nn::ByteTokenizer::pad;
  if (run.tokenizer) {
    const nn::DocumentTokens& t = run.tokenizer->document_tokens();
    pad = t.pad.value_or(t.end.value_or(0));  // any id will do: padding is no target, and nothing attends to it
  }
  nn::DatasetOptions options{.mode = o.data_mode == "pad" ? nn::DataMode::pad : nn::DataMode::pack,
                             .seq_len = o.seq_len,
                             .shuffle = shuffle,
                             .seed = o.train.seed,
                             .pad = pad,
                             .vocab_size = run.model->vocab_size()};
  std::vector<nn::Dataset::Part> parts;
  if (weights.empty()) parts.push_back({nn::TokenSource(files, run.tokenizer)});
  for (size_t i = 0; i < weights.size(); ++i) parts.push_back({nn::TokenSource({files[i]}, run.tokenizer), weights[i]});
  auto data = std::make_shared<nn::Dataset>(std::move(parts), options);
  check(data->samples() >= o.batch_size,
        "[llama_pretrain] {} sequences of {} tokens are fewer than --batch-size {}, so a batch would have some twice: "
        "give more text, "
        "a smaller --batch-size or a smaller --seq-len",
        data->samples(), o.seq_len, o.batch_size);
  return data;
}

// The data, and how many steps they make where epochs are asked for.
void prepare_data(const Options& o, Run& run) {
  run.data = open_data(o, run, o.data, o.data_weights, o.shuffle);
  if (!o.eval_data.empty()) run.eval_data = open_data(o, run, o.eval_data, {}, false);
  check(!o.eval_data.empty() || o.eval_every == 0, "[llama_pretrain] --eval-every needs --eval-data");
  if (o.document_mask) {
    run.train.max_documents = run.data->max_documents();
    if (run.eval_data) run.train.max_documents = std::max(run.train.max_documents, run.eval_data->max_documents());
  }
  run.record.data["order"] = run.data->state(0);
  if (o.epochs > 0) run.train.steps = o.epochs * run.data->samples() / o.batch_size;
}

// One step on meta tensors: what a real one would be. Plans and shapes that do not fit are errors here already.
nn::Forecast look_ahead(const Options& o, const Run& run) {
  nn::ForecastOptions options{.batch_size = o.batch_size, .seq_len = o.seq_len, .train = run.train, .strict = o.strict};
  options.captured = run.device == Device::cuda && run.train.graph && run.mesh.world() == 1;
  options.warm_up = o.dry_run || o.explain || run.hardware || !o.report.empty() ? 1 : 0;
  options.explain = o.explain || !o.report.empty();
  nn::Forecast f = nn::forecast(run.mesh, *run.model, run.plan, options, run.hardware);
  // What is doubtful is refused by --check alone: a run may mean it.
  std::vector<std::string> notes = o.check ? std::vector<std::string>() : f.doubts;
  notes.insert(notes.end(), f.implicit.begin(), f.implicit.end());
  for (const std::string& note : speaks(run) ? notes : std::vector<std::string>())
    std::fprintf(stderr, "llama_pretrain: note: %s\n", note.c_str());
  check(!o.check || nn::what_is_wrong(f).empty(), "{}", nn::what_is_wrong(f));
  return f;
}

void write_report(const Options& o, const nn::Forecast& forecast) {
  std::ofstream file(o.report);
  file << nn::html_report(forecast, fmt::format("{} on {}", o.model, o.mesh));
  check(bool(file.flush()), "[llama_pretrain] cannot write --report {}: does the folder exist?", o.report);
}

// What --hash and --module-norms add to a line of the metrics file. All ranks call it.
std::string asked_metrics(const Options& o, const DeviceMesh& mesh, nn::LlamaTraining& training) {
  std::string text;
  const std::vector<nn::Parameter*>& parameters = training.optimizer.parameters();
  if (o.hash) {
    std::vector<nn::NamedValue> values, gradients;
    for (size_t i = 0; i < parameters.size(); ++i) {
      values.push_back({parameters[i]->path(), parameters[i]->stored()});
      gradients.push_back({parameters[i]->path(), training.trainer.gradients()[i]});
    }
    text += fmt::format(", \"hash\": {{\"parameters\": \"{}\", \"gradients\": \"{}\"}}", nn::value_hash(mesh, values),
                        nn::value_hash(mesh, gradients));
  }
  if (!o.module_norms) return text;
  std::map<std::string, std::vector<DistributedTensor>> by_module;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::string& path = parameters[i]->path();
    by_module[path.substr(0, path.rfind('.'))].push_back(training.trainer.gradients()[i]);
  }
  nlohmann::ordered_json norms;
  for (const auto& [module, gradients] : by_module) norms[module] = nn::global_norm(gradients).item();
  return text + ", \"module_norms\": " + norms.dump();
}

// JSON has no word for what is not finite.
std::string json_number(double x) { return std::isfinite(x) ? fmt::format("{:.17g}", x) : "null"; }

// One line of the metrics file: numbers have 17 digits, which read back to the same bits.
std::string metrics_line(const nn::Trainer::Step& s, int64_t tokens, double seconds, int64_t peak_bytes,
                         const std::string& more) {
  return fmt::format(
      "{{\"step\": {}, \"loss\": {}, \"grad_norm\": {}, \"lr\": {:.17g}, \"tokens\": {}, "
      "\"tokens_per_second\": {:.17g}, \"step_seconds\": {:.17g}, \"host_seconds\": {:.17g}, \"peak_memory_bytes\": "
      "{}{}{}}}\n",
      s.step, json_number(s.loss), json_number(s.grad_norm), s.lr, tokens, double(tokens) / seconds, seconds,
      s.host_seconds, peak_bytes, s.skipped ? ", \"skipped\": true" : "", more);
}

// What the loss takes.
nn::Batch batch_of(const Options& o, const nn::TokenBatch& b) {
  if (o.document_mask) return {b.inputs, b.targets, b.positions, b.documents};
  return b;
}

// The targets of samples first, first + 1, ... that count.
int64_t counted_tokens(const nn::Dataset& data, int64_t first, int64_t samples) {
  auto s = size_t(data.seq_len());
  if (data.options().mode == nn::DataMode::pack) return samples * int64_t(s);
  std::vector<int64_t> row(4 * s);
  std::span<int64_t> all(row);
  int64_t count = 0;
  for (int64_t n = first; n < first + samples; ++n) {
    auto targets = all.subspan(s, s);
    data.read(n, {all.first(s), targets, all.subspan(2 * s, s), all.subspan(3 * s, s)});
    count += int64_t(s) - std::count(targets.begin(), targets.end(), nn::ignored_target);
  }
  return count;
}

// The mean loss over all counted tokens of the whole batches of --eval-data.
double evaluate(const Options& o, const Run& run, const DeviceMesh& mesh, nn::Trainer& trainer) {
  const nn::Dataset& data = *run.eval_data;
  nn::BatchLoader loader(data, mesh, nn::batch_layout(run.mesh, run.plan), o.batch_size);
  double sum = 0;
  int64_t tokens = 0;
  while (loader.samples() + o.batch_size <= data.samples()) {
    int64_t counted = counted_tokens(data, loader.samples(), o.batch_size);
    sum += trainer.evaluate(batch_of(o, loader.next())) * double(counted);
    tokens += counted;
  }
  return sum / double(tokens);
}

// Texts by the model as it is, to be read and in the metrics; all ranks call it.
void write_samples(const Options& o, const Run& run, nn::CausalLM& model, int64_t step, Progress& progress,
                   MetricsFile& metrics) {
  std::vector<std::string> texts = run.samples->take(model, o.train.seed);
  if (model.mesh().rank_state().rank() != 0) return;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string& prompt = run.samples->prompts()[i];
    progress.note(fmt::format("step {}: the model writes\n{}", step, set_in(prompt + texts[i])));
    nlohmann::ordered_json line{{"kind", "sample"}, {"step", step}, {"prompt", prompt}, {"text", texts[i]}};
    metrics.write(line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
}

// What must be the same in all processes of a run.
CommonOptions common_options(const Options& o, const Run& run) {
  const nn::LlamaTrainingOptions& t = run.train;
  nlohmann::ordered_json order = run.data->state(0), eval = run.eval_data ? run.eval_data->state(0) : nullptr;
  return {{"--model", run.record.config},
          {"--plan", run.plan.to_json()},
          {"--data, --batch-size and --seq-len", {order, o.batch_size, o.document_mask}},
          {"--eval-data and --eval-every", {eval, o.eval_every}},
          {"--sample-every, --sample-prompt, --sample-tokens or --sample-temperature",
           {o.samples.every, o.samples.prompts, o.samples.tokens, o.samples.temperature}},
          {"--steps", t.steps},
          {"--seed", t.seed},
          {"--lr, its schedule, --weight-decay or --clip",
           {t.lr, t.min_lr, t.warmup_steps, int(t.decay), t.adamw.weight_decay, t.adamw.no_decay, t.clip}},
          {"--ema, --z-loss, --skip-bad-steps, --hash or --module-norms",
           {o.ema, t.z_loss, t.skip_bad_steps, o.hash, o.module_norms}},
          {"--dtype or --micro-batch-size", {o.dtype, t.micro_batch_size}},
          {"--trace, --profile or --trace-steps", {!o.trace.empty(), !o.profile.empty(), o.trace_steps}},
          {"--checkpoint-dir, --checkpoint-every, --resume or --max-time",
           {o.checkpoints.folder, o.checkpoints.every, o.checkpoints.resume, std::isfinite(o.max_time)}}};
}

void train(const Options& o, const Run& run, MetricsFile& metrics) {
  int64_t steps = run.train.steps;
  Progress progress(steps);
  std::optional<StopSignals> signals;
  if (o.saves() || run.processes) signals.emplace();
  auto start = std::chrono::steady_clock::now();
  auto body = [&](Rank& rank) {
    rank.strict = o.strict;
    DeviceMesh mesh(rank, run.mesh);
    if (run.processes) check_same_options(mesh, common_options(o, run));
    nn::LlamaTraining training(mesh, *run.model, run.plan, run.train);
    bool first = rank.rank() == 0;
    rank.tf32 = o.tf32;
    bool tuned = o.tune_gemm.empty() || std::filesystem::exists(o.tune_gemm);
    if (tuned && !o.tune_gemm.empty()) cuda::load_tuned(rank, o.tune_gemm);
    if (first)
      fmt::print("{} parameters, mesh {}, {} tokens per step\n", training.model.parameter_count(), to_string(run.mesh),
                 o.batch_size * o.seq_len);
    std::optional<nn::Ema> ema;
    if (o.ema > 0) ema.emplace(training.optimizer.parameters(), o.ema);
    RunCheckpoints checkpoints(mesh, o.checkpoints, run.record, training, ema ? &*ema : nullptr);
    auto note = [&](const std::string& what) {
      if (first && !what.empty()) progress.note(what);
    };
    int64_t done = checkpoints.resume(note);
    if (first) metrics.begin(done, run.record);
    if (done >= steps) note(fmt::format("nothing to do: step {} of {} is done", done, steps));
    nn::BatchLoader loader(*run.data, mesh, nn::batch_layout(run.mesh, run.plan), o.batch_size, done * o.batch_size);
    std::optional<nn::StepClock> clock;
    if (run.device == Device::cpu || o.looks_closely()) clock.emplace(rank);
    SomeSteps closely(o.trace_steps, steps - done);
    RunTrace trace(mesh, o.trace, closely, run.record.command);
    RunProfile profile(first ? o.profile : "", closely,
                       nn::Profile(run.mesh, run.hardware, nn::bytes_of_update(training.optimizer)));
    bool stops = false;
    for (int64_t here = 0; done < steps && !stops; ++here) {
      auto begin = std::chrono::steady_clock::now();
      int64_t sample = loader.samples();
      if (here == 1) rank.allocator()->reset_peak();  // what steps need, not what began them
      if (clock) clock->begin();
      nn::Batch batch = batch_of(o, loader.next());
      if (clock) clock->loaded();
      nn::Trainer::Step s = training.trainer.step(batch);
      if (clock) clock->end();
      ++done;
      if (ema && !s.skipped) ema->update();
      double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (!tuned) {
        cuda::Tuned timed = cuda::tune(rank);
        tuned = true;
        if (first) cuda::save_tuned(rank, o.tune_gemm);
        note(fmt::format("{} products tuned, written to {}", timed.products, o.tune_gemm));
        for (const std::string& line : timed.attention) note(line);
      }
      std::string asked = asked_metrics(o, mesh, training);
      if (s.skipped) {
        const nn::Trainer::Norms& n = training.trainer.norms();
        note(fmt::format("step {} is skipped: the loss is {}, the gradient norm {} (on average {}); {} in all", s.step,
                         s.loss, s.grad_norm, n.average, n.skipped));
      }
      if (first) {
        int64_t tokens = counted_tokens(*run.data, sample, o.batch_size);
        progress.step(s, tokens, seconds);
        if (clock) asked += ", \"time\": " + nn::to_json(clock->split()).dump();
        metrics.write(metrics_line(s, tokens, seconds, rank.allocator()->peak_bytes(), asked));
      }
      if (clock) note(trace.step(*clock, s.step)), note(profile.step(*clock));
      if (here == 1 && run.device == Device::cuda) {
        note("CUDA graph: " + training.trainer.graph_status());
        if (std::string why = o.dtype == "bf16" ? cuda::missing_cudnn(rank) : ""; !why.empty())
          note("attention is computed by the library's own kernels, which are slower: " + why);
      }
      int64_t epoch = loader.samples() / run.data->samples();
      if (epoch > sample / run.data->samples()) note(fmt::format("end of epoch {}", epoch));
      std::optional<double> eval_loss;
      if (run.eval_data && (done == steps || (o.eval_every > 0 && done % o.eval_every == 0))) {
        if (ema) ema->exchange();
        eval_loss = evaluate(o, run, mesh, training.trainer);
        if (ema) ema->exchange();
        note(fmt::format("step {}: loss {:.4f} on --eval-data", done, *eval_loss));
        if (first)
          metrics.write(
              fmt::format("{{\"kind\": \"eval\", \"step\": {}, \"eval_loss\": {:.17g}}}\n", done, *eval_loss));
      }
      if (run.samples->are_due(done, done == steps)) {
        if (ema) ema->exchange();
        write_samples(o, run, training.model, done, progress, metrics);
        if (ema) ema->exchange();
      }
      std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      if (signals || std::isfinite(o.max_time))
        stops = on_any_rank(mesh, (signals && signals->asked()) || passed.count() >= o.max_time);
      if (!o.saves() || !(stops || done == steps || checkpoints.is_due(done))) continue;
      auto written = checkpoints.begin(done, eval_loss);
      if (first) metrics.write(written);
    }
    note(trace.finish()), note(profile.finish());
    auto written = checkpoints.wait();
    if (first) metrics.write(written);
    if (stops && done < steps)
      note(fmt::format("stopped after step {} of {}{}", done, steps,
                       o.saves() ? ", which a checkpoint has: --resume auto goes on" : ""));
  };
  std::chrono::milliseconds deadline = milliseconds_of(o.deadline);
  if (run.processes && run.device == Device::cpu)
    launch_mpi(body, {.deadline = deadline, .threads = o.threads});
  else if (run.processes)
    launch_nccl(*run.processes, body, {.nccl = {.deadline = deadline}, .threads = o.threads});
  else
    launch(run.mesh.world(), body, {.deadline = deadline, .threads = o.threads, .device = run.device});
  if (speaks(run)) progress.summary(o.metrics);
}

// Whoever listens is told, if it can be: the run's own error is what counts.
void end_in_failure(MetricsFile& metrics, const std::string& why) {
  try {
    metrics.end("failed: " + why);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "llama_pretrain: %s\n", e.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Trains a Llama on text, on any mesh, as a JSON plan says.", "llama_pretrain");
  declare(app, o);
  std::optional<Run> run;
  MetricsFile metrics;
  auto look = [&] {
    if (!o.config.empty()) apply_config(app, o.config);
    if (o.checkpoints.resume.empty()) o.checkpoints.resume = o.saves() ? "auto" : "never";
    if (o.model.empty()) o.model = o.checkpoints.init_from;
    run = prepare(o, command_line(argc, argv));
    if (!o.only_looks()) prepare_data(o, *run);
    nn::Forecast forecast = look_ahead(o, *run);
    if (o.check) fmt::print("fits\n");
    if (!o.report.empty() && o.only_looks() && speaks(*run)) write_report(o, forecast);
    if (o.explain && !o.json) fmt::print("{}", nn::explanation(forecast));
    if (o.json)
      fmt::print("{}\n", nn::to_json(forecast).dump(2));
    else if (o.dry_run)
      fmt::print("{}", nn::to_string(forecast));
    if (o.only_looks()) return;
    if (!o.metrics.empty() && speaks(*run)) metrics.open(o.metrics);
    for (const auto& [option, file] : {std::pair("--trace", o.trace), {"--profile", o.profile}})
      check(file.empty() || !speaks(*run) || std::ofstream(file).good(),
            "[llama_pretrain] cannot write {} {}: does the folder exist?", option, file);
    if (!o.report.empty() && speaks(*run))
      metrics.add(std::make_unique<nn::RunPage>(o.report, fmt::format("{} on {}", o.model, o.mesh),
                                                nn::html_sections(forecast)));
    if (!o.tensorboard.empty() && speaks(*run)) metrics.add(std::make_unique<nn::TensorBoard>(o.tensorboard));
  };
  return run_program(app, argc, argv, look, [&] {
    if (o.only_looks()) return;
    try {
      train(o, *run, metrics);
      metrics.end("done");
    } catch (const std::exception& e) {
      end_in_failure(metrics, e.what());
      throw;
    }
  });
}
