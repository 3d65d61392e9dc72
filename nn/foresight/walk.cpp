#include "nn/foresight/walk.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "dtensor/comm/recorded.h"
#include "dtensor/table.h"
#include "nn/parallel/json_place.h"
#include "nn/parallel/module_paths.h"
#include "ops/explain.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

bool below(const std::string& path, const std::string& module) {
  return module.empty() || path == module || path.starts_with(module + ".");
}

// "...k,nk->...n, n over tp": the rule, and the axes that split its factors.
std::string rule_text(const CallEvent& e) {
  const MeshShape& mesh = e.outputs[0].mesh().shape();
  std::vector<const Shape*> shapes;
  std::vector<const TensorSpec*> specs;
  DType dtype = e.outputs[0].dtype();
  for (size_t i = e.used.size(); i-- > 0;)
    if (e.used[i]) dtype = e.used[i]->dtype();
  for (const DistributedTensor* x : e.used) {
    shapes.push_back(x ? &x->shape() : nullptr);
    specs.push_back(x ? &x->spec() : nullptr);
  }
  BoundRule rule = bind_rule(e.op, shapes, e.attributes, dtype);
  std::string text = rule.rule().text, split;
  for (const Ways::Way& w : ways(e.op, mesh, specs, e.attributes, e.outputs[0].mesh().rank_state().reduce_dtype).list) {
    bool ran = true;
    for (size_t i = 0; i < e.used.size(); ++i) ran &= !e.used[i] || e.used[i]->layout() == w.choice.inputs[i];
    for (size_t o = 0; o < e.outputs.size(); ++o) ran &= e.outputs[o].layout() == w.choice.outputs[o];
    if (!ran) continue;
    for (size_t f = 0; f < w.choice.factors.size(); ++f)
      if (AxisSet axes = w.choice.factors[f].set())
        split += fmt::format(", {} over {}", rule.factors()[f].name, mesh.names(axes));
    break;
  }
  return fmt::format("rule {}{}", text, split.empty() ? ", nothing sharded" : split);
}

bool places_parameters(Style::Kind kind) {
  using Kind = Style::Kind;
  return kind == Kind::colwise || kind == Kind::rowwise || kind == Kind::local_colwise || kind == Kind::local_rowwise ||
         kind == Kind::prepare_weight;
}

// Which lines of the plan say where the parameters of `owner` are.
std::string lines_of(Module& model, const ParallelPlan& plan, Module* owner) {
  std::vector<std::string> lines;
  auto matches_owner = [&](const std::string& pattern) { return matches(pattern, owner->path()); };
  for (const TensorParallelPlan& t : plan.tensor_parallel)
    for (const auto& [pattern, style] : t.lines)
      if (places_parameters(style.kind) && matches_owner(pattern))
        lines.push_back(fmt::format("{}: {} over {}", quoted(pattern), name(style.kind), t.axis));
  if (plan.fully_shard && !owner->own_parameters().empty() && owner->own_parameters()[0]->group()) {
    // The innermost module named is the group's: the longest pattern that matches the owner or what it is in.
    std::string best;
    bool found = false;
    for (const std::string& pattern : plan.fully_shard->modules)
      for (Module* m : find_modules(model, pattern, "fully_shard.modules"))
        if (below(owner->path(), m->path()) && (!found || m->path().size() >= best.size()))
          best = m->path(), found = true;
    lines.push_back(fmt::format("fully_shard of {}, stored in shards over {}", best.empty() ? "the root" : best,
                                fmt::join(plan.fully_shard->axes, ", ")));
  }
  return lines.empty() ? "no line: alike on all ranks" : fmt::format("{}", fmt::join(lines, "; "));
}

class Walk : public Observer {
 public:
  Walk(Rank& rank, Module& model, const ParallelPlan& plan, const std::string& module)
      : rank_(rank), model_(model), plan_(plan), module_(module) {
    for (Module* m : model.modules())
      for (Parameter* p : m->own_parameters())
        for (const DistributedTensor& x : p->tensors()) parameters_[x.id()] = {m, p};
    rank_.add(*this);
  }
  ~Walk() override { rank_.remove(*this); }
  Walk(const Walk&) = delete;

  std::vector<WalkStep> steps;

  void on_collective(const CollectiveEvent& e) override {  // comes before on_redistribute of the same tensor
    reason_ = !e.reason.empty() ? e.reason : rank_.label(Label::Kind::reason);
  }

