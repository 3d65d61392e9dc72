// Dropout on CUDA.
#pragma once

#include "dtensor/cuda/random.h"

namespace dtensor::cuda {

// out = x * 0 or 1 / (1 - p), by the words of the stream whose key is in device memory. False where there is no kernel
// for the type.
bool dropout(StreamHandle stream, DType type, const Part& part, const int64_t* key, double p, const void* x, void* out);

}  // namespace dtensor::cuda
