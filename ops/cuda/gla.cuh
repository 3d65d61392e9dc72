// What the kernels of gated linear attention share: tiles in shared memory, their products, sums of gates. A chunk has
// as many rows as a tile, and a tile that many keys or values; what is beyond a tensor's sizes is 0.
#pragma once

#include <cmath>

#include "ops/cuda/gla.h"
#include "ops/cuda/mma.cuh"

namespace dtensor::cuda::gla {

constexpr int threads = 256;
template <class T>
constexpr int tile = 256 / int(sizeof(Accumulate<T>));
// Elements from row to row of a tile: neighbours down a column, and the fragments of a product, are in other banks.
template <class T>
constexpr int width = tile<T> + 1;
template <>
inline constexpr int width<bf16> = tile<bf16> + 4;
template <class T>
constexpr int tile_size = tile<T>* width<T>;
constexpr int near = 8;  // rows of blocks that are not halved: exp is taken of each pair and element

// Of shared memory: so many tiles, and a number for each row or column of one.
template <class T>
constexpr size_t bytes(int tiles) {
  return size_t(tiles * tile_size<T> + tile<T>) * sizeof(Accumulate<T>);
}

// All that the kernels are given; each uses a part.
template <class T>
struct Call {
  using A = Accumulate<T>;
  int64_t rows, heads, keys, values, chunks, key_tiles, value_tiles;
  A scale;
  const T *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  const A *g = nullptr, *first = nullptr, *dlast = nullptr;
  T *out = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
  A *dg = nullptr, *last = nullptr, *dfirst = nullptr, *states = nullptr, *gradients = nullptr, *weights = nullptr,
    *dweights = nullptr;

  explicit Call(const LinearAttention& s)
      : rows(s.rows),
        heads(s.heads),
        keys(s.keys),
        values(s.values),
        chunks(s.chunks()),
        key_tiles(ceil_div(s.keys, tile<T>)),
        value_tiles(ceil_div(s.values, tile<T>)),
        scale(A(s.scale)) {}
};

// Where a block works: a head of a batch entry, a chunk, and the first key and value of its tile.
template <class T>
struct Place {
  const Call<T>& c;
  int64_t head, chunk = 0, key = 0, value = 0;

