// Dropout, by global index: the same elements are dropped on every mesh, and again in a recomputation (law 5).
#pragma once

#include "dtensor/random.h"
#include "ops/call.h"

namespace dtensor::ops {

extern const Op dropout_op;

// Each element is 0 with probability p, else x / (1 - p), as torch.nn.functional.dropout. Element i, counted in global
// row-major order, is kept where the number that fill_uniform(stream) gives element i of this shape is at least p. x
// itself where training is false or p is 0; zeros for p = 1. Floating types. Errors: p outside [0,1].
DistributedTensor dropout(const DistributedTensor& x, double p, const RandomStream& stream, bool training = true);

// An error for a probability outside [0,1]. `who`: the public function.
void check_probability(std::string_view who, double p);
// A stream's key as an operand, i64 of no dimension: as an attribute it would make each step's call a new decision.
DistributedTensor stream_key(const DeviceMesh& mesh, const RandomStream& stream);

}  // namespace dtensor::ops
