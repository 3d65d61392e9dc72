// The checkpoints of llama_pretrain: what is in one, from which one a run goes on, and when one is written.
#pragma once

#include <csignal>
#include <nlohmann/json.hpp>

#include "dtensor/agree.h"
#include "dtensor/redistribute.h"
#include "nn/checkpoint/checkpoint_folder.h"
#include "nn/checkpoint/hugging_face.h"
#include "nn/json.h"
#include "nn/train/causal_lm.h"
#include "nn/train/ema.h"

namespace dtensor {

struct CheckpointOptions {
  std::string folder, resume, init_from;  // resume: auto, never or a path
  int64_t every = 0, keep = 3;
};

// SIGTERM and SIGINT ask a run to stop after its step; the second one ends the process at once.
class StopSignals {
 public:
  StopSignals() {
    struct sigaction action {};
    action.sa_handler = [](int) { asked_ = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (int s : {SIGTERM, SIGINT}) sigaction(s, &action, nullptr);
  }
  bool asked() const { return asked_ != 0; }

 private:
  inline static volatile std::sig_atomic_t asked_ = 0;  // signals know no objects
};

// Whether it is so on any rank: a signal reaches one process before another.
inline bool on_any_rank(const DeviceMesh& mesh, bool mine) {
  Rank& rank = mesh.rank_state();
  LabelScope label(rank, Label::Kind::op, "the agreement to stop");
  Tensor local(rank.allocator(), DType::i64, {}, rank.device());
  write_on_host(local, [&](const Tensor& t) { *t.data<int64_t>() = mine; });
  Layout partial;
  partial.partial = mesh.shape().all(), partial.reduce = Reduce::max;
  return DistributedTensor::from_local(local, mesh, partial, {}).redistribute(Layout(), {.reason = "stop"}).item() != 0;
}

// Fields of a config.json that do not change what the model computes.
inline bool is_descriptive(const std::string& key) {
  for (const char* k : {"torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache", "architectures"})
    if (key == k) return true;
  return false;
}

// Errors: a field that differs between the checkpoint's model and this one.
inline void check_same_model(const nlohmann::ordered_json& then, const nlohmann::ordered_json& now,
                             const std::string& folder) {
  auto compare = [&](const nlohmann::ordered_json& keys) {
    for (const auto& [key, value] : keys.items()) {
      auto in = [&k = key](const nlohmann::ordered_json& j) { return j.contains(k) ? j.at(k).dump() : "not there"; };
      check(is_descriptive(key) || in(then) == in(now),
            "[llama_pretrain] the checkpoint {} is of another model: {} is {} there, and {} in --model", folder, key,
            in(then), in(now));
    }
  };
  compare(then);
  compare(now);
}

// What goes with every checkpoint of a run besides tensors.
struct RunRecord {
  nlohmann::ordered_json config;   // the model's, as its file has it
  nlohmann::ordered_json data;     // what batches are made of, and how
  nlohmann::ordered_json command;  // and version, mesh and plan
  uint64_t seed = 0;
  std::string tokenizer;  // its file; empty: bytes
};

// One per rank.
class RunCheckpoints {
 public:
  // `ema` may be null.
  RunCheckpoints(const DeviceMesh& mesh, const CheckpointOptions& options, const RunRecord& record,
                 nn::LlamaTraining& training, nn::Ema* ema)
      : options_(options),
        record_(record),
        training_(training),
        ema_(ema),
        folder_(mesh, options.folder, options.keep) {}

  // Loads what the run goes on from, if anything; the number of the steps that are done. `note` tells rank 0's user.
  int64_t resume(const std::function<void(const std::string&)>& note) {
    std::optional<nn::Checkpoint> from = find(note);
    if (!from) {
      if (!options_.init_from.empty()) nn::load_weights(options_.init_from, training_.model);
      if (ema_) ema_->begin();
      return 0;
    }
    std::string name = from->folder().string();
    check_same_model(from->value("config"), record_.config, name);
    check(from->value("seed") == record_.seed, "[llama_pretrain] the checkpoint {} has --seed {}: give the same", name,
          from->value("seed").dump());
    check(from->value("data") == record_.data,
          "[llama_pretrain] the checkpoint {} goes on with the data {}, but these are {}: give the same --data, "
          "--data-weights, --batch-size and --seq-len",
          name, from->value("data").dump(), record_.data.dump());
    from->load({{"model", training_.model}, {"optimizer", training_.optimizer}});
    load_averages(*from, note);
    if (from->values().contains("norms")) {
      const auto& n = from->value("norms");
      training_.trainer.set_norms({n.at("good"), n.at("bad_in_a_row"), n.at("skipped"), n.at("average")});
    }
    saved_ = from->value("step").get<int64_t>();
    note(fmt::format("resumed from {}, written on mesh {}", name, from->mesh()));
    return saved_;
  }

