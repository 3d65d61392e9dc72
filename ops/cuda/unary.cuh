// What the lists of element-wise functions of one operand (ops/pointwise/unary.inc) are to a .cu file: kernels.
#pragma once

#include "ops/cuda/compare.cuh"

// `types`(e, f) launches f for the element types.
#define DTENSOR_UNARY(name, types, value, ...) \
  namespace {                                  \
  struct value_of_##name {                     \
    template <class T>                         \
    __device__ auto operator()(T x) const {    \
      return value;                            \
    }                                          \
  };                                           \
  }                                            \
  bool name(const Elementwise& e) { return types<1>(e, value_of_##name{}); }
#define DTENSOR_BACKWARD(name, value, ...)     \
  namespace {                                  \
  struct value_of_##name {                     \
    template <class T>                         \
    __device__ T operator()(T dy, T x) const { \
      return value;                            \
    }                                          \
  };                                           \
  }                                            \
  bool name(const Elementwise& e) { return floating<2>(e, value_of_##name{}); }