  // Blocks by head, then chunk, then tile, as far as there are more than one of them.
  __device__ Place(const Call<T>& call, int64_t chunks, int64_t key_tiles, int64_t value_tiles) : c(call) {
    int64_t block = blockIdx.x;
    value = block % value_tiles * tile<T>, block /= value_tiles;
    key = block % key_tiles * tile<T>, block /= key_tiles;
    chunk = block % chunks, head = block / chunks;
  }
  __device__ int64_t rows() const { return c.rows - chunk * tile<T>; }  // from the chunk on
  // How many rows, keys and values of a tile there are.
  __device__ int row_count() const { return of_tile(rows()); }
  __device__ int key_count() const { return of_tile(c.keys - key); }
  __device__ int value_count() const { return of_tile(c.values - value); }
  __device__ static int of_tile(int64_t n) { return n < tile<T> ? int(n) : tile<T>; }
  // The chunk's first row of a tensor with n elements for each head, from element `first` on.
  template <class P>
  __device__ P* row(P* t, int64_t n, int64_t first) const {
    return t + ((head / c.heads * c.rows + chunk * tile<T>)*c.heads + head % c.heads) * n + first;
  }
  __device__ int64_t state() const { return (head * c.keys + key) * c.values + value; }
  __device__ int64_t state_of_chunk() const { return ((head * c.chunks + chunk) * c.keys + key) * c.values + value; }
  __device__ int64_t weights() const { return (head * c.chunks + chunk) * tile<T> * tile<T>; }
};

template <class T, class P>
__device__ void load_tile(Accumulate<T>* to, const P* from, int64_t stride, int64_t rows, int64_t columns) {
  const int j = threadIdx.x % tile<T>;
  for (int i = threadIdx.x / tile<T>; i < tile<T>; i += threads / tile<T>)
    to[i * width<T> + j] = i < rows && j < columns ? Accumulate<T>(load(from[i * stride + j])) : Accumulate<T>(0);
}
template <class T, class P>
__device__ void store_tile(P* to, const Accumulate<T>* from, int64_t stride, int64_t rows, int64_t columns) {
  const int j = threadIdx.x % tile<T>;
  for (int i = threadIdx.x / tile<T>; i < tile<T> && i < rows; i += threads / tile<T>)
    if (j < columns) to[i * stride + j] = rounded<P>(from[i * width<T> + j]);
}
template <class T>
__device__ void clear_tile(Accumulate<T>* t) {
  for (int i = threadIdx.x; i < tile_size<T>; i += threads) t[i] = 0;
}

// Tiles of the sequence, of a state and of weights.
template <class T, class P>
__device__ void load_keys(const Place<T>& at, Accumulate<T>* to, const P* t) {
  load_tile<T>(to, at.row(t, at.c.keys, at.key), at.c.heads * at.c.keys, at.rows(), at.c.keys - at.key);
}
template <class T>
__device__ void load_values(const Place<T>& at, Accumulate<T>* to, const T* t) {
  load_tile<T>(to, at.row(t, at.c.values, at.value), at.c.heads * at.c.values, at.rows(), at.c.values - at.value);
}
template <class T, class P>
__device__ void store_keys(const Place<T>& at, P* t, const Accumulate<T>* from) {
  store_tile<T>(at.row(t, at.c.keys, at.key), from, at.c.heads * at.c.keys, at.rows(), at.c.keys - at.key);
}
template <class T>
__device__ void store_values(const Place<T>& at, T* t, const Accumulate<T>* from) {
  store_tile<T>(at.row(t, at.c.values, at.value), from, at.c.heads * at.c.values, at.rows(), at.c.values - at.value);
}
template <class T>
__device__ void load_state(const Place<T>& at, Accumulate<T>* to, const Accumulate<T>* from) {
  load_tile<T>(to, from, at.c.values, at.c.keys - at.key, at.c.values - at.value);
}
template <class T>
__device__ void store_state(const Place<T>& at, Accumulate<T>* to, const Accumulate<T>* from) {
  store_tile<T>(to, from, at.c.values, at.c.keys - at.key, at.c.values - at.value);
}
template <class T>
__device__ void load_weights(const Place<T>& at, Accumulate<T>* to, const Accumulate<T>* from) {
  load_tile<T>(to, from + at.weights(), tile<T>, tile<T>, tile<T>);
}
template <class T>
__device__ void store_weights(const Place<T>& at, Accumulate<T>* to, const Accumulate<T>* from) {
  store_tile<T>(to + at.weights(), from, tile<T>, tile<T>, tile<T>);
}

// --- Products. A thread has the elements (row(n), column(n)) of a tile.

template <class T>
struct Product {
  using A = Accumulate<T>;
  static constexpr int side = tile<T> / 16, count = side * side;
  A sum[count] = {};

  __device__ static int row(int n) { return int(threadIdx.x) / 16 + n / side * 16; }
  __device__ static int column(int n) { return int(threadIdx.x) % 16 + n % side * 16; }
  // += sum over k < n of a[row * a_row + k * a_inner] * b[k * b_inner + column * b_column]; what is beyond is 0.
  __device__ void add(int n, const A* a, int a_row, int a_inner, const A* b, int b_inner, int b_column) {
#pragma unroll 4
    for (int k = 0; k < n; ++k) {
      A x[side], y[side];
#pragma unroll
      for (int i = 0; i < side; ++i)
        x[i] = a[row(i * side) * a_row + k * a_inner], y[i] = b[k * b_inner + column(i) * b_column];
#pragma unroll
      for (int i = 0; i < count; ++i) sum[i] += x[i / side] * y[i % side];
    }
  }
};

// On tensor cores: each of 8 warps has 16 rows and four blocks of 8 columns.
template <>
struct Product<bf16> {
  static constexpr int count = 16;
  float sum[count] = {};

  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ static int group() { return int(threadIdx.x) % 32 / 4; }
  __device__ static int in() { return int(threadIdx.x) % 4; }
  __device__ static int row(int n) { return warp() / 2 * 16 + group() + n % 4 / 2 * 8; }
  __device__ static int column(int n) { return warp() % 2 * 32 + n / 4 * 8 + in() * 2 + n % 2; }
  __device__ void add(int n, const float* a, int a_row, int a_inner, const float* b, int b_inner, int b_column) {
    a += (warp() / 2 * 16 + group()) * a_row + in() * a_inner;
    b += (warp() % 2 * 32 + group()) * b_column + in() * b_inner;
#pragma unroll 2
    for (int k = 0; k < n; k += 8, a += 8 * a_inner, b += 8 * b_inner) {
      const uint32_t x[4] = {to_tf32(a[0]), to_tf32(a[8 * a_row]), to_tf32(a[4 * a_inner]),
                             to_tf32(a[8 * a_row + 4 * a_inner])};
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        const float* of = b + block * 8 * b_column;
        const uint32_t y[2] = {to_tf32(of[0]), to_tf32(of[4 * b_inner])};
        multiply_add(reinterpret_cast<float(&)[4]>(sum[block * 4]), x, y);
      }
    }
  }
};

