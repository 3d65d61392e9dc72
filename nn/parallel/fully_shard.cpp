#include "nn/parallel/fully_shard.h"

#include <unordered_map>

#include "dtensor/redistribute.h"
#include "ops/pointwise/cast.h"

namespace dtensor::nn {
namespace {

// What is kept of parameters is the group's choice, whatever is kept of activations.
class NoKeepPolicy {
 public:
  explicit NoKeepPolicy(Rank& rank) : rank_(rank), policy_(std::exchange(rank.keep_policy, nullptr)) {}
  ~NoKeepPolicy() { rank_.keep_policy = policy_; }
  NoKeepPolicy(const NoKeepPolicy&) = delete;

 private:
  Rank& rank_;
  KeepPolicy* policy_;
};

// Parameters that are stored in shards: gathered in one launch before their module computes, and let go after it.
class ShardedGroup : public ParameterGroup {
 public:
  ShardedGroup(Module& module, std::vector<Parameter*> parameters, const FullyShardOptions& options)
      : module_(module), parameters_(std::move(parameters)), options_(options), stays_(options.stage < 3) {}

  const std::vector<Parameter*>& parameters() const override { return parameters_; }
  DistributedTensor tensor(const Parameter& p, size_t index) const override;
  GradientReduction reduction() const override {
    using When = GradientReduction::When;
    When with_passes = options_.sync_each_batch ? When::each_pass : When::last_pass;
    return {options_.stage == 1 ? When::after : with_passes, options_.reduce_dtype};
  }

  Module& module() const { return module_; }
  // The group that is used next comes together while this one's module computes.
  void set_next(const std::shared_ptr<ShardedGroup>& next) { next_ = next; }

  void before_forward();
  void after_forward() {
    if (!stays_) whole_.clear();
  }
  void unshard();
  void unshard_to_stay() { stays_ = true, unshard(); }
  void reshard() { whole_.clear(), stays_ = options_.stage < 3; }

 private:
  struct Copy {
    DistributedTensor whole;
    uint32_t version;  // of the stored value that it is of
  };
  void begin();
  bool is_whole() const;
  std::vector<uint32_t> versions() const;

