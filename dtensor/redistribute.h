// Running redistribution plans.
#pragma once

#include <span>
#include <vector>

#include "dtensor/distributed_tensor.h"

namespace dtensor {

struct RedistributeOptions {
  bool asked_for = true;  // false: found by the dispatcher; an error in strict mode if bytes move (law 7)
  bool remake = false;    // the tape may drop the result and remake it from its source when a gradient needs it
  std::span<const std::string> reasons = {};  // per tensor, for logs; none: the innermost reason label
};

// Several tensors of one mesh at once: steps of one kind over the same axes are one launch. Law 1: each result is the
// same logical value in the layout asked for.
std::vector<DistributedTensor> redistribute(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                            const RedistributeOptions& options = {});

// The plan for one tensor, as redistribute() would run it.
Plan plan_of(const DistributedTensor& x, const Layout& to);

}  // namespace dtensor
