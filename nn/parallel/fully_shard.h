// Fully sharded parameters: stored in shards over the data ranks, brought together for use, group by group.
#pragma once

#include <string>
#include <vector>

#include "nn/module.h"

namespace dtensor::nn {

struct FullyShardOptions {
  std::vector<int> axes;              // mesh axes to shard over
  bool reshard_after_forward = true;  // drop the whole copies after forward and remake them in the backward pass
};

// The parameters of `module` and below that are in no group yet become one: stored as Shard(0) on the axes, innermost
// (tensor parallelism goes first: the order is tp, dp), gathered in one launch before the module's forward, their
// gradients reduced in one launch when the backward pass has passed the module. Call it for inner modules first.
// Source: Zhao et al., "PyTorch FSDP" (2023); Rajbhandari et al., "ZeRO" (2020).
void fully_shard(Module& module, const FullyShardOptions& options);

// Groups are used in the order of their modules, so each starts to come together while the module of the one before
// computes: at most one group more is whole at a time. Call it when all groups are made.
void prefetch(Module& model);

}  // namespace dtensor::nn
