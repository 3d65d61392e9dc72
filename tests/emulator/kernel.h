// Runs a kernel on this thread of the host.
#pragma once

#include <functional>

#include <cuda_runtime_api.h>

namespace emulator {

// Calls thread() as every thread of every block. Errors: std::runtime_error where threads that should meet do not.
void run_kernel(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

}  // namespace emulator
