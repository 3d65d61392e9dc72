// Which instruction sets the Highway files are compiled for; include it before any Highway header.
// On x86-64: AVX2 (the baseline, -march=x86-64-v3) and AVX-512, chosen at run time. All of them have a fused
// multiply-add, which the laws need; vectors of unknown length (SVE, RVV) are left out.
#pragma once
#define HWY_DISABLE_PCLMUL_AES  // otherwise the baseline of -march=x86-64-v3 is "scalar", without a fused multiply-add
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
