#include "nn/trainer.h"

#include <chrono>
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
    check(mesh.size(a) == 1 || is_data_axis(mesh.name(a)) ||
              std::find(used.begin(), used.end(), mesh.name(a)) != used.end(),
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
    Tensor here = Tensor::of<double>({}, {mine}).to(rank_.allocator());
    auto first = size_t(DistributedTensor::from_local(here, mesh, partial, {}).redistribute(Layout()).item());
    return first < names_.size() ? names_[first] : "not found again";
  }

 private:
  static bool all_finite(const Tensor& x) {
    Tensor t = x.cpu();
    for (int64_t i = 0; i < t.numel(); ++i)
      if (!std::isfinite(element(t, i))) return false;
    return true;
  }

  Rank& rank_;
  std::vector<std::string> names_;
  double first_ = -1;
};

int micro_batches_of(const DistributedTensor& inputs, int64_t size) {
  int64_t rows = inputs.size(0), ranks = inputs.mesh().shape().product(inputs.layout().split[0].set());
  if (size == 0 || size == rows) return 1;
  check(size > 0 && rows % size == 0 && size % ranks == 0,
        "[train] a batch of {} rows does not divide into micro-batches of {} over {} ranks: --micro-batch-size divides "
        "--batch-size, and the data axes divide it",
        rows, size, ranks);
  return int(rows / size);
}

// Micro-batch i of n: the next rows of each rank.
DistributedTensor next_rows(const DistributedTensor& x, int i, int n) {
  Shape shape = x.shape();
  shape[0] /= n;
  int64_t rows = x.local().size(0) / n;
  return DistributedTensor::from_local(x.local().narrow(0, i * rows, rows), x.mesh(), x.layout(), shape);
}

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
      gradients_(mesh.rank_state()),
      parameters_(model_.parameters()),
      optimizer_(parameters_, options.adamw),
      step_number_(mesh) {
  check_axes(mesh.shape(), plan);
  for (Parameter* p : parameters_) p->compute_in(options.dtype);
  plan.apply(model_);
  materialize(model_, options.seed);
  watch_parameters(gradients_, parameters_);
}

int64_t Trainer::parameter_count() {
  int64_t n = 0;
  for (Parameter* p : parameters_) n += numel(p->shape());
  return n;
}

