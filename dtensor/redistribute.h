// Running redistribution plans.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "dtensor/distributed_tensor.h"

namespace dtensor {

struct RedistributeOptions {
  bool asked_for = true;         // false: found by the dispatcher; an error in strict mode if bytes move (law 7)
  bool remake = false;           // a record may drop the result and make it again when a gradient asks
  std::string_view reason = {};  // for logs; none: the innermost reason label
  std::span<const std::string> reasons = {};  // per tensor; one that is missing is `reason`
  // Per tensor, in which its contributions travel to a reduction; none: as Rank::reduce_dtype says.
  std::span<const std::optional<DType>> reduce_dtypes = {};
};

// Several tensors of one mesh at once: steps of one kind over the same axes are one launch. Law 1: each result is the
// same logical value in the layout asked for, on the rank's device: what is in host memory is copied there first,
// beside the kernels.
std::vector<DistributedTensor> redistribute(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                            const RedistributeOptions& options = {});

// The same in two parts, so that communication and computing overlap: begin() starts the first collective, and finish()
// waits for it and takes the other steps. All ranks begin and finish in the same order. The tensors must not be written
// in place in between. Copies of a handle are the same redistribution: it runs once, and each of them is finished once,
// with the same tensors or the same error. What is begun and dropped on all ranks ends with its first collective.
class Redistribution {
 public:
  Redistribution() = default;  // none
  static Redistribution begin(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                              const RedistributeOptions& options = {});
  // The tensors in their new layouts; those that were in them already, on the device, are themselves. Lets go of this
  // handle. Errors: a handle of nothing, or one that was finished.
  std::vector<DistributedTensor> finish();
  bool defined() const { return state_ != nullptr; }

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Law 1: of ranks that differ on `axes` the first keeps a value that becomes Partial there and the others hold the
// identity of the reduction; of min, max and avg all keep it. Whether `rank` keeps it.
bool keeps_value(const MeshShape& mesh, int rank, AxisSet axes, Reduce reduce);

// The plan for one tensor, as redistribute() would run it.
Plan plan_of(const DistributedTensor& x, const Layout& to);

}  // namespace dtensor
