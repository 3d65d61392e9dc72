#include "dtensor/cuda/local.h"

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;

// --- Copies

struct Strides {
  int dims;
  int64_t size[8], from[8], to[8];
};

template <class T, class Index>
__global__ void copy_kernel(Index n, __grid_constant__ const Strides s, const T* from, T* to) {
  for (Index i = blockIdx.x * Index(threads) + threadIdx.x; i < n; i += gridDim.x * Index(threads)) {
    Index rest = i;
    int64_t f = 0, t = 0;
    for (int d = s.dims - 1; d >= 0; --d) {
      Index size = Index(s.size[d]), at = rest % size;
      rest /= size;
      f += int64_t(at) * s.from[d], t += int64_t(at) * s.to[d];
    }
    to[t] = from[f];
  }
}

template <class T>
void copy_as(StreamHandle stream, const Strides& s, const void* from, void* to) {
  int64_t n = 1;
  for (int d = 0; d < s.dims; ++d) n *= s.size[d];
  auto f = static_cast<const T*>(from);
  auto t = static_cast<T*>(to);
  if (n < int64_t(1) << 31)  // divisions of 32 bits are several times faster
    launch(copy_kernel<T, uint32_t>, blocks_for(n, threads), threads, 0, stream, uint32_t(n), s, f, t);
  else
    launch(copy_kernel<T, int64_t>, blocks_for(n, threads), threads, 0, stream, n, s, f, t);
}

// How many elements fit into one access of at most 16 bytes: rows are contiguous, and begin at multiples of it.
int64_t elements_at_once(int64_t itemsize, const Strides& s, const void* from, const void* to) {
  int last = s.dims - 1;
  if (s.from[last] != 1 || s.to[last] != 1) return 1;
  for (int64_t n = 16 / itemsize; n > 1; n /= 2) {
    auto divides = [&](int64_t x) { return x % n == 0; };
    auto aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % uint64_t(n * itemsize) == 0; };
    bool fits = divides(s.size[last]) && aligned(from) && aligned(to);
    for (int d = 0; fits && d < last; ++d) fits = divides(s.from[d]) && divides(s.to[d]);
    if (fits) return n;
  }
  return 1;
}

// --- Copies between tensors that are contiguous along different dimensions: a warp reads runs of the one, and writes
// runs of the other, through a tile in shared memory.

struct Transpose {
  int64_t columns, column_to;  // elements that follow each other in `from`
  int64_t rows, row_from;      // in `to`
  Strides rest;                // the other dimensions
  int64_t tiles;
};

// A tile has 32 words of each row, of as many elements in as many rows: both runs are of 32 words.
template <class T, class Word>
__global__ void __launch_bounds__(threads) transpose_kernel(__grid_constant__ const Transpose c, const T* from, T* to) {
  constexpr int n = sizeof(Word) / sizeof(T), side = 32 * n, per_thread = side / (threads / 32),
                padding = sizeof(Word) < 4 ? 4 / sizeof(Word) : 1;  // rows are an odd number of banks apart
  __shared__ Word tile[side][32 + padding];
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int64_t across = (c.columns + side - 1) / side, down = (c.rows + side - 1) / side;
  for (int64_t at = blockIdx.x; at < c.tiles; at += gridDim.x) {
    int64_t rest = quotient(at, across), f = 0, t = 0;
    const int64_t column = (at - rest * across) * side, outer = quotient(rest, down),
                  row = (rest - outer * down) * side;
    rest = outer;
    for (int d = c.rest.dims - 1; d >= 0; --d) {
      const int64_t above = quotient(rest, c.rest.size[d]), i = rest - above * c.rest.size[d];
      f += i * c.rest.from[d], t += i * c.rest.to[d], rest = above;
    }
    Word held[per_thread] = {};
    const T* read = from + f + row * c.row_from + column + lane * n;
#pragma unroll
    for (int k = 0; k < per_thread; ++k) {  // all are on the way together
      const int r = warp + k * (threads / 32);
      if (row + r < c.rows && column + lane * n < c.columns)
        held[k] = *reinterpret_cast<const Word*>(read + r * c.row_from);
    }
#pragma unroll
    for (int k = 0; k < per_thread; ++k) {
      const int r = warp + k * (threads / 32);
      tile[r % n * 32 + r / n][lane] = held[k];  // those that become a word are 32 rows apart: lanes read neighbours
    }
    __syncthreads();
    T* written = to + t + column * c.column_to + row + lane * n;
#pragma unroll
    for (int k = 0; k < per_thread; ++k) {
      const int j = warp + k * (threads / 32);
      Word word = 0;
      for (int i = 0; i < n; ++i)
        word |= Word(reinterpret_cast<const T*>(tile[i * 32 + lane])[j]) << (8 * sizeof(T) * i);
      if (column + j < c.columns && row + lane * n < c.rows) *reinterpret_cast<Word*>(written + j * c.column_to) = word;
    }
    __syncthreads();
  }
}

