#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {

using namespace functors;

bool negative(const Elementwise& e) { return numbers<1>(e, Negative{}); }
bool absolute(const Elementwise& e) { return numbers<1>(e, Absolute{}); }
bool sign(const Elementwise& e) { return numbers<1>(e, Sign{}); }
bool square(const Elementwise& e) { return numbers<1>(e, Square{}); }
bool square_root(const Elementwise& e) { return floating<1>(e, SquareRoot{}); }
bool reciprocal_square_root(const Elementwise& e) { return floating<1>(e, ReciprocalSquareRoot{}); }
bool reciprocal(const Elementwise& e) { return floating<1>(e, Reciprocal{}); }

bool clamp(const Elementwise& e) {
  return numbers_with<1>(e, [&](auto t) {
    using T = decltype(t);
    bool endless = std::is_same_v<T, int64_t> && e.parameter[1] >= 0x1p63;
    return Clamp<T>{Cast<T>{}(e.parameter[0]), endless ? T(INT64_MAX) : T(e.parameter[1])};
  });
}
bool clamp_backward(const Elementwise& e) {
  return floating_with<2>(e, [&](auto t) {
    using T = decltype(t);
    return ClampBackward<T>{T(e.parameter[0]), T(e.parameter[1]), e.parameter[2] != 0, e.parameter[3] != 0};
  });
}

}  // namespace dtensor::cuda
