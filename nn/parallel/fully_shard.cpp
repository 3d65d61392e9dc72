#include "nn/parallel/fully_shard.h"

#include <unordered_map>

#include "dtensor/redistribute.h"

namespace dtensor::nn {
namespace {

// Parameters that are stored in shards: gathered in one launch before their module computes, and let go after it.
class ShardedGroup : public ParameterGroup {
 public:
  ShardedGroup(Module& module, std::vector<Parameter*> parameters, bool reshard_after_forward)
      : module_(module), parameters_(std::move(parameters)), reshard_after_forward_(reshard_after_forward) {}

  const std::vector<Parameter*>& parameters() const override { return parameters_; }
  DistributedTensor tensor(const Parameter& p, size_t index) const override {
    auto it = whole_.find(&p);
    return it == whole_.end() ? DistributedTensor() : it->second[index];
  }

  Module& module() const { return module_; }
  // The group that is used next comes together while this one's module computes.
  void set_next(const std::shared_ptr<ShardedGroup>& next) { next_ = next; }
  void unshard();
  void reshard() { whole_.clear(); }

 private:
  void begin();
  std::vector<uint32_t> versions() const;

  Module& module_;
  std::vector<Parameter*> parameters_;
  bool reshard_after_forward_;
  std::weak_ptr<ShardedGroup> next_;
  Redistribution unsharding_;
  std::vector<uint32_t> versions_;                                              // of the values that are on their way
  std::unordered_map<const Parameter*, std::vector<DistributedTensor>> whole_;  // the tensors of its form
};

std::vector<uint32_t> ShardedGroup::versions() const {
  std::vector<uint32_t> versions;
  for (const Parameter* p : parameters_)
    for (const DistributedTensor& x : p->tensors()) versions.push_back(x.version());
  return versions;
}

// Starts to bring the group together, in one launch.
void ShardedGroup::begin() {
  std::vector<DistributedTensor> stored;
  std::vector<Layout> used;
  std::vector<std::string> reasons;
  for (const Parameter* p : parameters_)
    for (size_t i = 0; i < p->tensors().size(); ++i) {
      stored.push_back(p->tensors()[i]);
      used.push_back(p->used_layout(i));
      reasons.push_back("unshard " + p->path());
    }
  Rank& rank = module_.mesh().rank_state();
  LabelScope module(rank, Label::Kind::module, module_.path()), line(rank, Label::Kind::plan_line, "fully_shard");
  versions_ = versions();
  unsharding_ = Redistribution::begin(stored, used, {.remake = reshard_after_forward_, .reasons = reasons});
}

// Before the module computes. What was begun for values that have changed since is for nothing: the module was not
// called.
void ShardedGroup::unshard() {
  if (unsharding_.defined() && versions_ != versions()) {
    NoGrad scope(module_.mesh().rank_state());
    unsharding_.finish();
  }
  if (!unsharding_.defined()) begin();
  std::vector<DistributedTensor> whole = unsharding_.finish();
  size_t at = 0;
  for (const Parameter* p : parameters_) {
    auto from = whole.begin() + int64_t(at);
    at += p->tensors().size();
    whole_[p].assign(from, whole.begin() + int64_t(at));
  }
  if (auto next = next_.lock(); next && !next->unsharding_.defined()) next->begin();
}

}  // namespace

void fully_shard(Module& module, const FullyShardOptions& options) {
  std::vector<Parameter*> parameters = module.parameters();
  std::erase_if(parameters, [](const Parameter* p) { return p->group() != nullptr; });
  if (parameters.empty()) return;
  auto group = std::make_shared<ShardedGroup>(module, parameters, options.reshard_after_forward);
  for (Parameter* p : parameters) {
    for (int axis : options.axes) p->shard_storage(axis);
    p->join(group);
  }
  module.add_before_hook([group](Module&, std::vector<DistributedTensor*>&) { group->unshard(); });
  module.add_after_hook([group](Module&, std::vector<DistributedTensor*>&) { group->reshard(); });
}

void prefetch(Module& model) {
  std::unordered_map<const Module*, std::shared_ptr<ShardedGroup>> groups;
  for (const Parameter* p : model.parameters())
    if (auto group = std::dynamic_pointer_cast<ShardedGroup>(p->group())) groups[&group->module()] = group;
  std::shared_ptr<ShardedGroup> last;
  for (const Module* m : model.modules()) {
    auto it = groups.find(m);
    if (it == groups.end()) continue;
    if (last) last->set_next(it->second);
    last = it->second;
  }
}

}  // namespace dtensor::nn
