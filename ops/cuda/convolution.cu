#include "ops/cuda/convolution.h"

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256, columns = 32, lanes = threads / columns;  // of a block that adds: channels, rows at a time
constexpr int64_t part_rows = 1024, most_parts = 128;

int64_t parts_of(const Convolution& s) {
  const int64_t parts = ceil_div(s.batch * s.rows, part_rows);
  return parts < most_parts ? parts : most_parts;
}

// Element c of row t of a batch entry, where t < 0 is before the first.
template <class T>
__device__ Accumulate<T> element(const Convolution& s, const T* x, const T* before, int64_t b, int64_t t, int64_t c) {
  if (t >= 0) return load(x[(b * s.rows + t) * s.channels + c]);
  return t + s.tail >= 0 ? load(before[(b * s.tail + t + s.tail) * s.channels + c]) : Accumulate<T>(0);
}

template <class T>
__global__ void convolution_kernel(Convolution s, const T* x, const T* before, const T* weight, T* y) {
  const int64_t n = s.batch * s.rows * s.channels;
  for (int64_t at = blockIdx.x * int64_t(threads) + threadIdx.x; at < n; at += gridDim.x * int64_t(threads)) {
    const int64_t row = quotient(at, s.channels), c = at - row * s.channels, b = quotient(row, s.rows),
                  first = row - b * s.rows - (s.width - 1);
    Accumulate<T> sum = 0;
    for (int64_t i = 0; i < s.width; ++i) sum += load(weight[c * s.width + i]) * element(s, x, before, b, first + i, c);
    y[at] = rounded<T>(sum);
  }
}

template <class T>
__global__ void inputs_kernel(Convolution s, const T* dy, const T* weight, T* dx, T* dbefore) {
  const int64_t rows = s.tail + s.rows, n = s.batch * rows * s.channels;
  for (int64_t at = blockIdx.x * int64_t(threads) + threadIdx.x; at < n; at += gridDim.x * int64_t(threads)) {
    const int64_t row = quotient(at, s.channels), c = at - row * s.channels, b = quotient(row, rows),
                  t = row - b * rows - s.tail, last = t + (s.width - 1);
    Accumulate<T> sum = 0;
    for (int64_t i = s.width - 1; i >= 0; --i) {
      const int64_t out = last - i;  // the row that reads t with weight i
      if (out >= 0 && out < s.rows)
        sum += load(weight[c * s.width + i]) * load(dy[(b * s.rows + out) * s.channels + c]);
    }
    (t >= 0 ? dx[(b * s.rows + t) * s.channels + c] : dbefore[(b * s.tail + t + s.tail) * s.channels + c]) =
        rounded<T>(sum);
  }
}

// A block adds a part of the rows for some channels and one weight of each: sums [parts, width, channels].
template <class T>
__global__ void __launch_bounds__(threads)
    weights_kernel(Convolution s, const T* dy, const T* x, const T* before, Accumulate<T>* sums) {
  __shared__ Accumulate<T> shared[lanes][columns];
  const int column = int(threadIdx.x) % columns, lane = int(threadIdx.x) / columns;
  const int64_t groups = (s.channels + columns - 1) / columns, i = blockIdx.x / groups,
                c = blockIdx.x % groups * columns + column, parts = gridDim.y, all = s.batch * s.rows,
                begin = all * int64_t(blockIdx.y) / parts, end = all * int64_t(blockIdx.y + 1) / parts;
  Accumulate<T> sum = 0;
  if (c < s.channels)
    for (int64_t row = begin + lane; row < end; row += lanes) {
      const int64_t b = quotient(row, s.rows), t = row - b * s.rows;
      sum += load(dy[row * s.channels + c]) * element(s, x, before, b, t - (s.width - 1) + i, c);
    }
  shared[lane][column] = sum;
  __syncthreads();
  if (lane > 0 || c >= s.channels) return;
  for (int n = 1; n < lanes; ++n) sum += shared[n][column];
  sums[(blockIdx.y * s.width + i) * s.channels + c] = sum;
}

template <class T>
__global__ void parts_kernel(Convolution s, int64_t parts, const Accumulate<T>* sums, T* dweight) {
  const int64_t n = s.channels * s.width;
  for (int64_t at = blockIdx.x * int64_t(threads) + threadIdx.x; at < n; at += gridDim.x * int64_t(threads)) {
    Accumulate<T> sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += sums[p * n + at % s.width * s.channels + at / s.width];
    dweight[at] = rounded<T>(sum);
  }
}

}  // namespace

void convolution(const Convolution& s, const void* x, const void* before, const void* weight, void* y,
                 StreamHandle stream) {
  for_floating(s.dtype, [&](auto type) {
    using T = decltype(type);
    launch(convolution_kernel<T>, blocks_for(s.batch * s.rows * s.channels, threads), threads, 0, stream, s,
           static_cast<const T*>(x), static_cast<const T*>(before), static_cast<const T*>(weight), static_cast<T*>(y));
  });
}

int64_t convolution_partials(const Convolution& s) { return parts_of(s) * s.width * s.channels; }

void convolution_backward(const Convolution& s, const ConvolutionBackward& b, StreamHandle stream) {
  for_floating(s.dtype, [&](auto type) {
    using T = decltype(type);
    const auto *dy = static_cast<const T*>(b.dy), *x = static_cast<const T*>(b.x),
               *before = static_cast<const T*>(b.before), *weight = static_cast<const T*>(b.weight);
    auto* sums = static_cast<Accumulate<T>*>(b.partial);
    launch(inputs_kernel<T>, blocks_for(s.batch * (s.tail + s.rows) * s.channels, threads), threads, 0, stream, s, dy,
           weight, static_cast<T*>(b.dx), static_cast<T*>(b.dbefore));
    launch(weights_kernel<T>, dim3(unsigned(ceil_div(s.channels, columns) * s.width), unsigned(parts_of(s))), threads,
           0, stream, s, dy, x, before, sums);
    launch(parts_kernel<T>, blocks_for(s.channels * s.width, threads), threads, 0, stream, s, parts_of(s),
           static_cast<const Accumulate<T>*>(sums), static_cast<T*>(b.dweight));
  });
}

}  // namespace dtensor::cuda