  Module& module_;
  std::vector<Parameter*> parameters_;
  FullyShardOptions options_;
  bool stays_;  // whole after forward too, until the values are updated
  std::weak_ptr<ShardedGroup> next_;
  Redistribution coming_;
  std::vector<uint32_t> versions_;                                 // of the values that are on their way
  std::unordered_map<const Parameter*, std::vector<Copy>> whole_;  // the tensors of its form
};

// A copy that stayed is news to the record of this pass: it is the value that is stored.
DistributedTensor ShardedGroup::tensor(const Parameter& p, size_t index) const {
  auto it = whole_.find(&p);
  if (it == whole_.end() || it->second[index].version != p.tensors()[index].version()) return {};
  const DistributedTensor& whole = it->second[index].whole;
  Rank& rank = module_.mesh().rank_state();
  if (stays_ && rank.recorder) {
    static const Plan nothing_moves;
    NoKeepPolicy kept(rank);
    rank.recorder->on_redistribute({p.tensors()[index], whole, nothing_moves, false, rank.next_id()});
  }
  return whole;
}

std::vector<uint32_t> ShardedGroup::versions() const {
  std::vector<uint32_t> versions;
  for (const Parameter* p : parameters_)
    for (const DistributedTensor& x : p->tensors()) versions.push_back(x.version());
  return versions;
}

bool ShardedGroup::is_whole() const {
  if (whole_.empty()) return false;
  for (const auto& [p, copies] : whole_)
    for (size_t i = 0; i < copies.size(); ++i)
      if (copies[i].version != p->tensors()[i].version()) return false;
  return true;
}

// Starts to bring the group together, in one launch. What was whole until an update goes before.
void ShardedGroup::begin() {
  whole_.clear();
  std::vector<DistributedTensor> stored;
  std::vector<Layout> used;
  std::vector<std::string> reasons;
  for (const Parameter* p : parameters_)
    for (size_t i = 0; i < p->tensors().size(); ++i) {
      stored.push_back(p->tensors()[i]);
      used.push_back(p->used_layout(i));
      if (options_.kept_axes > 0) {
        used.back() = stored.back().layout();
        for (size_t a = size_t(options_.kept_axes); a < options_.axes.size(); ++a)
          used.back() = used.back().with(options_.axes[a], Replicate());
      }
      reasons.push_back("unshard " + p->path());
    }
  Rank& rank = module_.mesh().rank_state();
  LabelScope module(rank, Label::Kind::module, module_.path()), line(rank, Label::Kind::plan_line, "fully_shard");
  versions_ = versions();
  bool remake = options_.reshard_after_forward && options_.kept_axes == 0 && !stays_;
  coming_ = Redistribution::begin(stored, used, {.remake = remake, .reasons = reasons});
}

// What was begun for values that have changed since is for nothing: the module was not called.
void ShardedGroup::unshard() {
  if (is_whole()) return;
  Rank& rank = module_.mesh().rank_state();
  NoKeepPolicy kept(rank);
  if (coming_.defined() && versions_ != versions()) {
    NoGrad scope(rank);
    coming_.finish();
  }
  if (!coming_.defined()) begin();
  std::vector<DistributedTensor> whole = coming_.finish();
  if (options_.kept_axes > 0) {
    std::vector<Layout> used;
    std::vector<std::string> reasons;
    for (const Parameter* p : parameters_)
      for (size_t i = 0; i < p->tensors().size(); ++i)
        used.push_back(p->used_layout(i)), reasons.push_back("unshard " + p->path());
    LabelScope module(rank, Label::Kind::module, module_.path()), line(rank, Label::Kind::plan_line, "fully_shard");
    whole = redistribute(whole, used, {.remake = !stays_, .reasons = reasons});
  }
  size_t at = 0;
  for (const Parameter* p : parameters_)
    for (const DistributedTensor& stored : p->tensors()) whole_[p].push_back({whole[at++], stored.version()});
}

void ShardedGroup::before_forward() {
  unshard();
  if (auto next = next_.lock(); next && !next->coming_.defined() && !next->is_whole()) next->begin();
}

void check_options(const FullyShardOptions& o) {
  check(o.stage >= 1 && o.stage <= 3, "[fully_shard] stage {} is none: 1, 2 or 3", o.stage);
  check(o.kept_axes >= 0 && size_t(o.kept_axes) < std::max<size_t>(o.axes.size(), 1),
        "[fully_shard] kept_axes {} are not fewer than the {} axes: without reshard_after_forward all is kept",
        o.kept_axes, o.axes.size());
  check(o.stage == 3 || o.kept_axes == 0, "[fully_shard] stage {} keeps whole copies: leave kept_axes away", o.stage);
  check(o.stage > 1 || !o.sync_each_batch,
        "[fully_shard] stage 1 keeps whole gradients until the step ends: for sync_each_batch use stage 2");
}

// All groups of the module and below, in the order of their modules.
std::vector<std::shared_ptr<ShardedGroup>> groups_of(Module& model) {
  std::unordered_map<const Module*, std::shared_ptr<ShardedGroup>> groups;
  for (const Parameter* p : model.parameters())
    if (auto group = std::dynamic_pointer_cast<ShardedGroup>(p->group())) groups[&group->module()] = group;
  std::vector<std::shared_ptr<ShardedGroup>> list;
  for (const Module* m : model.modules())
    if (auto it = groups.find(m); it != groups.end()) list.push_back(it->second);
  return list;
}

}  // namespace

void fully_shard(Module& module, const FullyShardOptions& options) {
  check_options(options);
  std::vector<Parameter*> parameters = module.parameters();
  std::erase_if(parameters, [](const Parameter* p) { return p->group() != nullptr; });
  if (!parameters.empty()) {
    auto group = std::make_shared<ShardedGroup>(module, parameters, options);
    for (Parameter* p : parameters) {
      for (int axis : options.axes) p->shard_storage(axis);
      if (options.offload) p->offload();
      p->join(group);
    }
    module.add_before_hook([group](Module&, std::vector<DistributedTensor*>&) { group->before_forward(); });
    module.add_after_hook([group](Module&, std::vector<DistributedTensor*>&) { group->after_forward(); });
  }
  if (!options.output_dtype) return;
  module.add_after_hook([to = *options.output_dtype](Module&, std::vector<DistributedTensor*>& outputs) {
    for (DistributedTensor* x : outputs)
      if (x->defined() && is_floating(x->dtype())) *x = ops::cast(*x, to);
  });
}

void prefetch(Module& model) {
  std::shared_ptr<ShardedGroup> last;
  for (const auto& group : groups_of(model)) {
    if (last) last->set_next(group);
    last = group;
  }
}

void unshard(Module& module) {
  for (const auto& group : groups_of(module)) group->unshard_to_stay();
}

void reshard(Module& module) {
  for (const auto& group : groups_of(module)) group->reshard();
}

}  // namespace dtensor::nn
