#include "nn/generate/generate.h"

#include <algorithm>

#include "dtensor/random_scope.h"
#include "dtensor/redistribute.h"
#include "nn/models/key_value_cache.h"
#include "nn/parallel/plan.h"

namespace dtensor::nn {
namespace {

struct Sequence {
  std::vector<int32_t> ids;  // the prompt's and the new ones
  size_t prompt_length = 1;
  int64_t repetition = 0;
  bool done = true;

  int64_t length() const { return int64_t(ids.size()); }
  std::span<const int32_t> prompt() const { return {ids.data(), prompt_length}; }
};

// Prompts on their way. Rows are padded at their ends, and their number to one that the data ranks divide, by rows that
// are done.
class Batch {
 public:
  Batch(CausalLM& model, const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options)
      : model_(model), options_(options), layout_(options.batch.value_or(batch_layout(model.mesh().shape()))) {
    check(layout_.split[1].count == 0,
          "[generate] the sequence is sharded over {}, and a token at a time has nothing to shard: use a mesh and plan "
          "without it",
          model.mesh().shape().names(layout_.split[1].set()));
    for (size_t i = 0; i < prompts.size(); ++i)
      rows_.push_back({prompts[i], prompts[i].size(),
                       std::count(prompts.begin(), prompts.begin() + int64_t(i), prompts[i]),
                       options.max_new_tokens == 0});
    int64_t ranks = model.mesh().shape().product(layout_.split[0].set());
    while (int64_t(rows_.size()) % ranks != 0) rows_.push_back({.ids = {0}});
    if (options.cache) cache_.emplace(int64_t(rows_.size()), longest() + options.max_new_tokens);
  }

  bool done() const {
    return std::all_of(rows_.begin(), rows_.end(), [](const Sequence& s) { return s.done; });
  }

  // One more token of each that is not done.
  void step() {
    Tensor logits = next_logits();
    for (size_t i = 0; i < rows_.size(); ++i) {
      Sequence& s = rows_[i];
      if (s.done) continue;
      std::span<const float> row(logits.data<float>() + int64_t(i) * logits.size(1), size_t(logits.size(1)));
      double uniform =
          options_.sampling.temperature == 0 ? 0 : draw(options_.sampling.seed, {s.prompt(), s.repetition, s.length()});
      int32_t id = sample(row, options_.sampling, uniform);
      s.ids.push_back(id);
      s.done = int64_t(s.ids.size() - s.prompt_length) == options_.max_new_tokens ||
               std::find(options_.stop.begin(), options_.stop.end(), id) != options_.stop.end();
      if (options_.on_token) options_.on_token(i, id);
    }
  }

  std::vector<int32_t> new_ids(size_t i) const {
    return {rows_[i].ids.begin() + int64_t(rows_[i].prompt_length), rows_[i].ids.end()};
  }

 private:
  int64_t longest() const {
    int64_t n = 0;
    for (const Sequence& s : rows_) n = std::max(n, s.length());
    return n;
  }

  DistributedTensor distribute(int64_t columns, const std::vector<int64_t>& values) const {
    return DistributedTensor::distribute(Tensor::of<int64_t>({int64_t(rows_.size()), columns}, values), model_.mesh(),
                                         layout_);
  }

  // f32 [rows, vocab_size] on the host: of each row's last token. The cache has all before the last one, from the
  // second pass on; one that is done writes its last token again.
  Tensor next_logits() {
    bool last_only = cache_ && cache_->longest() > 0;
    int64_t n = last_only ? 1 : longest();
    std::vector<int64_t> ids, positions, lengths, last;
    for (const Sequence& s : rows_) {
      int64_t first = last_only ? s.length() - 1 : 0;
      for (int64_t p = first; p < first + n; ++p)
        ids.push_back(p < s.length() ? s.ids[size_t(p)] : 0), positions.push_back(p);
      lengths.push_back(s.length()), last.push_back(s.length() - 1 - first);
    }
    SequenceInputs inputs;  // without a cache a token's position is its index
    if (cache_) {
      cache_->begin_pass(model_.mesh(), positions, lengths);
      inputs.positions = distribute(n, positions), inputs.cache = &*cache_;
    }
    if (n > 1) inputs.wanted = distribute(1, last);
    DistributedTensor logits = model_(distribute(n, ids), inputs);
    check(!cache_ || cache_->modules() > 0,
          "[generate] no module of {} keeps anything in the cache: generate without a cache, or a plan without "
          "context_parallel",
          model_.kind());
    if (logits.dtype() != DType::f32) logits = ops::cast(logits, DType::f32);
    Tensor whole = logits.redistribute(Layout(), {.reason = "sampling"}).local().contiguous().cpu();
    return whole.view({whole.size(0), whole.size(2)});
  }

  CausalLM& model_;
  const GenerateOptions& options_;
  Layout layout_;
  std::vector<Sequence> rows_;
  std::optional<KeyValueCache> cache_;
};

void check_prompts(CausalLM& model, const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options) {
  options.sampling.check_for("generate");
  check(options.max_new_tokens >= 0, "[generate] max_new_tokens is {}; it is not negative", options.max_new_tokens);
  check(!prompts.empty(), "[generate] there is no prompt");
  int64_t vocab_size = model.head().weight.shape()[0];
  for (size_t i = 0; i < prompts.size(); ++i) {
    check(!prompts[i].empty(),
          "[generate] prompt {} has no tokens: begin it with the token that begins a text, if there is one", i);
    for (int32_t id : prompts[i])
      check(id >= 0 && id < vocab_size, "[generate] prompt {} has the id {}, outside of the model's vocabulary of {}",
            i, id, vocab_size);
  }
}

}  // namespace

std::vector<std::vector<int32_t>> generate(CausalLM& model, const std::vector<std::vector<int32_t>>& prompts,
                                           const GenerateOptions& options) {
  check_prompts(model, prompts, options);
  NoGrad no_grad(model.mesh().rank_state());
  StepNumber step(model.mesh());
  RandomScope evaluation(step, {.training = false});
  Batch batch(model, prompts, options);
  while (!batch.done()) batch.step();
  std::vector<std::vector<int32_t>> texts;
  for (size_t i = 0; i < prompts.size(); ++i) texts.push_back(batch.new_ids(i));
  return texts;
}

}  // namespace dtensor::nn
