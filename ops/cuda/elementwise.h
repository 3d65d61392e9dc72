// What element-wise kernels are given, and the functions that launch them: out = f(in...) by element, operands of any
// broadcasting strides. Arithmetic is in float for bf16 and in double for f64.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

struct Elementwise {
  static constexpr int max_dims = 8;
  struct Input {
    const void* at = nullptr;  // where null, each element is `value`
    double value = 0;
    int64_t stride[max_dims] = {};  // in elements; 0 where the input is broadcast
  };

  StreamHandle stream = nullptr;
  DType type = DType::f32;      // of the inputs, but not of a condition
  DType to = DType::f32;        // of the outputs
  int64_t n = 0;                // elements of an output, which is contiguous
  int dims = 1;                 // at least 1
  int64_t size[max_dims] = {};  // the innermost first
  Input in[3];
  void* out[2] = {};
  double parameter[4] = {};
};

// False where there is no kernel for the element type.
using ElementwiseFunction = bool(const Elementwise&);

// (a, b)
ElementwiseFunction add, subtract, multiply, divide, maximum, minimum, power, remainder, fmod;
ElementwiseFunction maximum_backward;  // (dy, a, b)
ElementwiseFunction lerp;              // (a, b, weight)
ElementwiseFunction add_multiple;      // (x, a, b), factor: x + factor * a * b
ElementwiseFunction power_of;          // (x), exponent
// (x), and (dy, x)
#define DTENSOR_UNARY(name, ...) ElementwiseFunction name;
#define DTENSOR_BACKWARD(name, ...) ElementwiseFunction name;
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef DTENSOR_BACKWARD
#undef DTENSOR_UNARY
ElementwiseFunction clamp;           // (x), low, high: infinite where there is no bound
ElementwiseFunction clamp_backward;  // (dy, x), low, high, whether there are a low and a high
// (x), and (dy, x)
ElementwiseFunction gelu, gelu_tanh, gelu_backward, gelu_tanh_backward;
ElementwiseFunction softplus, softplus_backward;  // beta, threshold
ElementwiseFunction swiglu;                       // (gate, up)
ElementwiseFunction swiglu_backward;              // (dy, gate, up) -> dgate, dup
// -> bool
ElementwiseFunction equal, not_equal, less, less_equal, greater, greater_equal;
ElementwiseFunction logical_and, logical_or;
ElementwiseFunction where;  // (condition, a, b)
ElementwiseFunction cast;   // (x) of `type` -> `to`

}  // namespace dtensor::cuda
