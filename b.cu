#include <cuda_bf16.h>
#include <cstdint>
template <class T> __global__ void k(int64_t n, const T* a, T* b) { int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; if (i < n) b[i] = a[i] * T(2); }
void f(int64_t n, float*a, float*b) {
  k<float><<<1, 32>>>(n,a,b);
}
