// Observers: who sees what a rank does. Records (autograd), the communication log and profilers are observers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "placement/notation.h"
#include "placement/step.h"

namespace dtensor {

class DistributedTensor;
class DeviceMesh;
struct CallEvent;  // ops/call.h

// Where the program is: labels stack up from the outermost module in.
struct Label {
  enum class Kind : uint8_t { module, plan_line, op, reason };
  Kind kind;
  std::string text;
};

enum class Phase : uint8_t { none, forward, backward, optimizer };
constexpr std::string_view name(Phase p) {
  constexpr std::string_view names[] = {"", "forward", "backward", "optimizer"};
  return names[int(p)];
}

// One collective of one tensor, at its start. Tensors of one launch share `group`.
struct CollectiveEvent {
  const DeviceMesh& mesh;
  const Step& step;
  const TensorSpec& tensor;  // shape and type; its layout is what the redistribution started from
  uint64_t group;
  std::string_view reason;  // of this tensor; "": see the labels
  bool asked_for;           // law 7: by an explicit redistribute, a plan line, a gradient, a loss or norm reduction
};

// A redistribution as a whole: `to` has the same logical value as `from`.
struct RedistributeEvent {
  const DistributedTensor& from;
  const DistributedTensor& to;
  bool remake;     // the result need not be kept for the gradient: it can be remade from `from`
  uint64_t batch;  // tensors redistributed by one call have one number
};

class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_call(const CallEvent&) {}
  virtual void on_collective(const CollectiveEvent&) {}
  virtual void on_redistribute(const RedistributeEvent&) {}
  // A record holds on to this value, whatever the policy says of the call that made it.
  virtual void on_keep(const DistributedTensor&) {}
};

// What a record keeps for the gradients of what runs while the policy is set (Rank::keep_policy): results that are not
// kept are made again, by the same call or redistribution, when a gradient asks. Activation checkpointing is a policy:
// keep nothing inside a module, and its outputs by Observer::on_keep.
class KeepPolicy {
 public:
  virtual ~KeepPolicy() = default;
  virtual bool keep(const CallEvent&) = 0;
  virtual bool keep(const RedistributeEvent&) = 0;
};

}  // namespace dtensor
