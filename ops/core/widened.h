// bfloat16 for CPU kernels, which compute in float32: operands are widened before, results are rounded once after.
#pragma once

#include "ops/core/op.h"

namespace dtensor {

// Runs a CPU kernel. Where tensors are bf16, it sees float32 in their place. `reads_outputs`: it adds to what they
// have, or writes some of it.
void run_widened(Kernel kernel, const Context& context, std::span<Tensor> inputs, std::span<Tensor> outputs,
                 bool reads_outputs);

}  // namespace dtensor
