#include "nn/parallel/fully_shard.h"

#include "dtensor/redistribute.h"

namespace dtensor::nn {
namespace {

std::vector<uint32_t> versions_of(const ParameterGroup& group) {
  std::vector<uint32_t> versions;
  for (const Parameter* p : group.parameters) versions.push_back(p->value().version());
  return versions;
}

// Starts to bring a group together, in one launch.
void begin_unshard(ParameterGroup& group) {
  std::vector<DistributedTensor> stored;
  std::vector<Layout> used;
  std::vector<std::string> reasons;
  for (const Parameter* p : group.parameters) {
    stored.push_back(p->value());
    used.push_back(p->used_layout());
    reasons.push_back("unshard " + p->path());
  }
  Rank& rank = group.module->mesh().rank_state();
  LabelScope module(rank, Label::Kind::module, group.module->path()), line(rank, Label::Kind::plan_line, "fully_shard");
  group.versions = versions_of(group);
  group.unsharding = Redistribution::begin(stored, used, {.remake = group.reshard_after_forward, .reasons = reasons});
}

// Before the group's module computes. What was begun for values that have changed since is for nothing: its module was
// not called.
void unshard(ParameterGroup& group) {
  if (group.unsharding.defined() && group.versions != versions_of(group)) {
    NoGrad scope(group.module->mesh().rank_state());
    group.unsharding.finish();
  }
  if (!group.unsharding.defined()) begin_unshard(group);
  std::vector<DistributedTensor> whole = group.unsharding.finish();
  for (size_t i = 0; i < whole.size(); ++i) group.parameters[i]->set_unsharded(whole[i]);
  if (auto next = group.next.lock(); next && !next->unsharding.defined()) begin_unshard(*next);
}

}  // namespace

void fully_shard(Module& module, const FullyShardOptions& options) {
  auto group = std::make_shared<ParameterGroup>();
  group->module = &module;
  group->reshard_after_forward = options.reshard_after_forward;
  for (Parameter* p : module.parameters())
    if (!p->group()) group->parameters.push_back(p);
  if (group->parameters.empty()) return;
  for (Parameter* p : group->parameters)
    for (int axis : options.axes) p->shard_storage(axis, group);
  module.add_before_hook([group](Module&, std::vector<DistributedTensor*>&) { unshard(*group); });
  module.add_after_hook([group](Module&, std::vector<DistributedTensor*>&) {
    for (Parameter* p : group->parameters) p->set_unsharded({});
  });
}

void prefetch(Module& model) {
  std::shared_ptr<ParameterGroup> last;
  for (Module* m : model.modules())
    for (Parameter* p : model.parameters()) {
      if (!p->group() || p->group()->module != m) continue;
      if (last) last->next = p->group();
      last = p->group();
      break;
    }
}

}  // namespace dtensor::nn