template <class T, class Word>
void transpose_as(StreamHandle stream, Transpose c, const void* from, void* to) {
  constexpr int64_t side = 32 * (sizeof(Word) / sizeof(T));
  c.tiles = ceil_div(c.columns, side) * ceil_div(c.rows, side);
  for (int d = 0; d < c.rest.dims; ++d) c.tiles *= c.rest.size[d];
  launch(transpose_kernel<T, Word>, blocks_for(c.tiles, 1), threads, 0, stream, c, static_cast<const T*>(from),
         static_cast<T*>(to));
}

// Words of 4 bytes where rows of both begin at multiples of them.
template <class T>
void transpose(StreamHandle stream, const Transpose& c, const void* from, void* to) {
  constexpr int64_t n = 4 / sizeof(T);
  auto divides = [&](int64_t x) { return x % n == 0; };
  bool words = divides(c.columns) && divides(c.rows) && divides(c.column_to) && divides(c.row_from) &&
               reinterpret_cast<uintptr_t>(from) % 4 == 0 && reinterpret_cast<uintptr_t>(to) % 4 == 0;
  for (int d = 0; words && d < c.rest.dims; ++d) words = divides(c.rest.from[d]) && divides(c.rest.to[d]);
  words ? transpose_as<T, uint32_t>(stream, c, from, to) : transpose_as<T, T>(stream, c, from, to);
}

// What tiles are worth while for: short rows would leave most of them empty.
bool is_transpose(const Strides& s, Transpose& to) {
  constexpr int64_t short_row = 8;
  int column = -1, row = -1;
  for (int d = 0; d < s.dims; ++d) {
    if (s.from[d] == 1) column = d;
    if (s.to[d] == 1) row = d;
  }
  if (column < 0 || row < 0 || column == row || s.size[column] < short_row || s.size[row] < short_row) return false;
  to = {s.size[column], s.to[column], s.size[row], s.from[row], {}, 0};
  for (int d = 0; d < s.dims; ++d) {
    if (d == column || d == row) continue;
    const int at = to.rest.dims++;
    to.rest.size[at] = s.size[d], to.rest.from[at] = s.from[d], to.rest.to[at] = s.to[d];
  }
  return true;
}

}  // namespace

void copy_strided(StreamHandle stream, int64_t itemsize, int dims, const int64_t* sizes, const int64_t* from_strides,
                  const int64_t* to_strides, const void* from, void* to) {
  if (dims == 0) return copy(to, from, itemsize, stream);
  if (dims == 1 && from_strides[0] == 1 && to_strides[0] == 1) return copy(to, from, sizes[0] * itemsize, stream);
  Strides s{dims, {}, {}, {}};
  for (int d = 0; d < dims; ++d) s.size[d] = sizes[d], s.from[d] = from_strides[d], s.to[d] = to_strides[d];
  if (int64_t n = elements_at_once(itemsize, s, from, to); n > 1) {
    s.size[dims - 1] /= n;
    for (int d = 0; d < dims - 1; ++d) s.from[d] /= n, s.to[d] /= n;
    itemsize *= n;
  }
  Transpose t;
  const bool transposed = is_transpose(s, t);
  switch (itemsize) {
    case 16:
      return copy_as<uint4>(stream, s, from, to);
    case 8:
      return transposed ? transpose_as<uint64_t, uint64_t>(stream, t, from, to)
                        : copy_as<uint64_t>(stream, s, from, to);
    case 4:
      return transposed ? transpose_as<uint32_t, uint32_t>(stream, t, from, to)
                        : copy_as<uint32_t>(stream, s, from, to);
    case 2:
      return transposed ? transpose<uint16_t>(stream, t, from, to) : copy_as<uint16_t>(stream, s, from, to);
    default:
      return transposed ? transpose<uint8_t>(stream, t, from, to) : copy_as<uint8_t>(stream, s, from, to);
  }
}

// --- Fills

namespace {

template <class T>
__global__ void fill_kernel(int64_t n, T value, T* to) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) to[i] = value;
}

template <class T>
void fill_as(StreamHandle stream, int64_t n, const void* value, void* to) {
  launch(fill_kernel<T>, blocks_for(n, threads), threads, 0, stream, n, *static_cast<const T*>(value),
         static_cast<T*>(to));
}

__global__ void count_up_kernel(volatile uint32_t* number) { *number = *number + 1; }

template <class T>
__global__ void scale_kernel(int64_t n, Accumulate<T> factor, T* x) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads))
    x[i] = rounded<T>(load(x[i]) * factor);
}

}  // namespace

void count_up(StreamHandle stream, uint32_t* number) { launch(count_up_kernel, 1, 1, 0, stream, number); }

