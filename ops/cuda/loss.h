// Cross entropy. x: [rows, v], contiguous, of a floating type; targets i64 [rows]; all else are statistics [rows], f32
// for bf16 and else of x's type. A target outside [0, classes) that is not ignored makes its row NaN.
#pragma once

#include "ops/cuda/reduce.h"

namespace dtensor::cuda {

struct Targets {
  const void* target;
  int64_t ignore, classes;     // on all ranks
  int64_t begin = 0, end = 0;  // here
};

// Where all classes are here.
struct CrossEntropy {
  int64_t rows, v;
  const void* x;
  Targets targets;
  double smoothing;
  void *loss, *m, *log_sum, *counts;
};
void cross_entropy_forward(StreamHandle stream, DType type, const CrossEntropy& e);

// The sum of exp(x - m), and that of m - x; t is [rows, v, 1].
void sum_exp(StreamHandle stream, DType type, const Terms& t, const void* m, void* out);
void sum_below(StreamHandle stream, DType type, const Terms& t, const void* m, void* out);
// x[target], 0 where it is ignored or not here.
void pick(StreamHandle stream, DType type, int64_t rows, int64_t v, const void* x, const Targets& t, void* out);
// Statistics of all ranks (below: null without smoothing) -> loss, counts; `type` is theirs.
void cross_entropy_rows(StreamHandle stream, DType type, int64_t rows, const Targets& t, double smoothing,
                        const void* m, const void* log_sum, const void* picked, const void* below, void* loss,
                        void* counts);
// dx = (exp(x - m - log_sum) - [target]) * scale, 0 where ignored; scale: [rows], or of `scale_stride` 0 one for all.
struct CrossEntropyBackward {
  int64_t rows, v;
  const void *x, *m, *log_sum, *scale;
  int64_t scale_stride;
  Targets targets;
  double smoothing;
  void* dx;
};
void cross_entropy_backward(StreamHandle stream, DType type, const CrossEntropyBackward& e);

// n elements x times a number of their type of statistics, as a type that has the same one.
void scaled(StreamHandle stream, DType from, DType to, int64_t n, const void* x, const void* factor, void* y);

}  // namespace dtensor::cuda
