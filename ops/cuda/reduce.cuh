// Reductions of any terms to any result, in an order that depends on sizes alone. Included by .cu files only.
//
// x is [outer, n, inner], contiguous; slice i of outer * inner has n terms. A reducer R is copied to the device and has
//   Element, State               types; a State is of words of 4 bytes and has no constructor
//   const Element* x
//   State none() const           what changes nothing
//   A slice(i) const             a value of slice i that its terms need
//   void add(State&, Element, k, A) const    term k of the slice
//   State join(State, State) const           commutes
//   void finish(i, State, A) const           writes the result
#pragma once

#include "ops/cuda/reduce.h"
#include "ops/cuda/rows.cuh"

namespace dtensor::cuda {

template <class R>
__device__ inline typename R::State join_warp(const R& r, typename R::State s) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) s = r.join(s, shuffled(s, step));
  return s;
}

// Where a slice is cut into chunks, each leaves a State in `parts`, [slices, chunks].
struct Chunks {
  int64_t count, size;
};

// inner = 1. A team is a warp where blockDim is (32, 8), else the block.
template <class R>
__global__ void __launch_bounds__(row_threads, 1)
    reduce_rows_kernel(__grid_constant__ const R r, int64_t slices, int64_t n, Chunks chunks, bool packed,
                       typename R::State* parts) {
  using T = typename R::Element;
  constexpr int size = Pack<T>::size;
  __shared__ typename R::State of_warp[row_threads / 32];
  const int team = int(blockDim.x), lane = int(threadIdx.x);
  for (int64_t unit = blockIdx.x * int64_t(blockDim.y) + threadIdx.y; unit < slices * chunks.count;
       unit += gridDim.x * int64_t(blockDim.y)) {
    int64_t i = unit / chunks.count, begin = (unit - i * chunks.count) * chunks.size, end = begin + chunks.size;
    if (end > n) end = n;
    auto of_slice = r.slice(i);
    typename R::State s = r.none();
    if (packed)
#pragma unroll 4
      for (int64_t k = begin + lane * size; k < end; k += team * size) {
        Pack<T> p = load_pack(r.x + i * n + k);
#pragma unroll
        for (int j = 0; j < size; ++j) r.add(s, p.at[j], k + j, of_slice);
      }
    else
      for (int64_t k = begin + lane; k < end; k += team) r.add(s, r.x[i * n + k], k, of_slice);
    s = join_warp(r, s);
    if (team > 32) {
      if (lane % 32 == 0) of_warp[lane / 32] = s;
      __syncthreads();
      if (lane == 0)
        for (int w = 1; w < row_threads / 32; ++w) s = r.join(s, of_warp[w]);
      __syncthreads();
    }
    if (lane > 0) continue;
    if (chunks.count == 1)
      r.finish(i, s, of_slice);
    else
      parts[unit] = s;
  }
}

// Blocks of 32 slices side by side, 8 terms at a time; blockIdx.y is the chunk.
template <class R>
__global__ void __launch_bounds__(row_threads, 1)
    reduce_columns_kernel(__grid_constant__ const R r, int64_t slices, int64_t n, int64_t inner, Chunks chunks,
                          typename R::State* parts) {
  constexpr int lanes = row_threads / 32;
  __shared__ typename R::State of_lane[lanes][32];
  int64_t i = blockIdx.x * int64_t(32) + threadIdx.x, begin = blockIdx.y * chunks.size, end = begin + chunks.size;
  if (end > n) end = n;
  typename R::State s = r.none();
  if (i < slices) {
    const typename R::Element* x = r.x + i / inner * n * inner + i % inner;
    auto of_slice = r.slice(i);
#pragma unroll 4
    for (int64_t k = begin + threadIdx.y; k < end; k += lanes) r.add(s, x[k * inner], k, of_slice);
  }
  of_lane[threadIdx.y][threadIdx.x] = s;
  __syncthreads();
  if (threadIdx.y > 0 || i >= slices) return;
  for (int t = 1; t < lanes; ++t) s = r.join(s, of_lane[t][threadIdx.x]);
  if (chunks.count == 1)
    r.finish(i, s, r.slice(i));
  else
    parts[i * chunks.count + blockIdx.y] = s;
}

template <class R>
__global__ void __launch_bounds__(row_threads, 1)
    join_parts_kernel(__grid_constant__ const R r, int64_t slices, int64_t chunks, const typename R::State* parts) {
  for_rows<32>(slices, [&](int64_t i) {
    typename R::State s = r.none();
    for (int64_t c = int(threadIdx.x); c < chunks; c += 32) s = r.join(s, parts[i * chunks + c]);
    s = join_warp(r, s);
    if (threadIdx.x == 0) r.finish(i, s, r.slice(i));
  });
}

template <class R>
void reduce(StreamHandle stream, const Terms& t, const R& r) {
  static_assert(sizeof(typename R::State) * max_parts <= reduce_room);
  constexpr int64_t chunk_size = 16384, enough = 2048;  // terms; chunks of all slices together that occupy the device
  int64_t slices = t.outer * t.inner;
  if (slices == 0) return;
  auto parts = static_cast<typename R::State*>(t.room);
  Chunks chunks{1, t.n};
  if (t.inner == 1) {
    if (t.n > chunk_size && slices < enough) {
      int64_t count = ceil_div(t.n, chunk_size), most = ceil_div(enough, slices);
      chunks.size = ceil_div(ceil_div(t.n, count < most ? count : most), 16) * 16;
      chunks.count = ceil_div(t.n, chunks.size);
    }
    int team = chunks.size <= 1024 ? 32 : row_threads;
    bool packed = is_aligned(r.x) && t.n % Pack<typename R::Element>::size == 0;
    launch(reduce_rows_kernel<R>, row_blocks(slices * chunks.count, team), row_block(team), 0, stream, r, slices, t.n,
           chunks, packed, parts);
  } else {
    int64_t across = ceil_div(slices, 32);
    if (t.n > 256 && across < enough / 2) {
      int64_t count = ceil_div(t.n, 256), most = ceil_div(enough / 2, across);
      chunks.size = ceil_div(t.n, count < most ? count : most);
      chunks.count = ceil_div(t.n, chunks.size);
    }
    launch(reduce_columns_kernel<R>, dim3(unsigned(across), unsigned(chunks.count)), dim3(32, row_threads / 32), 0,
           stream, r, slices, t.n, t.inner, chunks, parts);
  }
  if (chunks.count > 1)
    launch(join_parts_kernel<R>, row_blocks(slices, 32), row_block(32), 0, stream, r, slices, chunks.count, parts);
}

// f(place, slice) for every element.
template <class F>
__global__ void each_kernel(__grid_constant__ const F f, int64_t n, int64_t size, int64_t inner) {
  for (int64_t at = blockIdx.x * int64_t(row_threads) + threadIdx.x; at < n; at += gridDim.x * int64_t(row_threads))
    f(at, inner == 1 ? at / size : at / (size * inner) * inner + at % inner);
}
template <class F>
void for_each(StreamHandle stream, const Terms& t, const F& f) {
  int64_t n = t.outer * t.n * t.inner;
  launch(each_kernel<F>, blocks_for(n, row_threads), row_threads, 0, stream, f, n, t.n, t.inner);
}

// What most reducers are: one number, no value of the slice.
template <class T, class S>
struct Reducer {
  using Element = T;
  using State = S;
  const T* x;
  __device__ int slice(int64_t) const { return 0; }
};

}  // namespace dtensor::cuda
