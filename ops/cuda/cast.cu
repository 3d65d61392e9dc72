#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {

// bf16 is converted by way of float.
bool cast(const Elementwise& e) {
  return for_all_types(e.type, [&](auto from) {
    for_all_types(e.to, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      launch_elementwise<1, To, From>(e, functors::Cast<Accumulate<To>>{});
    });
  });
}

}  // namespace dtensor::cuda