  void on_redistribute(const RedistributeEvent& e) override {
    std::string reason = std::exchange(reason_, "");
    if (!is_seen()) return;
    std::string from = name_of(e.from), line(rank_.label(Label::Kind::plan_line)), op(rank_.label(Label::Kind::op));
    std::string because = !line.empty()                       ? "plan line " + line
                          : !op.empty()                       ? op + " needs it so"
                          : parameters_.contains(e.from.id()) ? "stored in shards, used whole"
                          : !reason.empty()                   ? reason
                                                              : "the module asks for it";
    add(e.to, "redistribute", {from}, because);
  }

  void on_call(const CallEvent& e) override {
    if (e.op.composite || !is_seen()) return;
    std::vector<std::string> from;
    for (const DistributedTensor* x : e.used)
      if (x) from.push_back(name_of(*x));
    std::string because = rule_text(e);
    for (const DistributedTensor& y : e.outputs) add(y, std::string(e.op.name), from, because);
  }

 private:
  struct Owned {
    Module* owner;
    Parameter* parameter;
  };

  std::string module_now() const { return std::string(rank_.label(Label::Kind::module)); }
  bool is_seen() const { return rank_.phase == Phase::forward && below(module_now(), module_); }

  void add(const DistributedTensor& x, std::string by, std::vector<std::string> from, std::string because) {
    std::string& name = names_[x.id()];
    if (name.empty()) name = fmt::format("t{}", ++last_);
    steps.push_back({module_now(), name, to_string(x), std::move(by), std::move(from), std::move(because)});
  }

  // What was not seen before is a parameter or comes from outside.
  std::string name_of(const DistributedTensor& x) {
    if (auto it = names_.find(x.id()); it != names_.end()) return it->second;
    if (auto it = parameters_.find(x.id()); it != parameters_.end()) {
      const auto& [owner, parameter] = it->second;
      steps.push_back({module_now(), parameter->path(), to_string(x), "parameter", {}, lines_of(model_, plan_, owner)});
      return names_[x.id()] = parameter->path();
    }
    add(x, "input", {}, module_.empty() ? "the batch, whose rows and sequence the mesh divides" : "from outside");
    return names_[x.id()];
  }

  Rank& rank_;
  Module& model_;
  const ParallelPlan& plan_;
  std::string module_, reason_;
  std::unordered_map<uint64_t, Owned> parameters_;
  std::unordered_map<uint64_t, std::string> names_;
  int last_ = 0;
};

}  // namespace

std::vector<WalkStep> walk(const MeshShape& shape, const ModelConfig& config, const ParallelPlan& plan,
                           const ForecastOptions& options, const std::string& module) {
  auto rank = std::make_shared<Rank>(make_recorded_communicator(shape.world(), options.rank), Device::meta, 1);
  rank->strict = options.strict;
  DeviceMesh mesh(*rank, shape);
  LlamaTraining training(mesh, config, plan, options.train);
  std::vector<std::string> paths;
  for (Module* m : training.model.modules()) paths.push_back(m->path());
  check(std::ranges::find(paths, module) != paths.end(), "[walk] there is no module \"{}\"{}", module,
        nearest_hint(module, paths));
  Batch batch = meta_batch(mesh, batch_layout(shape, plan), options.batch_size, options.seq_len);
  Walk walk(*rank, training.model, plan, module);
  training.trainer.step(batch);
  return std::move(walk.steps);
}

nlohmann::ordered_json to_json(const std::vector<WalkStep>& steps) {
  auto list = nlohmann::ordered_json::array();
  for (const WalkStep& s : steps)
    list.push_back({{"module", s.module},
                    {"tensor", s.tensor},
                    {"layout", s.spec},
                    {"by", s.by},
                    {"from", s.from},
                    {"because", s.because}});
  return list;
}

std::string to_string(const std::vector<WalkStep>& steps) {
  std::string text, module;
  for (size_t i = 0; i < steps.size();) {
    module = steps[i].module;
    std::vector<std::vector<std::string>> lines;
    for (; i < steps.size() && steps[i].module == module; ++i) {
      const WalkStep& s = steps[i];
      bool own = s.by == "parameter" || s.by == "input";
      lines.push_back(
          {"  " + s.tensor, s.spec, own ? s.by : fmt::format("{}({})", s.by, fmt::join(s.from, ", ")), s.because});
    }
    text += (module.empty() ? "the model" : module) + "\n" + table("<<<<", lines);
  }
  return text;
}

}  // namespace dtensor::nn
