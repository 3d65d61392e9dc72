// A warp's product on tensor cores: numbers are rounded to TF32 (10 bits of mantissa, which hold those of bf16) and
// added in f32.
#pragma once

#include <cstring>

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {

// Rounded to nearest, ties away from 0.
__device__ inline uint32_t to_tf32(float x) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  uint32_t bits = 0;
  std::memcpy(&bits, &x, 4);
  return x == x ? (bits + 0x1000u) & ~0x1fffu : bits;
#endif
}

// d [16, 8] += a [16, 8] b [8, 8]. Lane l = 4 * group + in has a at rows group (0, 2) and group + 8 (1, 3) and columns
// in (0, 1) and in + 4 (2, 3); b at rows in (0) and in + 4 (1) and column group; d at rows group (0, 1) and group + 8
// (2, 3) and columns 2 * in (0, 2) and 2 * in + 1 (1, 3). Source: the PTX manual, mma.m16n8k8.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // on the emulator: the lanes show each other what they have
  __shared__ float shown[32][32][6];
  float(&lanes)[32][6] = shown[threadIdx.x / 32];
  const int lane = int(threadIdx.x % 32), group = lane / 4, in = lane % 4;
  std::memcpy(lanes[lane], a, sizeof(a)), std::memcpy(lanes[lane] + 4, b, sizeof(b));
  __syncwarp();
  for (int n = 0; n < 4; ++n)
    for (int k = 0; k < 8; ++k)
      d[n] += lanes[4 * group + k % 4][n / 2 + k / 4 * 2] * lanes[4 * (2 * in + n % 2) + k % 4][4 + k / 4];
  __syncwarp();
#endif
}

}  // namespace dtensor::cuda
