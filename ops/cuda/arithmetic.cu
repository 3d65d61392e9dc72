#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {

using namespace functors;

bool add(const Elementwise& e) { return numbers<2>(e, Add{}); }
bool subtract(const Elementwise& e) { return numbers<2>(e, Subtract{}); }
bool multiply(const Elementwise& e) { return numbers<2>(e, Multiply{}); }
bool divide(const Elementwise& e) { return floating<2>(e, Divide{}); }
bool maximum(const Elementwise& e) { return numbers<2>(e, Maximum{}); }
bool minimum(const Elementwise& e) { return numbers<2>(e, Minimum{}); }
bool maximum_backward(const Elementwise& e) { return floating<3>(e, MaximumBackward{}); }
bool lerp(const Elementwise& e) { return floating<3>(e, Lerp{}); }
bool add_multiple(const Elementwise& e) {
  return numbers_with<3>(e, [&](auto t) { return AddMultiple<decltype(t)>{decltype(t)(e.parameter[0])}; });
}

}  // namespace dtensor::cuda
