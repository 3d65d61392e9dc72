#include "nn/parallel/context_parallel.h"

#include <fmt/format.h>

#include "dtensor/redistribute.h"
#include "nn/parallel/json_place.h"

namespace dtensor::nn {
namespace {

using Method = ContextParallelPlan::Method;
using Tensors = std::vector<DistributedTensor*>;

constexpr int heads = 1, sequence = 2;  // dimensions of queries, keys and values

void check_divided(const Module& m, int axis, const DistributedTensor& q) {
  const MeshShape& mesh = m.mesh().shape();
  check(q.layout()[axis] == Shard(sequence),
        "[{}] context_parallel: queries arrive as {}, not divided over {} along the sequence: give a batch that is "
        "(batch_layout)",
        m.path(), q, mesh.name(axis));
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
  if (p.has("balanced") && p.at("balanced").boolean())
    p.at("balanced").error("balanced parts of the sequence are not supported yet; use false");
  if (!p.has("method")) return c;
  std::string method = p.at("method").text();
  if (method == "ring")
    p.at("method").error("ring attention is not supported yet; use \"all_gather\" or \"all_to_all\"");
  if (method != "all_gather" && method != "all_to_all")
    p.at("method").error(fmt::format("there is no method \"{}\"; use \"all_gather\" or \"all_to_all\"", method));
  if (method == "all_to_all") c.method = Method::all_to_all;
  return c;
}

nlohmann::ordered_json ContextParallelPlan::to_json() const {
  nlohmann::ordered_json object{{"axis", axis}};
  if (method == Method::all_to_all) object["method"] = "all_to_all";
  return object;
}

void ContextParallelPlan::apply(Module& model) const {
  int over = model.mesh().shape().axis(axis, "plan");
  bool found = false;
  for (Module* m : model.modules()) {
    if (m->kind() != "CoreAttention") continue;
    found = true;
    if (model.mesh().shape().size(over) == 1) continue;
    if (method == Method::all_gather) {
      m->add_before_hook([over](Module& self, Tensors& inputs) { gather_keys(self, over, inputs); });
      continue;
    }
    m->add_before_hook([over](Module& self, Tensors& inputs) { sequence_to_heads(self, over, inputs); });
    m->add_after_hook([over](Module& self, Tensors& outputs) {
      move(self, outputs, {outputs.at(0)->layout().with(over, Shard(sequence))}, "all_to_all");
    });
  }
  check(found, "[plan] context_parallel: the model has no CoreAttention, whose queries meet keys of other ranks");
}

}  // namespace dtensor::nn
