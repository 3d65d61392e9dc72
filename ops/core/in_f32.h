// Kernels that compute bfloat16 in float32: operands are widened before, results are rounded once after.
#pragma once

#include "ops/core/op.h"

namespace dtensor {

// Runs a kernel that sees float32 in place of all that is bf16. `reads_outputs`: it adds to what they have, or writes
// some of it.
void run_in_f32(Kernel kernel, const Context& context, std::span<Tensor> inputs, std::span<Tensor> outputs,
                bool reads_outputs);

}  // namespace dtensor