// to(row, column, sum) for each element of this thread.
template <class T, class To>
__device__ void for_each(const Product<T>& p, To to) {
#pragma unroll
  for (int n = 0; n < Product<T>::count; ++n) to(p.row(n), p.column(n), p.sum[n]);
}

// --- Sums of a tile's columns. An element's exponent is a sum of the gates between two rows, never a difference of
// longer sums: one that is small is a sum of small terms and exact, however large others are. The same thread has the
// same elements in both.

// f(i, j, sum of rows [0, i]).
template <class T, class F>
__device__ void since_start(const Accumulate<T>* g, F f) {
  constexpr int rows = tile<T> * tile<T> / threads;
  const int j = threadIdx.x % tile<T>, begin = int(threadIdx.x) / tile<T> * rows;
  Accumulate<T> sum = 0;
  for (int i = 0; i < begin; ++i) sum += g[i * width<T> + j];
  for (int i = begin; i < begin + rows; ++i) {
    sum += g[i * width<T> + j];
    f(i, j, sum);
  }
}
// f(i, j, sum of rows (i, tile)). It may change row i.
template <class T, class F>
__device__ void until_end(const Accumulate<T>* g, F f) {
  constexpr int rows = tile<T> * tile<T> / threads;
  const int j = threadIdx.x % tile<T>, begin = int(threadIdx.x) / tile<T> * rows;
  Accumulate<T> sum = 0;
  for (int i = tile<T> - 1; i >= begin + rows; --i) sum += g[i * width<T> + j];
  for (int i = begin + rows - 1; i >= begin; --i) {
    const Accumulate<T> x = g[i * width<T> + j];
    f(i, j, sum);
    sum += x;
  }
}
// Blocks of 2 * half rows meet at the row r in their middle: f(i, j, sum of rows (r, i], true) for rows behind it, and
// f(i, j, sum of rows (i, r], false) for those before it.
template <class T, class F>
__device__ void to_middle(const Accumulate<T>* g, int half, F f) {
  for (int at = threadIdx.x; at < tile<T> * (tile<T> / half); at += threads) {
    const int j = at % tile<T>, begin = at / tile<T> * half, end = begin + half;
    Accumulate<T> sum = 0;
    if (begin / half % 2)
      for (int i = begin; i < end; ++i) {
        if (i > begin) sum += g[i * width<T> + j];
        f(i, j, sum, true);
      }
    else
      for (int i = end - 1; i >= begin; --i) {
        sum += g[(i + 1) * width<T> + j];
        f(i, j, sum, false);
      }
  }
}

// The states before each chunk (where there is room for them) and the last one; gla.cu.
template <class T>
void launch_states(const LinearAttention&, const Call<T>&, StreamHandle);
// The weights of each chunk's pairs of rows: scale * sum over keys of q_i k_j exp(G_i - G_j), j <= i, else 0.
template <class T>
void launch_weights(const LinearAttention&, const Call<T>&, StreamHandle);

}  // namespace dtensor::cuda::gla
