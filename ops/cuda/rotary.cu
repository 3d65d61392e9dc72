#include "ops/cuda/rotary.h"

#include "ops/cuda/rows.cuh"

namespace dtensor::cuda {
namespace {

// Sine and cosine by their series on the eighth of a turn next to a quarter: CUDA's own would need local memory for
// huge angles, of which a whole number of turns can be left out here.
__device__ inline void sin_cos(double angle, double& sine, double& cosine) {
  constexpr double pi = 3.14159265358979323846;
  const double turns = angle * (0.5 / pi), part = turns - rint(turns), quarter = rint(4 * part);
  const double x = (part - quarter * 0.25) * (2 * pi), z = -x * x;
  double s = 1, c = 1;
#pragma unroll
  for (int k = 16; k > 0; k -= 2) s = 1 + s * z * (1.0 / (k * (k + 1))), c = 1 + c * z * (1.0 / (k * (k - 1)));
  s *= x;
  const int q = int(quarter) & 3;
  sine = q == 0 ? s : q == 1 ? c : q == 2 ? -s : -c;
  cosine = q == 0 ? c : q == 1 ? -s : q == 2 ? -c : s;
}

// A block has one position and computes its angles once, for all heads of both tensors; anew for each batch entry only
// where that has positions of its own.
template <class T, int n>
__global__ void __launch_bounds__(row_threads, row_blocks_of_sm) rotary_kernel(__grid_constant__ const Rotary r) {
  using A = Accumulate<T>;
  const int half = r.pairs, packs = half / n, d = int(r.d);
  A *cosine = dynamic_shared<A>(), *sine = cosine + half;
  for (int64_t s = blockIdx.x; s < r.positions; s += gridDim.x) {
    for (int64_t b = blockIdx.y; b < r.batch; b += gridDim.y) {
      if (b == blockIdx.y || r.position_stride) {
        const int64_t p = r.position ? r.position[b * r.position_stride + s] : r.begin + s;
        __syncthreads();  // all have read the last ones
        for (int i = int(threadIdx.x); i < half; i += row_threads) {
          double x, y;
          sin_cos(double(p) * r.frequencies[i], x, y);
          sine[i] = A(r.scale * (r.inverse ? -x : x)), cosine[i] = A(r.scale * y);
        }
        __syncthreads();
      }
#pragma unroll 1
      for (int t = 0; t < r.count; ++t) {
        const RotaryTensor& tensor = r.tensor[t];
        const int items = int(tensor.heads) * packs;
        const T* x = static_cast<const T*>(tensor.x) + b * tensor.batch_stride + s * tensor.position_stride;
        T* y = static_cast<T*>(tensor.y) + (b * r.positions + s) * tensor.heads * r.d;
        for (int item = int(threadIdx.x); item < items; item += row_threads) {
          const int head = item / packs, i = (item - head * packs) * n;
          const T* from = x + head * tensor.head_stride + i;
          Pack<T, n> u = read<T, n>(from), v = read<T, n>(from + half), p, q;
          for (int j = 0; j < n; ++j) {
            const A a = load(u.at[j]), c = load(v.at[j]);
            p.at[j] = rounded<T>(a * cosine[i + j] - c * sine[i + j]);
            q.at[j] = rounded<T>(c * cosine[i + j] + a * sine[i + j]);
          }
          write<T, n>(y + head * d + i, p), write<T, n>(y + head * d + half + i, q);
        }
        const int rest = d - 2 * half;
#pragma unroll 1
        for (int item = int(threadIdx.x); item < int(tensor.heads) * rest; item += row_threads) {
          const int head = item / rest, i = 2 * half + item - head * rest;
          y[head * d + i] = x[head * tensor.head_stride + i];
        }
      }
    }
  }
}

template <class T, int n>
void run(StreamHandle stream, const Rotary& r) {
  int64_t positions = r.positions < 65535 * 16 ? r.positions : 65535 * 16, enough = 132 * 8;
  int64_t batches = positions > 0 ? ceil_div(enough, positions) : 0;
  if (batches > r.batch) batches = r.batch;
  launch(rotary_kernel<T, n>, dim3(unsigned(positions), unsigned(batches)), row_threads,
         size_t(2 * r.pairs) * sizeof(Accumulate<T>), stream, r);
}

}  // namespace

void rotary(StreamHandle stream, DType type, const Rotary& r) {
  if (r.d == 0) return;
  for_floating(type, [&]<class T>(T) {
    constexpr int n = 16 / sizeof(T);
    bool packed = r.pairs % n == 0 && r.d % n == 0;
    for (int t = 0; t < r.count; ++t) {
      const RotaryTensor& x = r.tensor[t];
      packed = packed && all_aligned(as<T>(x.x), as<T>(x.y)) && x.batch_stride % n == 0 && x.position_stride % n == 0 &&
               x.head_stride % n == 0;
    }
    packed ? run<T, n>(stream, r) : run<T, 1>(stream, r);
  });
}

}  // namespace dtensor::cuda
