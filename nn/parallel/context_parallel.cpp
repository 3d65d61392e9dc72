#include "nn/parallel/context_parallel.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "dtensor/redistribute.h"
#include "nn/models/attention.h"
#include "nn/parallel/json_place.h"

namespace dtensor::nn {
namespace {

using Method = ContextParallelPlan::Method;
using Tensors = std::vector<DistributedTensor*>;

constexpr std::string_view names[] = {"all_gather", "all_to_all", "ring"};  // of methods, in their order
constexpr int heads = 1, sequence = 2;                                      // dimensions of queries, keys and values

void check_divided(const Module& m, int axis, const DistributedTensor& q) {
  const MeshShape& mesh = m.mesh().shape();
  check(q.layout()[axis] == Shard(sequence),
        "[{}] context_parallel: queries arrive as {}, not divided over {} along the sequence: give a batch that is "
        "(batch_layout)",
        m.path(), q, mesh.name(axis));
}

// A recurrence passes states from part to part by itself.
void check_recurrence(const Module& m, const ContextParallelPlan& plan) {
  check(plan.method == Method::all_gather && !plan.balanced,
        "[plan] context_parallel: {} is a CoreRecurrence, which passes its states on from each part of the sequence to "
        "the next and has no method \"{}\"{}: use \"all_gather\" with parts in their order",
        m.path(), names[size_t(plan.method)], plan.balanced ? " with balanced parts" : "");
}

// In one launch.
void move(Module& m, const Tensors& list, const std::vector<Layout>& layouts, const char* method) {
  LabelScope line(m.mesh().rank_state(), Label::Kind::plan_line, fmt::format("context_parallel: {}", method));
  std::vector<DistributedTensor> from;
  for (const DistributedTensor* x : list) from.push_back(*x);
  std::vector<DistributedTensor> to = redistribute(from, layouts);
  for (size_t i = 0; i < list.size(); ++i) *list[i] = to[i];
}

void gather_keys(Module& m, int axis, const Tensors& inputs) {
  check_divided(m, axis, *inputs.at(0));
  Tensors keys(inputs.begin() + 1, inputs.begin() + 3);
  move(m, keys, {keys[0]->layout().with(axis, Replicate()), keys[1]->layout().with(axis, Replicate())}, "all_gather");
}

void sequence_to_heads(Module& m, int axis, const Tensors& inputs) {
  check_divided(m, axis, *inputs.at(0));
  const MeshShape& mesh = m.mesh().shape();
  Tensors list(inputs.begin(), inputs.begin() + 3);
  std::vector<Layout> layouts;
  for (const DistributedTensor* x : list) {
    layouts.push_back(x->layout().with_innermost(axis, heads));
    int ranks = mesh.product(layouts.back().split[heads].set());
    check(
        x->size(heads) % ranks == 0,
        "[{}] context_parallel: {} heads do not divide over {} ranks ({}): use fewer ranks on that axis, or the method "
        "\"all_gather\"",
        m.path(), x->size(heads), ranks, mesh.names(layouts.back().split[heads].set()));
  }
  move(m, list, layouts, "all_to_all");
}

}  // namespace

ContextParallelPlan ContextParallelPlan::from_json(const JsonPlace& p) {
  p.fields({"axis", "method", "balanced"}, {"axis"});
  ContextParallelPlan c{p.at("axis").text()};
  if (p.has("method")) {
    std::string text = p.at("method").text();
    auto found = std::find(std::begin(names), std::end(names), text);
    if (found == std::end(names))
      p.at("method").error(fmt::format("there is no method \"{}\"; use {}", text, fmt::join(names, ", ")));
    c.method = Method(found - std::begin(names));
  }
  if (p.has("balanced")) c.balanced = p.at("balanced").boolean();
  if (c.balanced && c.method == Method::all_to_all)
    p.at("balanced")
        .error("with all_to_all each rank has all of the sequence, and nothing is to be balanced; use false");
  return c;
}

nlohmann::ordered_json ContextParallelPlan::to_json() const {
  nlohmann::ordered_json object{{"axis", axis}};
  if (method != Method::all_gather) object["method"] = names[size_t(method)];
  if (balanced) object["balanced"] = true;
  return object;
}

void ContextParallelPlan::apply(Module& model) const {
  int over = model.mesh().shape().axis(axis, "plan");
  bool found = false, alone = model.mesh().shape().size(over) == 1;
  for (Module* m : model.modules()) {
    if (m->kind() == "CoreRecurrence") check_recurrence(*m, *this), found = true;
    auto* attention = dynamic_cast<CoreAttention*>(m);
    if (!attention) continue;
    found = true;
    if (alone) continue;
    attention->reordered = balanced;
    if (method == Method::ring) {
      attention->ring = over;
      m->add_before_hook([over](Module& self, Tensors& inputs) { check_divided(self, over, *inputs.at(0)); });
    } else if (method == Method::all_gather) {
      m->add_before_hook([over](Module& self, Tensors& inputs) { gather_keys(self, over, inputs); });
    } else {
      m->add_before_hook([over](Module& self, Tensors& inputs) { sequence_to_heads(self, over, inputs); });
      m->add_after_hook([over](Module& self, Tensors& outputs) {
        move(self, outputs, {outputs.at(0)->layout().with(over, Shard(sequence))}, "all_to_all");
      });
    }
  }
  check(found, "[plan] context_parallel: the model has no CoreAttention, whose queries meet keys of other ranks");
  if (!balanced || alone) return;
  auto* causal = dynamic_cast<CausalLM*>(&model);
  check(causal, "[plan] context_parallel: balanced parts are for causal attention, and this model is no CausalLM");
  causal->balanced_over = over;
}

std::vector<DistributedTensor> balanced_order(std::vector<DistributedTensor> list, int axis) {
  check(!list.empty(), "[balanced_order] no tensors");
  const DeviceMesh& mesh = list[0].mesh();
  const int64_t ranks = mesh.shape().size(axis);
  LabelScope line(mesh.rank_state(), Label::Kind::plan_line, "context_parallel: balanced");
  std::vector<Layout> whole, parts;
  for (const DistributedTensor& x : list) {
    check(
        (x.dims() == 1 || x.dims() == 2) && x.size(-1) % (2 * ranks) == 0,
        "[balanced_order] {} is not cut into {} chunks, two for each of the {} ranks of {}: give [sequence] or [batch, "
        "sequence], padded to a multiple",
        x, 2 * ranks, ranks, mesh.shape().name(axis));
    whole.push_back(x.layout().with(axis, Replicate()));
    parts.push_back(x.layout().with(axis, Shard(x.dims() - 1)));
  }
  list = redistribute(list, whole);
  for (DistributedTensor& x : list) {
    const int d = x.dims() - 1;
    const Shape shape = x.shape();
    DistributedTensor halves = ops::unflatten(x, d, {2, ranks, -1});
    DistributedTensor last = ops::flip(ops::narrow(halves, d, 1, 1), {d + 1});
    x = ops::reshape(ops::transpose(ops::cat({ops::narrow(halves, d, 0, 1), last}, d), d, d + 1), shape);
  }
  return redistribute(list, parts);
}

}  // namespace dtensor::nn
