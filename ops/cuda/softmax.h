// Softmax of rows: [rows, n], contiguous, of a floating type. Inputs and outputs begin at the same place of 16 bytes.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// exp(x - m) / sum, or (x - m) - log(sum).
void softmax(StreamHandle stream, DType type, bool log, int64_t rows, int64_t n, const void* x, void* y);
// Where m [rows] and sum [rows] are known; without `log`, y = exp(x - m) and its sum is written.
void softmax_shifted(StreamHandle stream, DType type, bool log, int64_t rows, int64_t n, const void* x, const void* m,
                     void* sum, void* y);
// dx = y * (dy - sum of dy*y), or with `log` dy - exp(y) * sum of dy. `sum`: null, or those sums, of the type of
// statistics.
void softmax_backward(StreamHandle stream, DType type, bool log, int64_t rows, int64_t n, const void* dy, const void* y,
                      const void* sum, void* dx);

}  // namespace dtensor::cuda
