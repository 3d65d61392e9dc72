#include "nn/train/causal_lm.h"

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

Loss causal_lm_loss(CausalLM& model, int64_t ignored) {
  auto terms = [&model, ignored](const Batch& batch) {
    SequenceInputs inputs;
    if (batch.size() > 2) inputs.positions = batch[2];
    if (batch.size() > 3) inputs.documents = batch[3];
    bool fused = model.criterion().in_use;
    DistributedTensor logits = fused ? DistributedTensor() : model(batch[0], inputs);
    LabelScope reason(model.mesh().rank_state(), Label::Kind::reason, "loss");
    if (fused) return model(batch[0], batch[1], inputs, ignored);
    return ops::cross_entropy(logits, batch[1], {.ignore_index = ignored, .reduction = ops::Reduction::none});
  };
  return Loss(terms, count_of_targets(ignored));
}

LlamaTraining::LlamaTraining(const DeviceMesh& mesh, const ModelConfig& config, const ParallelPlan& plan,
                             const LlamaTrainingOptions& options)
    : owned_(config.make(mesh)),
      model(*owned_),
      optimizer(prepare(model, plan, options), options.adamw),
      trainer(model, causal_lm_loss(model), optimizer,
              {.lr = warmup_then_decay({.decay = options.decay,
                                        .peak = options.lr,
                                        .warmup = options.warmup_steps,
                                        .total = options.steps,
                                        .least = options.min_lr}),
               .clip = options.clip,
               .micro_batch_size = options.micro_batch_size,
               .seed = options.seed,
               .graph = options.graph}) {}

}  // namespace dtensor::nn