DistributedTensor Trainer::forward(const PackedText::Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  PhaseScope phase(rank, Phase::forward);
  RandomScope random(step_number_, {.seed = options_.seed});
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

DistributedTensor Trainer::pass(const PackedText::Batch& batch) {
  Record record(gradients_);
  DistributedTensor loss;
  {
    Record::Scope scope(record);
    loss = forward(batch);
  }
  record.backward(loss);
  return loss;
}

// The mean is one sum over one count, both over all micro-batches, so the count is taken first.
DistributedTensor Trainer::passes(const PackedText::Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  int micro_batches = int(rows_.size());
  auto reduced = [&](const DistributedTensor& x) { return x.redistribute(Layout(), {.reason = "loss"}); };
  DistributedTensor count, weight;
  {
    NoGrad scope(rank);
    PhaseScope phase(rank, Phase::forward);
    count = reduced(ops::sum(ops::cast(ops::ne(batch.targets, double(ByteTokenizer::pad)), DType::f32)));
    weight = ops::div(1.0, count);
  }
  TreeSum losses;
  for (int i = 0; i < micro_batches; ++i) {
    PackedText::Batch rows{next_rows(batch.inputs, i, micro_batches), next_rows(batch.targets, i, micro_batches)};
    Record record(gradients_, {.micro_batches = micro_batches});
    DistributedTensor sum;
    {
      Record::Scope scope(record);
      PhaseScope phase(rank, Phase::forward);
      RandomScope random(step_number_, {.seed = options_.seed, .rows = rows_[size_t(i)]});
      DistributedTensor logits = model_(rows.inputs);
      LabelScope reason(rank, Label::Kind::reason, "loss");
      sum = ops::sum(ops::cross_entropy(logits, rows.targets,
                                        {.ignore_index = ByteTokenizer::pad, .reduction = ops::Reduction::none}));
    }
    record.backward({sum}, {weight}, {.reduce = i + 1 == micro_batches});
    NoGrad scope(rank);
    losses.push(sum);
  }
  NoGrad scope(rank);
  PhaseScope phase(rank, Phase::forward);
  return ops::div(reduced(losses.total()), count);
}

// Outside of what is captured.
void Trainer::prepare_rows(const DistributedTensor& inputs) {
  int parts = micro_batches_of(inputs, options_.micro_batch_size);
  int64_t rows = inputs.size(0);
  bool same = int(rows_.size()) == parts && (parts == 1 || rows_[0].size(0) * parts == rows);
  if (same) return;
  rows_.assign(size_t(parts), DistributedTensor());
  for (int i = 0; parts > 1 && i < parts; ++i)
    rows_[size_t(i)] = micro_batch_rows(inputs.mesh(), inputs.layout(), rows, parts, i);
}

Trainer::Results Trainer::run(const PackedText::Batch& batch) {
  gradients_.clear();  // of a step that failed
  DistributedTensor loss = rows_.size() > 1 ? passes(batch) : pass(batch);
  PhaseScope phase(model_.mesh().rank_state(), Phase::optimizer);
  std::vector<DistributedTensor> gradients = reduce_gradients(gradients_, parameters_);
  gradients_.clear();
  DistributedTensor norm = global_norm(gradients);
  optimizer_.apply(gradients, norm, options_.clip);
  return {loss, norm, std::move(gradients)};
}

// "" where the step can be captured now.
std::string Trainer::why_no_graph(const PackedText::Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  if (rank.device() != Device::cuda || batch.inputs.is_meta()) return "not captured: graphs are CUDA's";
  if (!options_.graph) return "not captured: switched off";
  if (rank.world() > 1) return fmt::format("not captured: {} ranks, whose collectives need the host", rank.world());
  if (!rank.observers().empty()) return "not captured: somebody observes the ops, which a launched graph does not call";
  return "";
}

// The first step allocates what stays (states of the optimizer, plans, workspaces) and the second is captured, so that
// what the graph holds is what a step needs.
Trainer::Results Trainer::run_or_launch(const PackedText::Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  if (optimizer_.steps() == 2) {
    graph_status_ = why_no_graph(batch);
    if (graph_status_.empty()) {
      captured_ = std::make_unique<Captured>(rank);
      captured_->batch = {DistributedTensor::empty(model_.mesh(), batch.inputs.spec()),
                          DistributedTensor::empty(model_.mesh(), batch.targets.spec())};
    }
  }
  if (!captured_) return run(batch);
  check(&batch.inputs.spec() == &captured_->batch.inputs.spec(),
        "[train] the batch is {}, but the step was captured of {}", to_string(batch.inputs),
        to_string(captured_->batch.inputs));
  captured_->batch.inputs.copy_(batch.inputs);
  captured_->batch.targets.copy_(batch.targets);
  cuda::StreamHandle stream = rank.allocator()->stream();
  if (!captured_->graph.defined()) {
    captured_->pool.begin();
    cuda::Graph::begin(stream);
    try {
      captured_->results = run(captured_->batch);
      captured_->graph = cuda::Graph::end(stream);
    } catch (const Error& e) {
      cuda::Graph::abandon(stream);
      captured_->pool.end();
      captured_.reset();
      graph_status_ = fmt::format("not captured: {}", e.what());
      return run(batch);
    }
    captured_->pool.end();
    graph_status_ = fmt::format("captured, {} nodes", captured_->graph.nodes());
  }
  captured_->graph.launch(stream);
  return captured_->results;
}

Trainer::Step Trainer::step(const PackedText::Batch& batch) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin = Clock::now();
  double lr = warmup_cosine(optimizer_.steps(), options_.lr, options_.warmup_steps, options_.steps);
  optimizer_.begin_step(lr);
  step_number_.set(optimizer_.steps());
  prepare_rows(batch.inputs);
  Results r = run_or_launch(batch);
  double host_seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  Step result{optimizer_.steps(), value_of(r.loss), value_of(r.norm), lr, host_seconds};
  if (!r.loss.is_meta() && !(std::isfinite(result.loss) && std::isfinite(result.grad_norm)))
    fail_not_finite(result, batch, r.gradients);
  return result;
}

}  // namespace dtensor::nn
