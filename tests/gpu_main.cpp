// The main function of test_cuda: without a device it ends with 2 at once.
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#include <iostream>

#include "dtensor/cuda/runtime.h"

int main(int argc, char** argv) {
  if (std::string why = dtensor::cuda::unavailable(); !why.empty()) {
    std::cerr << "test_cuda: " << why << "\n";
    return 2;
  }
  return Catch::Session().run(argc, argv);
}
