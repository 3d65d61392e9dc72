// Checking that copies are equal.
#pragma once

#include <span>

#include "dtensor/distributed_tensor.h"

namespace dtensor {

// Checks bit for bit (equal NaNs are equal, 0 and -0 are not) that ranks which differ on Replicate axes only hold the
// same part. All ranks of the mesh call it. It gathers one 64-bit hash of each tensor, all in one collective; only
// after a difference more are needed, 64 bits each, to find where. Of meta tensors the collective is recorded. Errors,
// the same on every rank: the tensor, the first two ranks that differ, the first global index and both values:
//     [verify_replicas] lm_head.weight, f32[4,2] tp=Replicate: ranks 0 and 1 differ first at [2,1]: 1.5 (0x3fc00000)
//     and -0 (0x80000000)
// Also: tensors on two meshes.
void verify_replicas(const DistributedTensor& x, std::string_view name = "the tensor");
// `names`: of each tensor.
void verify_replicas(std::span<const DistributedTensor> list, std::span<const std::string> names);

}  // namespace dtensor
