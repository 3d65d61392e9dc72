#include "nn/foresight/alternatives.h"

#include <fmt/format.h>
#include <algorithm>

#include "ops/explain.h"

namespace dtensor::nn {
namespace {

void keep_the_cheapest(std::vector<Alternative>& list) {
  std::ranges::stable_sort(list, {}, &Alternative::bytes);
  if (list.size() > Alternatives::most) list.resize(Alternatives::most);
}

std::string steps_text(const Plan& plan, const MeshShape& mesh) {
  std::string text;
  for (const Step& s : plan.steps) {
    text += text.empty() ? "" : ", ";
    if (is_local(s.kind))
      text += fmt::format("{} to {}", s.kind == StepKind::slice ? "slice" : "pad", to_string(s.to, mesh));
    else
      text += fmt::format("{} over {} to {}", collective_name(s.kind), mesh.names(s.axes), to_string(s.to, mesh));
  }
  return text;
}

// By way of another layout of the axes that the step moves over: whole there, or a shard of another dimension.
std::vector<Alternative> other_steps(const CollectiveEvent& e) {
  const MeshShape& mesh = e.mesh.shape();
  const Layout &from = e.step->from, &to = e.step->to;
  std::vector<Placement> ways{Replicate()};
  for (int d = 0; d < e.shape.dims(); ++d) ways.push_back(Shard(d));
  std::optional<DType> reduce_dtype = e.dtype;
  if (is_exchange(e.step->kind)) reduce_dtype = reduced_as(e.tensor_dtype, e.mesh.rank_state().reduce_dtype);
  std::vector<Alternative> list;
  for (const Placement& way : ways) {
    Layout middle = from;
    for (int a = 0; a < mesh.axes(); ++a)
      if (has(e.axes, a)) middle = middle.with(a, way);
    if (middle == from || middle == to) continue;
    Plan first = plan_redistribution(mesh, e.shape, e.tensor_dtype, from, middle, {}, reduce_dtype),
         second = plan_redistribution(mesh, e.shape, e.tensor_dtype, middle, to, {}, reduce_dtype);
    list.push_back({steps_text(first, mesh) + ", then " + steps_text(second, mesh), first.bytes() + second.bytes()});
  }
  keep_the_cheapest(list);
  return list;
}

std::string way_text(std::string_view op, const Choice& c, const MeshShape& mesh) {
  std::string text = fmt::format("{} of ", op);
  for (size_t i = 0; i < c.inputs.size(); ++i) text += (i ? ", " : "") + to_string(c.inputs[i], mesh);
  text += " ->";
  for (size_t o = 0; o < c.outputs.size(); ++o) text += (o ? ", " : " ") + to_string(c.outputs[o], mesh);
  return text;
}

bool is_what_ran(const CallEvent& e, const Choice& c) {
  for (size_t i = 0; i < e.used.size(); ++i)
    if (e.used[i] && e.used[i]->layout() != c.inputs[i]) return false;
  return true;
}

std::vector<Alternative> other_ways(const CallEvent& e, const MeshShape& mesh,
                                    const std::vector<const TensorSpec*>& specs) {
  std::vector<Alternative> list;
  for (const Ways::Way& w : ways(e.op, mesh, specs, e.attributes, e.outputs[0].mesh().rank_state().reduce_dtype).list)
    if (!is_what_ran(e, w.choice)) list.push_back({way_text(e.op.name, w.choice, mesh), w.choice.bytes});
  keep_the_cheapest(list);
  return list;
}

}  // namespace

void Alternatives::on_collective(const CollectiveEvent& e) {
  list_.emplace_back();
  if (!e.step) return;
  if (!e.asked_for) {
    of_next_call_.push_back(list_.size() - 1);
    return;
  }
  const MeshShape& mesh = e.mesh.shape();
  auto [it, is_new] = found_.try_emplace(fmt::format("{} {}{} {} > {}", mesh, name(e.dtype), e.shape,
                                                     to_string(e.step->from, mesh), to_string(e.step->to, mesh)));
  if (is_new) it->second = other_steps(e);
  list_.back() = it->second;
}

void Alternatives::on_call(const CallEvent& e) {
  if (e.op.composite || of_next_call_.empty()) return;
  const MeshShape& mesh = e.outputs[0].mesh().shape();
  std::string key = fmt::format("{} {}", mesh, e.op.name);
  std::vector<const TensorSpec*> specs;
  for (const DistributedTensor* x : e.inputs) {
    specs.push_back(x ? &x->spec() : nullptr);
    key += x ? " " + to_string(x->spec(), mesh) : " none";
  }
  auto [it, is_new] = found_.try_emplace(key + " " + e.attributes.values().to_string());
  if (is_new) it->second = other_ways(e, mesh, specs);
  for (size_t i : of_next_call_) list_[i] = it->second;
  of_next_call_.clear();
}

}  // namespace dtensor::nn
