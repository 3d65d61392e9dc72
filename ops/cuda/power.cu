// Powers and remainders, whose code is long.
#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {

using namespace functors;

bool power(const Elementwise& e) { return floating<2>(e, Power{}); }
bool power_of(const Elementwise& e) {
  double exponent = e.parameter[0];
  if (exponent == 2) return square(e);
  if (exponent == 3) return floating<1>(e, Cube{});
  if (exponent == 0.5) return sqrt(e);
  if (exponent == -0.5) return rsqrt(e);
  if (exponent == -1) return reciprocal(e);
  if (exponent == -2) return floating<1>(e, ReciprocalSquare{});
  return floating<1>(e, PowerOf{exponent});
}
bool remainder(const Elementwise& e) { return numbers<2>(e, Remainder<true>{}); }
bool fmod(const Elementwise& e) { return numbers<2>(e, Remainder<false>{}); }

}  // namespace dtensor::cuda
