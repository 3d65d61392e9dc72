#include "nn/train/trainer.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <set>

#include "dtensor/creation.h"
#include "nn/train/gradients.h"
#include "ops/all.h"

namespace dtensor::nn {
namespace {

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

int micro_batches_of(const Batch& batch, int64_t size) {
  if (size == 0) return 1;
  for (const DistributedTensor& x : batch)
    check(
        x.dims() > 0 && x.size(0) == batch[0].size(0) && x.layout().split[0] == batch[0].layout().split[0],
        "[Trainer] micro-batches are rows of all tensors of a batch, but one is {} and another {}: give dimension 0 of "
        "all the same size and layout",
        to_string(batch[0]), to_string(x));
  check(!batch.empty(), "[Trainer] a batch without tensors has no micro-batches");
  int64_t rows = batch[0].size(0), ranks = batch[0].mesh().shape().product(batch[0].layout().split[0].set());
  if (size == rows) return 1;
  check(size > 0 && rows % size == 0 && size % ranks == 0,
        "[Trainer] a batch of {} rows does not divide into micro-batches of {} over {} ranks: the micro-batch size "
        "divides the batch size, and the ranks divide it",
        rows, size, ranks);
  return int(rows / size);
}

// Micro-batch i of n: the next rows of each rank.
Batch next_rows(const Batch& batch, size_t i, size_t n) {
  if (n == 1) return batch;
  Batch part;
  for (const DistributedTensor& x : batch) {
    Shape shape = x.shape();
    shape[0] /= int64_t(n);
    int64_t rows = x.local().size(0) / int64_t(n);
    part.push_back(
        DistributedTensor::from_local(x.local().narrow(0, int64_t(i) * rows, rows), x.mesh(), x.layout(), shape));
  }
  return part;
}

bool is_meta(const Batch& batch) {
  return std::any_of(batch.begin(), batch.end(), [](const DistributedTensor& x) { return x.is_meta(); });
}

double value_of(const DistributedTensor& x) {
  return x.is_meta() ? std::numeric_limits<double>::quiet_NaN() : x.item();
}

// One number, whole on every rank.
DistributedTensor number(const DeviceMesh& mesh, DType dtype, double value) {
  DistributedTensor x = empty(mesh, TensorSpec{dtype, {}, {}});
  fill(x.local_for_writing(), value);
  return x;
}

}  // namespace

Trainer::Trainer(Module& model, Loss loss, Optimizer& optimizer, TrainerOptions options)
    : model_(model),
      loss_(std::move(loss)),
      optimizer_(optimizer),
      options_(std::move(options)),
      gradients_(model.mesh().rank_state()),
      step_number_(model.mesh()) {
  std::vector<Parameter*> all = model.parameters();
  std::set<Parameter*> of_model(all.begin(), all.end());
  for (Parameter* p : optimizer.parameters())
    check(of_model.contains(p), "[Trainer] the optimizer has {}, which is no parameter of the model", p->path());
  check(options_.skip_bad_steps >= 0, "[Trainer] {} bad steps cannot be skipped", options_.skip_bad_steps);
  check(options_.spike > 1, "[Trainer] a norm of {} times the average is no spike: give more than 1", options_.spike);
  if (options_.skip_bad_steps > 0) limit_ = number(model.mesh(), DType::f64, largest_norm());
  watch_parameters(gradients_, optimizer.parameters());
}

// All ranks get here together, because they have the same loss and norm.
void Trainer::fail_not_finite(const Step& s, const Batch& batch, const std::vector<DistributedTensor>& gradients) {
  std::string where;
  NoGrad scope(model_.mesh().rank_state());
  if (!std::isfinite(s.loss)) {
    FirstBad first(model_.mesh().rank_state());
    passes(batch, rows_, Pass::look);
    where = first.name(model_.mesh());
  } else {
    for (size_t i = 0; i < gradients.size() && where.empty(); ++i)
      if (!std::isfinite(global_norm({gradients[i]}).item()))
        where = "the gradient of " + optimizer_.parameters()[i]->path();
  }
  fail(
      "[Trainer] step {}: the loss is {} and the gradient norm {}; the first value that is not finite is {}. Lower the "
      "learning rate, or warm up for longer",
      s.step, s.loss, s.grad_norm, where);
}

// The sum of a micro-batch's terms, and how many there are.
std::pair<DistributedTensor, int64_t> Trainer::sum_of_terms(const Batch& batch, const DistributedTensor& rows,
                                                            Pass pass) {
  PhaseScope phase(model_.mesh().rank_state(), Phase::forward);
  RandomScope random(step_number_, {.seed = options_.seed, .training = pass != Pass::evaluate, .rows = rows});
  DistributedTensor terms = loss_.terms(batch);
  check(terms.defined() && is_floating(terms.dtype()), "[Trainer] the loss is {}; it needs floating numbers",
        terms.defined() ? to_string(terms) : "undefined");
  int64_t n = numel(terms.shape());
  if (terms.dtype() == DType::bf16) terms = ops::cast(terms, DType::f32);
  return {terms.dims() == 0 ? terms : ops::sum(terms), n};
}

// The mean is one sum over one count, both over all micro-batches, so the count is known before the first gradient.
DistributedTensor Trainer::passes(const Batch& batch, const std::vector<DistributedTensor>& rows, Pass pass) {
  Rank& rank = model_.mesh().rank_state();
  size_t parts = rows.size();
  DistributedTensor count, weight;
  int64_t terms = 0;
  TreeSum sums;
  for (size_t i = 0; i < parts; ++i) {
    Record record(gradients_, {.micro_batches = int(parts)});
    DistributedTensor sum;
    {
      std::optional<Record::Scope> recording;
      if (pass == Pass::train) recording.emplace(record);
      int64_t n = 0;
      std::tie(sum, n) = sum_of_terms(next_rows(batch, i, parts), rows[i], pass);
      if (i == 0) terms = n;
      check(n == terms, "[Trainer] the loss has {} terms in micro-batch {}, but {} in the first", n, i, terms);
    }
    DistributedTensor total = sum;
    if (i == 0) {
      NoGrad scope(rank);
      PhaseScope phase(rank, Phase::forward);
      count = loss_.count ? loss_.count(batch) : number(model_.mesh(), sum.dtype(), double(terms) * double(parts));
      // With one micro-batch its sum is all of it, and travels with the count.
      std::vector<DistributedTensor> known = parts == 1 ? std::vector{sum, count} : std::vector{count};
      known = redistribute(known, std::vector<Layout>(known.size()), {.reason = "loss"});
      count = known.back();
      if (parts == 1) total = known[0];
      weight = ops::div(1.0, count);
    }
    if (pass == Pass::train) record.backward({sum}, {weight}, {.reduce = i + 1 == parts});
    NoGrad scope(rank);
    sums.push(total);
  }
  NoGrad scope(rank);
  PhaseScope phase(rank, Phase::forward);
  return ops::div(sums.total().redistribute(Layout(), {.reason = "loss"}), count);
}

std::vector<DistributedTensor> Trainer::rows_of(const Batch& batch) const {
  int parts = micro_batches_of(batch, options_.micro_batch_size);
  std::vector<DistributedTensor> rows(static_cast<size_t>(parts));
  for (int i = 0; parts > 1 && i < parts; ++i)
    rows[size_t(i)] = micro_batch_rows(batch[0].mesh(), batch[0].layout(), batch[0].size(0), parts, i);
  return rows;
}

Trainer::Results Trainer::run(const Batch& batch) {
  gradients_.clear();  // of a step that failed
  DistributedTensor loss = passes(batch, rows_, Pass::train);
  PhaseScope phase(model_.mesh().rank_state(), Phase::optimizer);
  std::vector<DistributedTensor> gradients = reduce_gradients(gradients_, optimizer_.parameters());
  gradients_.clear();
  DistributedTensor norm = global_norm(gradients);
  optimizer_.apply(gradients, judged(loss, norm), options_.clip);
  return {loss, norm, std::move(gradients)};
}

// The norm, or NaN where the step is to be skipped: optimizers change nothing then. Bits of good ones stay.
DistributedTensor Trainer::judged(const DistributedTensor& loss, const DistributedTensor& norm) {
  if (!limit_.defined()) return norm;
  NoGrad scope(model_.mesh().rank_state());
  DistributedTensor finite = ops::add(norm, ops::mul(ops::cast(loss, DType::f64), 0.0));
  return ops::where(ops::le(finite, limit_), finite, std::numeric_limits<double>::quiet_NaN());
}

double Trainer::largest_norm() const {
  constexpr int64_t enough = 20;
  return norms_.good >= enough ? options_.spike * norms_.average : std::numeric_limits<double>::max();
}

void Trainer::set_norms(const Norms& norms) { norms_ = norms; }

// What a step is that was run; nothing of a bad one has reached the weights.
void Trainer::judge(Step& s, const Batch& batch, const std::vector<DistributedTensor>& gradients) {
  bool finite = std::isfinite(s.loss) && std::isfinite(s.grad_norm);
  if (!limit_.defined() || (finite && s.grad_norm <= largest_norm())) {
    if (!finite) fail_not_finite(s, batch, gradients);
    norms_.average = norms_.good == 0 ? s.grad_norm : 0.98 * norms_.average + 0.02 * s.grad_norm;
    ++norms_.good, norms_.bad_in_a_row = 0;
    return;
  }
  if (norms_.bad_in_a_row == options_.skip_bad_steps) {
    if (!finite) fail_not_finite(s, batch, gradients);
    fail(
        "[Trainer] step {}: the gradient norm is {}, more than {} times its average of {}, and {} steps before it were "
        "skipped already. Lower the learning rate, or go on from an earlier checkpoint with other data",
        s.step, s.grad_norm, options_.spike, norms_.average, norms_.bad_in_a_row);
  }
  s.skipped = true;
  ++norms_.bad_in_a_row, ++norms_.skipped;
}

const std::vector<DistributedTensor>& Trainer::gradients() const {
  check(options_.keep_gradients, "[Trainer] gradients are gone after a step: set TrainerOptions::keep_gradients");
  return last_grads_;
}

// "" where the step can be captured now.
std::string Trainer::why_no_graph(const Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  if (rank.device() != Device::cuda || is_meta(batch)) return "not captured: graphs are CUDA's";
  if (!options_.graph) return "not captured: switched off";
  for (const Parameter* p : optimizer_.parameters())
    if (p->stored().is_on_host())
      return fmt::format("not captured: {} is offloaded, and a graph takes no step on the host", p->path());
  if (!rank.communicator().can_be_captured())
    return fmt::format("not captured: {} ranks, whose collectives need the host", rank.world());
  if (std::any_of(rank.observers().begin(), rank.observers().end(), [](Observer* o) { return o->sees_every_step(); }))
    return "not captured: somebody observes the ops, which a launched graph does not call";
  return "";
}

// What a captured step reads its batch from must fit this one.
void Trainer::check_as_captured(const Batch& batch) const {
  const Batch& of_graph = captured_->batch;
  check(batch.size() == of_graph.size(), "[Trainer] the batch has {} tensors, but the step was captured of {}",
        batch.size(), of_graph.size());
  for (size_t i = 0; i < batch.size(); ++i)
    check(&batch[i].spec() == &of_graph[i].spec(), "[Trainer] the batch is {}, but the step was captured of {}",
          to_string(batch[i]), to_string(of_graph[i]));
}

// "" where it is so on every rank: ranks capture together or not at all.
std::string Trainer::agreed(std::string why_not) const {
  Rank& rank = model_.mesh().rank_state();
  if (rank.world() == 1 || rank.device() != Device::cuda || !rank.communicator().can_be_captured()) return why_not;
  Layout partial;
  partial.partial = model_.mesh().shape().all(), partial.reduce = Reduce::max;
  NoGrad scope(rank);
  DistributedTensor mine = number(model_.mesh(), DType::f64, !why_not.empty());
  bool any = DistributedTensor::from_local(mine.local(), model_.mesh(), partial, {}).redistribute(Layout()).item() > 0;
  return any && why_not.empty() ? "not captured: another rank does not capture it" : why_not;
}

// In memory of its own, so that the graph may be launched again.
void Trainer::capture(cuda::StreamHandle stream) {
  captured_->pool.begin();
  try {
    captured_->graph =
        model_.mesh().rank_state().communicator().capture(stream, [&] { captured_->results = run(captured_->batch); });
    graph_status_.clear();
  } catch (const Error& e) {
    graph_status_ = fmt::format("not captured: {}", e.what());
  }
  captured_->pool.end();
  graph_status_ = agreed(graph_status_);
  if (graph_status_.empty())
    graph_status_ = fmt::format("captured, {} nodes", captured_->graph->nodes());
  else
    captured_.reset();
}

// The first step allocates what stays (states of the optimizer, plans, workspaces) and the second is captured, so that
// what the graph holds is what a step needs.
Trainer::Results Trainer::run_or_launch(const Batch& batch) {
  Rank& rank = model_.mesh().rank_state();
  bool second = ++steps_here_ == 2;
  if (second) {
    graph_status_ = agreed(why_no_graph(batch));
    if (graph_status_.empty()) {
      captured_ = std::make_unique<Captured>(rank);
      for (const DistributedTensor& x : batch) captured_->batch.push_back(DistributedTensor::empty(x.mesh(), x.spec()));
    }
  }
  if (!captured_) return run(batch);
  for (size_t i = 0; i < batch.size(); ++i) captured_->batch[i].copy_(batch[i]);
  cuda::StreamHandle stream = rank.allocator()->stream();
  if (second) capture(stream);
  if (!captured_) return run(batch);
  captured_->graph->launch(stream);
  return captured_->results;
}

Trainer::Step Trainer::step(const Batch& batch) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin = Clock::now();
  // A captured step goes on reading the rows that it was captured with.
  if (captured_)
    check_as_captured(batch);
  else
    rows_ = rows_of(batch);
  double lr = options_.lr(optimizer_.steps());
  optimizer_.begin_step(lr);
  step_number_.set(optimizer_.steps());
  if (limit_.defined() && !limit_.is_meta()) copy(Tensor::of<double>({}, {largest_norm()}), limit_.local_for_writing());
  Results r = run_or_launch(batch);
  double host_seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  Step result{optimizer_.steps(), value_of(r.loss), value_of(r.norm), lr, host_seconds};
  model_.mesh().rank_state().communicator().throw_if_failed();  // before anybody believes these numbers
  if (!r.loss.is_meta()) judge(result, batch, r.gradients);
  if (options_.keep_gradients) last_grads_ = std::move(r.gradients);
  return result;
}

double Trainer::evaluate(const Batch& batch) {
  NoGrad scope(model_.mesh().rank_state());
  return value_of(passes(batch, rows_of(batch), Pass::evaluate));
}

}  // namespace dtensor::nn
