#include "nn/foresight/findings.h"

#include <fmt/format.h>

#include "nn/parallel/json_place.h"
#include "nn/parallel/module_paths.h"

namespace dtensor::nn {
namespace {

// The plan line of the module, or of one that it is in: the innermost that has one.
std::string line_of(const ParallelPlan& plan, std::string path) {
  while (true) {
    for (const TensorParallelPlan& t : plan.tensor_parallel)
      for (const auto& [pattern, style] : t.lines)
        if (matches(pattern, path)) return fmt::format("tensor_parallel.plan.{}", quoted(pattern));
    if (path.empty()) return "";
    size_t dot = path.rfind('.');
    path.resize(dot == path.npos ? 0 : dot);
  }
}

std::string place(const std::string& module) { return module.empty() ? "the root module" : like_modules(module); }

}  // namespace

void StepFindings::clear() { targets_ = 0, has_loss_ = false, started_.clear(), order_.clear(), times_.clear(); }

void StepFindings::on_call(const CallEvent& e) {
  std::string module(rank_.label(Label::Kind::module));
  for (const DistributedTensor* x : e.used)  // a sum that the op passes on was left where it arose
    if (x && x->layout().partial && made_in_.contains(x->id())) module = made_in_[x->id()];
  for (const DistributedTensor& y : e.outputs)
    if (y.layout().partial || y.layout().sharded()) made_in_[y.id()] = module;
  bool is_loss = e.op.name == "cross_entropy" || e.op.name == "linear_cross_entropy";
  if (!is_loss || rank_.phase != Phase::forward) return;
  has_loss_ = true;
  for (const DistributedTensor* x : e.inputs)
    if (x && x->dtype() == DType::i64) targets_ += numel(x->shape());
}

void StepFindings::on_collective(const CollectiveEvent& e) {
  if (e.asked_for || !e.step) return;
  const MeshShape& mesh = e.mesh.shape();
  started_.push_back({std::string(collective_name(e.kind)), mesh.names(e.axes), to_string(e.step->from, mesh),
                      to_string(e.step->to, mesh), e.bytes, (e.step->from.partial & e.axes) != 0});
}

void StepFindings::on_redistribute(const RedistributeEvent& e) {
  auto made = made_in_.find(e.from.id());
  std::string maker = made == made_in_.end() ? "" : made->second, line = line_of(plan_, maker);
  if (made != made_in_.end()) made_in_[e.to.id()] = maker;
  for (const Implicit& c : started_) {
    std::string module(rank_.label(Label::Kind::module)), op(rank_.label(Label::Kind::op));
    std::string text = fmt::format(
        "[plan] {}: in {}, {} cannot take {} {} as it is, so {} over {} is done that nobody asked for ({} -> {}, {} "
        "bytes): say where it goes, by \"output_layouts\" of the line that leaves it so, or by a PrepareModuleInput",
        line.empty() ? fmt::format("tensor_parallel.plan has no line for {}", place(maker)) : line, place(module), op,
        c.is_sum ? "the sum" : "the part", to_string(e.from), c.collective, c.axes, c.from, c.to, c.bytes);
    if (times_[text]++ == 0) order_.push_back(text);
  }
  started_.clear();
}

std::vector<std::string> StepFindings::implicit() const { return order_; }

std::string StepFindings::loss(int64_t tokens) const {
  if (!has_loss_ || targets_ == tokens) return "";
  return fmt::format(
      "[loss] it sees {} of the {} tokens of a step, so that the others are not learned from: give it the logits and "
      "targets of the whole batch",
      targets_, tokens);
}

}  // namespace dtensor::nn
