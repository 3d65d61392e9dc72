// Normalization of rows, and its gradient. Rows are contiguous, d elements each, of a floating type; statistics are f32
// for bf16 and else of the rows' type. Where a pointer may be null is said.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

struct Norm {
  int64_t rows, d;
  double eps = 0;
  bool centre = false;  // subtract the mean
  bool given = false;   // mean (or null: zeros) and rstd are read, not written
  const void *x, *residual = nullptr, *w = nullptr, *b = nullptr;  // null: nothing added, ones, zeros
  void *y, *h = nullptr;                                           // h = x + residual, which is normalized
  void *mean = nullptr, *rstd;                                     // [rows]
};
// y = (x - mean) * rstd * w + b, rstd = 1 / sqrt(var + eps).
void norm(StreamHandle stream, DType type, const Norm& n);
// sum (or null: zeros), squares: [rows] -> mean = sum / n, rstd = 1 / sqrt(squares / n + eps), of a type of statistics.
void norm_statistics(StreamHandle stream, DType type, int64_t rows, double n, double eps, const void* sum,
                     const void* squares, void* mean, void* rstd);

struct NormBackward {
  int64_t rows, d, whole;  // of d elements here, `whole` on all ranks
  const void *dy, *x, *w = nullptr, *mean = nullptr, *rstd;
  const void *sums = nullptr, *alongs = nullptr;  // of whole rows, where others have parts of them; null: taken here
  const void* more = nullptr;                     // added to dx
  void* dx = nullptr;                             // null: only the sums of the parts here are wanted,
  void *sum = nullptr, *along = nullptr;          // of dy*w, and of that times the normalized x
  void *dw = nullptr, *db = nullptr;              // [d], or null
  void* partial = nullptr;                        // room for norm_partials() statistics
};
// How many numbers the gradients of w and b need for sums over parts of the rows.
int64_t norm_partials(int64_t rows, int64_t d);
void norm_backward(StreamHandle stream, DType type, const NormBackward& n);

}  // namespace dtensor::cuda
