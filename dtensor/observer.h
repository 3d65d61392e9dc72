// Observers: who sees what a rank does. Records (autograd), the communication log and profilers are observers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtensor/comm/collective.h"
#include "placement/notation.h"

namespace dtensor {

class DistributedTensor;
class DeviceMesh;
struct CallEvent;  // ops/core/call.h

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

// Communication of one tensor, at its start. Tensors of one launch share `group`.
struct CollectiveEvent {
  const DeviceMesh& mesh;
  CollectiveKind kind;
  AxisSet axes;        // among the ranks that differ on these only
  int64_t bytes;       // received by the busiest rank; of a send, given
  DType dtype;         // in which elements travel
  DType tensor_dtype;  // of the tensor: other than `dtype` for contributions of bf16 that are summed in f32
  Shape shape;         // of a redistribution, global; of point-to-point communication, of the tensor that moves
  const Step* step;    // null where there are no layouts: send, receive, shift
  uint64_t group;
  std::string_view reason;  // of this tensor; "": see the labels
  bool asked_for;           // law 7: by an explicit call, a plan line, a gradient, a loss or norm reduction
  int peer = -1;            // coordinate on the axis to which a rank sends or shifts, or from which it receives
};

// A redistribution as a whole: `to` has the same logical value as `from`.
struct RedistributeEvent {
  const DistributedTensor& from;
  const DistributedTensor& to;
  const Plan& plan;  // its steps; none where every rank holds its new part already
  bool remake;       // the result need not be kept for the gradient: it can be remade from `from`
  uint64_t batch;    // tensors redistributed by one call have one number
};

class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_call(const CallEvent&) {}
  virtual void on_collective(const CollectiveEvent&) {}
  virtual void on_redistribute(const RedistributeEvent&) {}
  // This rank's part of the value begins to be copied, from host memory to the device or, where it is on the device, to
  // the host (DistributedTensor::is_on_host).
  virtual void on_host_copy(const DistributedTensor&) {}
  // A record holds on to this value, whatever the policy says of the call that made it.
  virtual void on_keep(const DistributedTensor&) {}
  // Whether it must see every step. Else steps may be launched as one CUDA graph, whose ops it saw when they were
  // captured.
  virtual bool sees_every_step() const { return true; }
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
