// Fully sharded parameters: stored in shards over the data ranks, brought together for use, group by group.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "nn/module.h"

namespace dtensor::nn {

struct FullyShardOptions {
  std::vector<int> axes;  // mesh axes to shard over, the first one outermost
  // Drop the whole copies after forward and remake them in the backward pass.
  bool reshard_after_forward = true;
  // After forward the shards over the first of the axes are kept, so many, and the backward pass gathers over these
  // alone; 0: nothing is kept. Of two axes, one inside a machine and one between machines, 1 spares the slow one.
  int kept_axes = 0;
  // What is stored in shards between steps: 1, the optimizer's states and the values that it updates; 2, also
  // gradients, as soon as the backward pass has passed their group; 3, also parameters. Under 3 the whole copies are
  // made once after each update, and stay.
  int stage = 3;
  // Gradients are reduced with each micro-batch, which needs less memory and communicates more; else with the last.
  bool sync_each_batch = false;
  std::optional<DType> reduce_dtype;  // in which gradients travel and are added over ranks; none: their own
  // What is stored in shards is in host memory between uses, and an optimizer's step is taken there: a shard is copied
  // to the device before its group is gathered, and shards of gradients to the host once they are reduced. On the CPU
  // host memory is the device's own, and nothing changes.
  bool offload = false;
  std::optional<DType> output_dtype;  // of the module's floating outputs; none: as they come
};

// The parameters of `module` and below that are in no group yet become one: stored as Shard(0) on the axes, innermost
// (tensor parallelism goes first: the order is tp, dp), gathered in one launch before the module's forward, their
// gradients reduced in one launch when the backward pass has passed the module. Call it for inner modules first.
// Errors: a stage that is none; kept_axes that are not fewer than the axes, or of another stage than 3;
// sync_each_batch in stage 1. Source: Zhao et al., "PyTorch FSDP" (2023); Rajbhandari et al., "ZeRO" (2020).
void fully_shard(Module& module, const FullyShardOptions& options);

// Groups are used in the order of their modules, so each starts to come together while the module of the one before
// computes: at most one group more is whole at a time. Call it when all groups are made.
void prefetch(Module& model);

// The groups of `module` and below come together and stay so, until reshard() or, where a value has been updated, the
// next use: for what uses parameters outside of a forward pass, or calls a module many times. Collective.
void unshard(Module& module);
void reshard(Module& module);

}  // namespace dtensor::nn
