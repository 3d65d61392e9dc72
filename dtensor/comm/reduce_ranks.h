// What a reduction over the ranks of one process computes.
#pragma once

#include <span>

#include "dtensor/local/tensor.h"

namespace dtensor {

// Elements [out_at, out_at + n) of `out` become the reduction of elements [at, at + n) of each rank's tensor, in a
// balanced binary tree over rank order (see Communicator), on the host or the device, wherever they are. All are
// contiguous and of one element type; bf16 is added in float32 and rounded once.
void reduce_ranks(std::span<const Tensor* const> ranks, int64_t at, int64_t n, Reduce reduce, const Tensor& out,
                  int64_t out_at);

}  // namespace dtensor
