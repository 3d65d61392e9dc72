#include "nn/trainer.h"

#include <cmath>
#include <limits>

namespace dtensor::nn {
namespace {

constexpr std::string_view data_axes[] = {"dp", "dp_replicate", "dp_shard"};

bool is_data_axis(std::string_view name) {
  return std::find(std::begin(data_axes), std::end(data_axes), name) != std::end(data_axes);
}

void check_axes(const MeshShape& mesh, const ParallelPlan& plan) {
  std::vector<std::string> used = plan.axes();
  for (int a = 0; a < mesh.axes(); ++a)
    check(is_data_axis(mesh.name(a)) || std::find(used.begin(), used.end(), mesh.name(a)) != used.end(),
          "[mesh] nothing uses axis \"{}\" of {}: give a plan that does, or name it dp to divide the batch",
          mesh.name(a), to_string(mesh));
}

// Watches a forward pass for the first op whose result is not finite. Every rank runs the same ops in the same order.
class FirstBad : public Observer {
 public:
  explicit FirstBad(Rank& rank) : rank_(rank) { rank_.add(*this); }
  ~FirstBad() override { rank_.remove(*this); }

  void on_call(const CallEvent& e) override {
    std::string_view module = rank_.label(Label::Kind::module);
    names_.push_back(fmt::format("the output of {}{}{}", e.op.name, module.empty() ? "" : " in ", module));
    for (const DistributedTensor& out : e.outputs)
      if (first_ < 0 && is_floating(out.dtype()) && !all_finite(out.local().contiguous()))
        first_ = double(names_.size() - 1);
  }

  // The first on any rank: the least number of a call.
  std::string name(const DeviceMesh& mesh) {
    rank_.remove(*this);
    Layout partial;
    partial.partial = mesh.shape().all(), partial.reduce = Reduce::min;
    double mine = first_ < 0 ? double(names_.size()) : first_;
    auto first = size_t(
        DistributedTensor::from_local(Tensor::of<double>({}, {mine}), mesh, partial, {}).redistribute(Layout()).item());
    return first < names_.size() ? names_[first] : "not found again";
  }

 private:
  static bool all_finite(const Tensor& t) {
    for (int64_t i = 0; i < t.numel(); ++i)
      if (!std::isfinite(element(t, i))) return false;
    return true;
  }

  Rank& rank_;
  std::vector<std::string> names_;
  double first_ = -1;
};

double value_of(const DistributedTensor& x) {
  return x.is_meta() ? std::numeric_limits<double>::quiet_NaN() : x.item();
}

}  // namespace

Layout batch_layout(const MeshShape& mesh, const ParallelPlan& plan) {
  std::vector<std::string> named = plan.data_axes();
  Layout l;
  for (int a = 0; a < mesh.axes(); ++a)
    if (is_data_axis(mesh.name(a)) || std::find(named.begin(), named.end(), mesh.name(a)) != named.end())
      l = l.with(a, Shard(0));
  return l;
}

Trainer::Trainer(const DeviceMesh& mesh, const LlamaConfig& config, const ParallelPlan& plan,
                 const TrainerOptions& options)
    : options_(options),
      model_(mesh, config),
      tape_(mesh.rank_state()),
      parameters_(model_.parameters()),
      optimizer_(parameters_, options.adamw) {
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

DistributedTensor Trainer::forward(const PackedText::Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  PhaseScope phase(rank, Phase::forward);
  DistributedTensor logits = model_(batch.inputs);
  LabelScope reason(rank, Label::Kind::reason, "loss");
  return ops::cross_entropy(logits, batch.targets, {.ignore_index = ByteTokenizer::pad});
}

// All ranks get here together, because they have the same loss and norm.
void Trainer::fail_not_finite(const Step& s, const PackedText::Batch& batch,
                              const std::vector<DistributedTensor>& gradients) {
  Rank& rank = model_.mesh().rank_state();
  std::string where;
  NoGrad scope(rank);
  if (!std::isfinite(s.loss)) {
    FirstBad first(rank);
    forward(batch);
    where = first.name(model_.mesh());
  } else {
    for (size_t i = 0; i < gradients.size() && where.empty(); ++i)
      if (!std::isfinite(global_norm({gradients[i]}).item())) where = "the gradient of " + parameters_[i]->path();
  }
  fail(
      "[train] step {}: the loss is {} and the gradient norm {}; the first value that is not finite is {}. Lower --lr, "
      "or raise --warmup-steps",
      s.step, s.loss, s.grad_norm, where);
}

Trainer::Step Trainer::step(const PackedText::Batch& batch) {
  DistributedTensor loss = forward(batch);
  tape_.backward(loss);
  PhaseScope phase(model_.mesh().rank_state(), Phase::optimizer);
  std::vector<DistributedTensor> gradients = reduce_gradients(tape_, parameters_);
  tape_.clear_gradients();
  DistributedTensor norm = global_norm(gradients);

  Step result{optimizer_.steps() + 1, value_of(loss), value_of(norm),
              warmup_cosine(optimizer_.steps(), options_.lr, options_.warmup_steps, options_.steps)};
  if (!loss.is_meta() && !(std::isfinite(result.loss) && std::isfinite(result.grad_norm)))
    fail_not_finite(result, batch, gradients);
  double scale = options_.clip > 0 && result.grad_norm > options_.clip ? options_.clip / (result.grad_norm + 1e-6) : 1;
  optimizer_.step(gradients, result.lr, scale);
  return result;
}

}  // namespace dtensor::nn
