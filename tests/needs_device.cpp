// Of test_cuda: without a device it ends with 2 at once.
#include <cstdio>
#include <cstdlib>

#include "dtensor/cuda/runtime.h"

namespace {

const bool has_device = [] {
  std::string why = dtensor::cuda::unavailable();
  if (!why.empty()) std::fprintf(stderr, "test_cuda: %s\n", why.c_str()), std::_Exit(2);
  return true;
}();

}  // namespace
