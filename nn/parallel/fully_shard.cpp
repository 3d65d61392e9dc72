#include "nn/parallel/fully_shard.h"

#include "dtensor/redistribute.h"

namespace dtensor::nn {
namespace {

// Brings a group together in one launch.
void unshard(const ParameterGroup& group, Rank& rank) {
  std::vector<DistributedTensor> stored;
  std::vector<Layout> used;
  std::vector<std::string> reasons;
  for (const Parameter* p : group.parameters) {
    stored.push_back(p->value());
    used.push_back(p->used_layout());
    reasons.push_back("unshard " + p->path());
  }
  LabelScope line(rank, Label::Kind::plan_line, "fully_shard");
  std::vector<DistributedTensor> whole =
      redistribute(stored, used, {.remake = group.reshard_after_forward, .reasons = reasons});
  for (size_t i = 0; i < whole.size(); ++i) group.parameters[i]->set_unsharded(whole[i]);
}

}  // namespace

void fully_shard(Module& module, const FullyShardOptions& options) {
  auto group = std::make_shared<ParameterGroup>();
  group->reshard_after_forward = options.reshard_after_forward;
  for (Parameter* p : module.parameters())
    if (!p->group()) group->parameters.push_back(p);
  if (group->parameters.empty()) return;
  for (Parameter* p : group->parameters)
    for (int axis : options.axes) p->shard_storage(axis, group);
  module.add_before_hook(
      [group](Module& m, std::vector<DistributedTensor*>&) { unshard(*group, m.mesh().rank_state()); });
  module.add_after_hook([group](Module&, std::vector<DistributedTensor*>&) {
    for (Parameter* p : group->parameters) p->set_unsharded({});
  });
}

}  // namespace dtensor::nn
