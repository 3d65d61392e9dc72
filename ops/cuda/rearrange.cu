#include "ops/cuda/rearrange.h"

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;

struct Reads {
  int dims;
  ReadDimension dim[max_read_dims];
};

template <class Word>
__global__ void read_kernel(int64_t n, __grid_constant__ const Reads r, const Word* x, Word* out) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    int64_t left = i, from = 0;
    for (int d = r.dims - 1; d >= 0; --d) {
      const ReadDimension& dim = r.dim[d];
      int64_t rest = quotient(left, dim.length), at = dim.first + left - rest * dim.length;
      at -= quotient(at, dim.size) * dim.size;
      from += (dim.backwards ? dim.size - 1 - at : at) * dim.stride;
      left = rest;
    }
    out[i] = x[from];
  }
}

template <class Word>
__global__ void triangle_kernel(int64_t n, int64_t rows, int64_t columns, int64_t diagonal, bool lower, const Word* x,
                                Word* out) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    int64_t row = quotient(i, columns), column = i - row * columns;
    int64_t above = column - (row - quotient(row, rows) * rows);
    out[i] = (lower ? above <= diagonal : above >= diagonal) ? x[i] : Word{};
  }
}

template <class F>
void with_word(int64_t itemsize, F f) {
  switch (itemsize) {
    case 8:
      return f(uint64_t{});
    case 4:
      return f(uint32_t{});
    case 2:
      return f(uint16_t{});
    default:
      return f(uint8_t{});
  }
}

}  // namespace

void read_anew(StreamHandle stream, int64_t itemsize, int dims, const ReadDimension* dim, const void* x, void* out) {
  Reads r{dims, {}};
  int64_t n = 1;
  for (int d = 0; d < dims; ++d) r.dim[d] = dim[d], n *= dim[d].length;
  with_word(itemsize, [&](auto word) {
    using Word = decltype(word);
    launch(read_kernel<Word>, blocks_for(n, threads), threads, 0, stream, n, r, static_cast<const Word*>(x),
           static_cast<Word*>(out));
  });
}

void triangle(StreamHandle stream, int64_t itemsize, int64_t n, int64_t rows, int64_t columns, int64_t diagonal,
              bool lower, const void* x, void* out) {
  int64_t all = n * rows * columns;
  with_word(itemsize, [&](auto word) {
    using Word = decltype(word);
    launch(triangle_kernel<Word>, blocks_for(all, threads), threads, 0, stream, all, rows, columns, diagonal, lower,
           static_cast<const Word*>(x), static_cast<Word*>(out));
  });
}

}  // namespace dtensor::cuda