void fill(StreamHandle stream, int64_t itemsize, int64_t n, const void* value, void* to) {
  switch (itemsize) {
    case 8:
      return fill_as<uint64_t>(stream, n, value, to);
    case 4:
      return fill_as<uint32_t>(stream, n, value, to);
    case 2:
      return fill_as<uint16_t>(stream, n, value, to);
    default:
      return fill_as<uint8_t>(stream, n, value, to);
  }
}

void scale(StreamHandle stream, DType type, int64_t n, double factor, void* x) {
  for_floating(type, [&](auto t) {
    using T = decltype(t);
    launch(scale_kernel<T>, blocks_for(n, threads), threads, 0, stream, n, Accumulate<T>(factor), static_cast<T*>(x));
  });
}

// --- Conversions

namespace {

template <class To, class From>
__global__ void convert_kernel(int64_t n, const From* from, To* to) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads))
    to[i] = rounded<To>(Accumulate<To>(load(from[i])));
}

}  // namespace

void convert(StreamHandle stream, DType from_type, DType to_type, int64_t n, const void* from, void* to) {
  for_floating(from_type, [&](auto f) {
    for_floating(to_type, [&](auto t) {
      using From = decltype(f);
      using To = decltype(t);
      launch(convert_kernel<To, From>, blocks_for(n, threads), threads, 0, stream, n, static_cast<const From*>(from),
             static_cast<To*>(to));
    });
  });
}

// --- Reductions over ranks

namespace {

// Integers wrap around, as unsigned ones do by definition.
template <class T>
struct Wrapping {
  using type = T;
};
template <>
struct Wrapping<int64_t> {
  using type = uint64_t;
};

template <Reduce reduce, class T>
__device__ T combine(T a, T b) {
  using W = typename Wrapping<T>::type;
  if constexpr (reduce == Reduce::product)
    return T(W(a) * W(b));
  else if constexpr (reduce == Reduce::min)
    return Min{}(a, b);
  else if constexpr (reduce == Reduce::max)
    return Max{}(a, b);
  else
    return T(W(a) + W(b));
}

struct Sources {
  const void* at[max_reduced];
};

// Of `count` tensors from number `first` on. The recursion ends when it is compiled.
template <Reduce reduce, class T, int first, int count>
__device__ Accumulate<T> tree(const Sources& in, int64_t i) {
  if constexpr (count == 1) {
    return load(static_cast<const T*>(in.at[first])[i]);
  } else {
    constexpr int half = count / 2;
    return combine<reduce>(tree<reduce, T, first, half>(in, i), tree<reduce, T, first + half, count - half>(in, i));
  }
}

template <Reduce reduce, class T, int count>
__global__ void tree_kernel(int64_t n, __grid_constant__ const Sources in, T* out, Accumulate<T> divisor) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    Accumulate<T> x = tree<reduce, T, 0, count>(in, i);
    out[i] = rounded<T>(reduce == Reduce::avg ? Accumulate<T>(x / divisor) : x);
  }
}

template <Reduce reduce, class T, int count>
void launch_tree(StreamHandle stream, int n_in, const Sources& in, int64_t n, void* out, int64_t contributions) {
  if constexpr (count > 1)
    if (n_in < count) return launch_tree<reduce, T, count - 1>(stream, n_in, in, n, out, contributions);
  launch(tree_kernel<reduce, T, count>, blocks_for(n, threads), threads, 0, stream, n, in, static_cast<T*>(out),
         Accumulate<T>(contributions));
}

template <Reduce reduce>
void reduce_as(StreamHandle stream, DType type, int count, const Sources& in, int64_t n, void* out,
               int64_t contributions) {
  if (type == DType::boolean) {  // a sum is "or"
    constexpr Reduce as = reduce == Reduce::sum ? Reduce::max : reduce;
    return launch_tree<as, uint8_t, max_reduced>(stream, count, in, n, out, contributions);
  }
  if (type == DType::i64) return launch_tree<reduce, int64_t, max_reduced>(stream, count, in, n, out, contributions);
  for_floating(
      type, [&](auto t) { launch_tree<reduce, decltype(t), max_reduced>(stream, count, in, n, out, contributions); });
}

}  // namespace

void reduce_tree(StreamHandle stream, DType type, Reduce reduce, int count, const void* const* in, int64_t n, void* out,
                 int64_t contributions) {
  Sources sources{};
  for (int i = 0; i < count; ++i) sources.at[i] = in[i];
  switch (reduce) {
    case Reduce::avg:
      return reduce_as<Reduce::avg>(stream, type, count, sources, n, out, contributions);
    case Reduce::product:
      return reduce_as<Reduce::product>(stream, type, count, sources, n, out, contributions);
    case Reduce::min:
      return reduce_as<Reduce::min>(stream, type, count, sources, n, out, contributions);
    case Reduce::max:
      return reduce_as<Reduce::max>(stream, type, count, sources, n, out, contributions);
    default:
      return reduce_as<Reduce::sum>(stream, type, count, sources, n, out, contributions);
  }
}

}  // namespace dtensor::cuda
