// Optimizers on CUDA: a step, and a norm, of many tensors in one launch each. Numbers that change from step to step are
// read from device memory, so that a graph can be launched again; nothing is read by the host.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// One parameter: all of n elements, 16-byte aligned. `copy`, in bf16, gets the new value too where it is not null.
struct AdamWTensor {
  float* value;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  void* copy;
  int64_t n;
};

struct AdamWConstants {
  float beta1, beta2, eps;
};

// Of one step, on the device: lr / correction1, 1 - lr * weight_decay, sqrt(correction2), with correction = 1 -
// beta^step.
struct AdamWNumbers {
  float step_size, keep, root;
};

// The formulas of ops/cpu/fused.h, on gradients times min(1, clip / (*norm + 1e-6)), or as they are where clip is 0.
// Nothing is changed where *norm, on the device, is not finite.
void adamw(StreamHandle stream, const AdamWTensor* tensors, int count, const AdamWConstants& constants,
           const AdamWNumbers* numbers, const double* norm, float clip);

// n elements, 16-byte aligned.
struct ConstTensor {
  const void* data;
  int64_t n;
};
// The number of doubles that sum_squares() needs as scratch memory.
int64_t sum_squares_scratch(const ConstTensor* tensors, int count);
// *out = the sum of the squares of all elements, in a fixed order; a floating type.
void sum_squares(StreamHandle stream, DType type, const ConstTensor* tensors, int count, double* scratch, double* out);

}  // namespace dtensor::cuda