  bool is_due(int64_t step) const { return options_.every > 0 && step % options_.every == 0; }
  bool has(int64_t step) const { return saved_ == step; }

  // Begins that of the step that is done, which --eval-data gave this loss; what became of the one before.
  std::optional<nn::CheckpointFolder::Written> begin(int64_t step, std::optional<double> eval_loss) {
    auto before = folder_.wait();
    if (!record_.tokenizer.empty()) keep_tokenizer();
    using Json = nlohmann::ordered_json;
    const nn::Trainer::Norms& n = training_.trainer.norms();
    nn::CheckpointItems items{
        {"model", training_.model},
        {"optimizer", training_.optimizer},
        {"config", record_.config},
        {"data", record_.data},
        {"seed", Json(record_.seed)},
        {"norms",
         Json{{"good", n.good}, {"bad_in_a_row", n.bad_in_a_row}, {"skipped", n.skipped}, {"average", n.average}}},
        {"run", record_.command}};
    if (ema_)
      for (const nn::Ema::Average& a : ema_->averages()) items.emplace_back("ema." + a.path, a.tensor);
    folder_.begin(step, std::move(items), eval_loss);
    saved_ = step;
    return before;
  }
  std::optional<nn::CheckpointFolder::Written> wait() { return folder_.wait(); }

 private:
  // Beside the checkpoints, so that who reads them needs nothing else.
  void keep_tokenizer() {
    if (std::exchange(tokenizer_is_kept_, true)) return;
    const DeviceMesh& mesh = training_.model.mesh();
    agree_on_error(mesh, [&] {
      if (mesh.rank_state().rank() != 0) return;
      namespace fs = std::filesystem;
      fs::path to = fs::path(options_.folder) / "tokenizer.json";
      std::error_code error;
      fs::create_directories(options_.folder, error);
      if (!fs::equivalent(record_.tokenizer, to, error))
        fs::copy_file(record_.tokenizer, to, fs::copy_options::overwrite_existing, error);
      check(!error, "[llama_pretrain] cannot copy {} to {}: {}", record_.tokenizer, to.string(), error.message());
    });
  }

  std::optional<nn::Checkpoint> find(const std::function<void(const std::string&)>& note) const {
    if (options_.resume == "never") return {};
    bool is_auto = options_.resume == "auto";
    std::filesystem::path path = is_auto ? options_.folder : options_.resume;
    if (is_auto || !nn::checkpoint_steps(path).empty())  // a folder of checkpoints
      return nn::CheckpointFolder(training_.model.mesh(), path, 0).newest_sound([&](const std::string& what) {
        note(what + "; the one before it is taken");
      });
    nn::Checkpoint one(path);
    one.verify(training_.model.mesh());
    return one;
  }

  void load_averages(const nn::Checkpoint& from, const std::function<void(const std::string&)>& note) {
    bool has = std::any_of(from.tensors().begin(), from.tensors().end(),
                           [](const auto& t) { return t.first.starts_with("ema."); });
    check(ema_ || !has, "[llama_pretrain] the checkpoint {} has averages of the parameters: give --ema, as before",
          from.folder().string());
    if (!ema_) return;
    nn::CheckpointItems items;
    for (const nn::Ema::Average& a : ema_->averages()) items.emplace_back("ema." + a.path, a.tensor);
    has ? from.load(items) : ema_->begin();
    if (!has) note("the checkpoint has no averages of the parameters: they begin here");
  }

  CheckpointOptions options_;
  RunRecord record_;
  nn::LlamaTraining& training_;
  nn::Ema* ema_;
  nn::CheckpointFolder folder_;
  int64_t saved_ = -1;
  bool tokenizer_is_kept_ = false;
};

}  // namespace dtensor
