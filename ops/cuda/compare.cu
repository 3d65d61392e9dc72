#include "ops/cuda/compare.cuh"

namespace dtensor::cuda {

using namespace functors;

bool equal(const Elementwise& e) { return tests<2>(e, Equal{}); }
bool not_equal(const Elementwise& e) { return tests<2>(e, NotEqual{}); }
bool less(const Elementwise& e) { return tests<2>(e, Less{}); }
bool less_equal(const Elementwise& e) { return tests<2>(e, LessEqual{}); }
bool greater(const Elementwise& e) { return tests<2>(e, Greater{}); }
bool greater_equal(const Elementwise& e) { return tests<2>(e, GreaterEqual{}); }

bool logical_and(const Elementwise& e) { return logic<2>(e, And{}); }
bool logical_or(const Elementwise& e) { return logic<2>(e, Or{}); }

bool where(const Elementwise& e) {
  return for_all_types(e.type, [&](auto t) {
    using T = decltype(t);
    launch_elementwise<1, T, bool, T, T>(e, Where{});
  });
}

}  // namespace dtensor::cuda
