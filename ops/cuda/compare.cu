#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {
namespace {

using namespace functors;

template <class F>
bool comparison(const Elementwise& e, F f) {
  return for_all_types(e.type, [&](auto t) {
    using T = decltype(t);
    launch_elementwise<1, bool, T, T>(e, f);
  });
}
template <class F>
bool test(const Elementwise& e, F f) {
  return for_all_types(e.type, [&](auto t) { launch_elementwise<1, bool, decltype(t)>(e, f); });
}
template <int inputs, class F>
bool logic(const Elementwise& e, F f) {
  if (e.type != DType::boolean) return false;
  launch_same<inputs, 1, bool>(e, f);
  return true;
}

}  // namespace

bool equal(const Elementwise& e) { return comparison(e, Equal{}); }
bool not_equal(const Elementwise& e) { return comparison(e, NotEqual{}); }
bool less(const Elementwise& e) { return comparison(e, Less{}); }
bool less_equal(const Elementwise& e) { return comparison(e, LessEqual{}); }
bool greater(const Elementwise& e) { return comparison(e, Greater{}); }
bool greater_equal(const Elementwise& e) { return comparison(e, GreaterEqual{}); }

bool logical_and(const Elementwise& e) { return logic<2>(e, And{}); }
bool logical_or(const Elementwise& e) { return logic<2>(e, Or{}); }
bool logical_not(const Elementwise& e) { return logic<1>(e, Not{}); }

bool is_finite(const Elementwise& e) { return test(e, IsFinite{}); }
bool is_nan(const Elementwise& e) { return test(e, IsNan{}); }
bool is_infinite(const Elementwise& e) { return test(e, IsInfinite{}); }

bool where(const Elementwise& e) {
  return for_all_types(e.type, [&](auto t) {
    using T = decltype(t);
    launch_elementwise<1, T, bool, T, T>(e, Where{});
  });
}

}  // namespace dtensor::cuda
