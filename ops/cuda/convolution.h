// The causal convolution of each channel by itself, by the formula of ops/cpu/convolution.h.
#pragma once

#include <cstdint>

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// x and y [batch, rows, channels], before [batch, tail, channels], weight [channels, width]: all contiguous, of one
// floating type and any sizes, 0 too. Sums are f32 where elements are bf16.
struct Convolution {
  DType dtype;
  int64_t batch, rows, channels, width, tail;
};
void convolution(const Convolution&, const void* x, const void* before, const void* weight, void* y, StreamHandle);

struct ConvolutionBackward {
  const void *dy, *x, *before, *weight;
  void *dx, *dbefore, *dweight;  // rows of dbefore that no output reads are 0
  void* partial;                 // room for convolution_partials() sums
};
// How many sums (f32 for bf16, else of the elements' type) the gradient of weights needs for parts of the rows. They
// are added in a fixed order.
int64_t convolution_partials(const Convolution&);
void convolution_backward(const Convolution&, const ConvolutionBackward&, StreamHandle);

}  // namespace dtensor::cuda
