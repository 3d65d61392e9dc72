#include "nn/trainer.h"

#include <cmath>
#include <limits>

namespace dtensor::nn {
namespace {

constexpr std::string_view data_axes[] = {"dp", "dp_replicate", "dp_shard"};

bool is_data_axis(std::string_view name) { return std::find(std::begin(data_axes), std::end(data_axes), name) != std::end(data_axes); }

void check_axes(const MeshShape& mesh, const ParallelPlan& plan) {
  std::vector<std::string> used = plan.axes();
  for (int a = 0; a < mesh.axes(); ++a)
    check(is_data_axis(mesh.name(a)) || std::find(used.begin(), used.end(), mesh.name(a)) != used.end(),
          "[mesh] nothing uses axis \"{}\" of {}: give a plan that does, or name it dp to divide the batch", mesh.name(a), to_string(mesh));
}

double value_of(const DistributedTensor& x) { return x.is_meta() ? std::numeric_limits<double>::quiet_NaN() : x.item(); }

}  // namespace

Layout batch_layout(const MeshShape& mesh) {
  Layout l;
  for (int a = 0; a < mesh.axes(); ++a)
    if (is_data_axis(mesh.name(a))) l = l.with(a, Shard(0));
  return l;
}

Trainer::Trainer(const DeviceMesh& mesh, const LlamaConfig& config, const ParallelPlan& plan, const TrainerOptions& options)
    : options_(options), model_(mesh, config), tape_(mesh.rank_state()), parameters_(model_.parameters()), optimizer_(parameters_, options.adamw) {
  check_axes(mesh.shape(), plan);
  plan.apply(model_);
  materialize(model_, options.seed);
  watch_parameters(tape_, parameters_);
}

int64_t Trainer::parameter_count() {
  int64_t n = 0;
  for (Parameter* p : parameters_) n += numel(p->shape());
  return n;
}

Trainer::Step Trainer::step(const PackedText::Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  DistributedTensor loss;
  {
    PhaseScope phase(rank, Phase::forward);
    DistributedTensor logits = model_(batch.inputs);
    LabelScope reason(rank, Label::Kind::reason, "loss");
    loss = ops::cross_entropy(logits, batch.targets, {.ignore_index = ByteTokenizer::pad});
  }
  tape_.backward(loss);
  PhaseScope phase(rank, Phase::optimizer);
  std::vector<DistributedTensor> gradients = reduce_gradients(tape_, parameters_);
  tape_.clear_gradients();
  DistributedTensor norm = global_norm(gradients);

  Step result{optimizer_.steps() + 1, value_of(loss), value_of(norm), warmup_cosine(optimizer_.steps(), options_.lr, options_.warmup_steps, options_.steps)};
  if (!loss.is_meta())
    check(std::isfinite(result.loss) && std::isfinite(result.grad_norm), "[train] step {}: the loss is {} and the gradient norm {}", result.step, result.loss, result.grad_norm);
  double scale = options_.clip > 0 && result.grad_norm > options_.clip ? options_.clip / (result.grad_norm + 1e-6) : 1;
  optimizer_.step(gradients, result.lr, scale);
  return result;
}

}  // namespace dtensor::nn
