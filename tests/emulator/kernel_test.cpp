// Kernels on the emulator: threads that meet, and those that should but do not.
#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include "dtensor/cuda/launch.cuh"
#include "placement/error.h"
#include "tests/emulator/emulator.h"

using namespace dtensor;
using namespace dtensor::cuda;
using Catch::Contains;

namespace {

// The sums of rows of n, a block for each.
template <int threads>
__global__ void __launch_bounds__(threads) sum_rows(int n, const float* in, float* out) {
  float sum = 0;
  for (int i = int(threadIdx.x); i < n; i += threads) sum += in[blockIdx.x * unsigned(n) + unsigned(i)];
  sum = block_reduce<threads>(sum, Sum{}, 0.0f);
  float largest = block_reduce<threads>(float(threadIdx.x), Max{}, -1.0f);
  if (threadIdx.x == 0) out[blockIdx.x] = sum + largest;
}

// Reverses each block's part by way of dynamic shared memory.
__global__ void reverse(float* data) {
  float* part = dynamic_shared<float>();
  part[threadIdx.x] = data[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  data[blockIdx.x * blockDim.x + threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
}

__global__ void shuffles(int* out) {
  int lane = int(threadIdx.x), width8 = __shfl_sync(~0u, lane, 3, 8);
  int up = __shfl_up_sync(~0u, lane, 1u), down = __shfl_down_sync(~0u, lane, 2u, 16);
  bool all = __all_sync(~0u, lane >= 0) && !__all_sync(~0u, lane), any = __any_sync(~0u, lane == 31);
  unsigned odd = __ballot_sync(~0u, lane % 2);
  __syncwarp();
  out[lane] = width8 + 100 * up + 10000 * down + 1000000 * (all && any && odd == 0xaaaaaaaa);
}

// Thread 5 goes elsewhere.
enum class Fault { leaves_block, leaves_warp, other_barrier, other_shuffle, not_in_mask };
__global__ void faulty(Fault fault, float* out) {
  unsigned i = threadIdx.x;
  float x = float(i);
  if (fault == Fault::leaves_block && i == 5) return;
  if (fault == Fault::leaves_warp && i == 5) return;
  if (fault == Fault::other_barrier && i == 5) {
    __syncthreads();
  } else if (fault == Fault::leaves_block || fault == Fault::other_barrier) {
    __syncthreads();
  }
  if (fault == Fault::other_shuffle && i == 5) {
    x = __shfl_xor_sync(~0u, x, 1);
  } else if (fault == Fault::leaves_warp || fault == Fault::other_shuffle) {
    x = __shfl_xor_sync(~0u, x, 1);
  }
  if (fault == Fault::not_in_mask) x = __shfl_sync(0xf, x, int(i));
  out[i] = x;
}

struct Device {
  explicit Device(std::vector<float> values) : size(values.size()) {
    at = static_cast<float*>(allocate(int64_t(size) * 4));
    copy(at, values.data(), int64_t(size) * 4, stream.handle());
    synchronize(stream.handle());
  }
  ~Device() { release(at); }
  std::vector<float> values() {
    std::vector<float> v(size);
    copy(v.data(), at, int64_t(size) * 4, stream.handle());
    synchronize(stream.handle());
    return v;
  }
  size_t size;
  Stream stream;
  float* at;
};

}  // namespace

TEST_CASE("emulator: block_reduce of several block sizes") {
  int rows = 5, n = 300;
  std::vector<float> in(size_t(rows * n));
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i % 7);
  Device d(in);
  Device out(std::vector<float>(size_t(rows), -1));
  auto check = [&](auto threads) {
    launch(sum_rows<threads>, unsigned(rows), unsigned(threads), 0, d.stream.handle(), n, d.at, out.at);
    synchronize(d.stream.handle());
    std::vector<float> sums = out.values();
    for (int r = 0; r < rows; ++r) {
      float expected = float(threads - 1);
      for (int i = 0; i < n; ++i) expected += in[size_t(r * n + i)];
      CHECK(sums[size_t(r)] == expected);
    }
  };
  check(std::integral_constant<int, 32>{});
  check(std::integral_constant<int, 128>{});
  check(std::integral_constant<int, 1024>{});
}

TEST_CASE("emulator: dynamic shared memory and barriers") {
  Device d({1, 2, 3, 4, 5, 6});
  launch(reverse, 2, 3, 12, d.stream.handle(), d.at);
  CHECK(d.values() == std::vector<float>{3, 2, 1, 6, 5, 4});
  launch(reverse, 0, 3, 12, d.stream.handle(), d.at);
  CHECK_THROWS_WITH(launch(reverse, 1, 6, 228 << 10, d.stream.handle(), d.at), Contains("cudaFuncSetAttribute"));
  CHECK_THROWS_WITH(launch(reverse, 1, 1025, 0, d.stream.handle(), d.at), Contains("cudaErrorInvalidConfiguration"));
  CHECK_THROWS_WITH(launch(reverse, 1, 1, 0, nullptr, d.at), Contains("cudaErrorInvalidResourceHandle"));
}

TEST_CASE("emulator: warp intrinsics") {
  Device d(std::vector<float>(32, 0));
  launch(shuffles, 1, 32, 0, d.stream.handle(), reinterpret_cast<int*>(d.at));
  std::vector<float> out = d.values();
  for (int lane = 0; lane < 32; ++lane) {
    int up = lane ? lane - 1 : 0, down = lane % 16 < 14 ? lane + 2 : lane;
    CHECK(std::bit_cast<int>(out[size_t(lane)]) == lane / 8 * 8 + 3 + 100 * up + 10000 * down + 1000000);
  }
}

TEST_CASE("emulator: threads that do not meet are an error that says where they are") {
  struct Case {
    Fault fault;
    const char* says;
  };
  for (Case c : {Case{Fault::leaves_block, "wait for others that do not come: 1 of 64 have returned"},
                 Case{Fault::leaves_warp, "33 of 64 have returned"}, Case{Fault::other_barrier, "at two __syncthreads"},
                 Case{Fault::other_shuffle, "at two places"}, Case{Fault::not_in_mask, "does not have lane 4"}}) {
    emulator::reset();
    Device d(std::vector<float>(64, 0));
    launch(faulty, 1, 64, 0, d.stream.handle(), c.fault, d.at);
    CHECK_THROWS_WITH(d.values(), Contains(c.says) && Contains("kernel_test.cpp"));
    CHECK_THROWS_WITH(d.values(), Contains("cudaErrorLaunchFailure"));  // stays
  }
  emulator::reset();
  Device d(std::vector<float>(64, 1));  // all works again
  launch(reverse, 1, 64, 256, d.stream.handle(), d.at);
  CHECK(d.values() == std::vector<float>(64, 1));
}
