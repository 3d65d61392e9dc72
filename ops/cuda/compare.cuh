// Element-wise kernels that give bools.
#pragma once

#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {

// Of any type.
template <int inputs, class F>
bool tests(const Elementwise& e, F f) {
  return for_all_types(e.type, [&](auto t) {
    using T = decltype(t);
    if constexpr (inputs == 1)
      launch_elementwise<1, bool, T>(e, f);
    else
      launch_elementwise<1, bool, T, T>(e, f);
  });
}
// Of bools.
template <int inputs, class F>
bool logic(const Elementwise& e, F f) {
  if (e.type != DType::boolean) return false;
  launch_same<inputs, 1, bool>(e, f);
  return true;
}

}  // namespace dtensor::cuda
