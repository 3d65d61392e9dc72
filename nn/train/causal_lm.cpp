#include "nn/train/causal_lm.h"

#include <cmath>

#include "dtensor/creation.h"
#include "dtensor/random_scope.h"

namespace dtensor::nn {
namespace {

// Makes the model ready before the optimizer sees its parameters.
std::vector<Parameter*> prepare(CausalLM& model, const ParallelPlan& plan, const LlamaTrainingOptions& options) {
  plan.check_uses(model.mesh().shape());
  for (Parameter* p : model.parameters()) p->compute_in(options.dtype);
  plan.apply(model);
  materialize(model, options.seed);
  return model.parameters();
}

// Batches {ids, targets, positions, documents} of a model whose attention is balanced.
Batch balanced(const Batch& batch, int axis) {
  const DistributedTensor& ids = batch[0];
  Layout sequence = Layout().with(axis, Shard(0));
  DistributedTensor indices = arange(ids.mesh(), TensorSpec{DType::i64, {ids.size(1)}, sequence});
  Batch list = batch;
  if (list.size() < 3) list.push_back(indices);
  if (!list[2].defined()) list[2] = indices;
  bool documents = list.size() > 3 && list[3].defined();
  if (!documents) list.resize(3);
  list.push_back(indices);
  list = balanced_order(list, axis);
  if (RandomScope* scope = ids.mesh().rank_state().random_scope) scope->set_positions(list.back());
  list.pop_back();
  return list;
}

Loss::Function count_of_targets(int64_t ignored) {
  return [ignored](const Batch& batch) { return ops::sum(ops::cast(ops::ne(batch[1], double(ignored)), DType::f32)); };
}

}  // namespace

Loss causal_lm_loss(Callable<DistributedTensor(const DistributedTensor&)>& model, int64_t ignored) {
  auto terms = [&model, ignored](const Batch& batch) {
    DistributedTensor logits = model(batch[0]);
    LabelScope reason(model.mesh().rank_state(), Label::Kind::reason, "loss");
    return ops::cross_entropy(logits, batch[1], {.ignore_index = ignored, .reduction = ops::Reduction::none});
  };
  return Loss(terms, count_of_targets(ignored));
}

Loss causal_lm_loss(CausalLM& model, int64_t ignored, double z_loss, int64_t max_documents) {
  check(z_loss >= 0 && std::isfinite(z_loss), "[causal_lm_loss] a z-loss of {}; it is 0 or more, as 1e-4", z_loss);
  auto terms = [&model, ignored, z_loss, max_documents](const Batch& given) {
    Batch batch = model.balanced_over ? balanced(given, *model.balanced_over) : given;
    SequenceInputs inputs;
    if (batch.size() > 2) inputs.positions = batch[2];
    if (batch.size() > 3) inputs.documents = batch[3], inputs.max_documents = max_documents;
    Rank& rank = model.mesh().rank_state();
    bool fused = model.criterion().in_use;
    check(!fused || z_loss == 0,
          "[causal_lm_loss] a z-loss needs the logits, which LinearLossParallel never makes: leave one of them out");
    DistributedTensor logits = fused ? DistributedTensor() : model(batch[0], inputs);
    LabelScope reason(rank, Label::Kind::reason, "loss");
    if (fused) return model(batch[0], batch[1], inputs, ignored);
    DistributedTensor loss =
        ops::cross_entropy(logits, batch[1], {.ignore_index = ignored, .reduction = ops::Reduction::none});
    if (z_loss == 0 || (rank.random_scope && !rank.random_scope->training())) return loss;
    DistributedTensor z = ops::square(ops::logsumexp(ops::cast(logits, DType::f32), {-1}));
    return ops::add(loss, ops::where(ops::ne(batch[1], double(ignored)), ops::mul(z, z_loss), 0.0));
  };
  return Loss(terms, count_of_targets(ignored));
}

LlamaTraining::LlamaTraining(const DeviceMesh& mesh, const ModelConfig& config, const ParallelPlan& plan,
                             const LlamaTrainingOptions& options)
    : owned_(config.make(mesh)),
      model(*owned_),
      optimizer(prepare(model, plan, options), options.adamw),
      trainer(model, causal_lm_loss(model, ignored_target, options.z_loss, options.max_documents), optimizer,
              {.lr = warmup_then_decay({.decay = options.decay,
                                        .peak = options.lr,
                                        .warmup = options.warmup_steps,
                                        .total = options.steps,
                                        .least = options.min_lr}),
               .clip = options.clip,
               .micro_batch_size = options.micro_batch_size,
               .skip_bad_steps = options.skip_bad_steps,
               .keep_gradients = options.keep_gradients,
               .seed = options.seed,
               .graph = options.graph}) {}

}  // namespace dtensor::nn
