#include "ops/cuda/gather.h"

#include <cstring>

#include "dtensor/cuda/launch.cuh"
#include "ops/pointwise/functors.h"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;

// Elements are bytes here: `bad` stands where the index is out of range.
template <class Word>
__global__ void take_kernel(int64_t n, __grid_constant__ const Indexed x, const Word* from, const Word bad, Word* out) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    int64_t row = quotient(i, x.inner), q = i - row * x.inner, a = quotient(row, x.k), j = row - a * x.k;
    int64_t index = x.index[a * x.strides[0] + j * x.strides[1] + q * x.strides[2]], here = index - x.begin;
    Word word{};
    if (index < 0 || index >= x.size)
      word = bad;
    else if (here >= 0 && here < x.n)
      word = from[(a * x.n + here) * x.inner + q];
    out[i] = word;
  }
}

// 16 bytes of elements that say that their index was out of range.
struct alignas(16) BadBytes {
  unsigned char at[16];
  explicit BadBytes(DType type) {
    for_all_types(type, [&](auto t) {
      using T = decltype(t);
      T bad;
      if constexpr (std::is_same_v<T, bool>)
        bad = true;
      else if constexpr (std::is_same_v<T, int64_t>)
        bad = functors::no_integer;
      else
        bad = T(NAN);
      for (size_t i = 0; i < sizeof(at); i += sizeof(T)) std::memcpy(at + i, &bad, sizeof(T));
    });
  }
};

template <class Word>
void take_as(Indexed x, const void* from, void* out) {
  int64_t itemsize = dtensor::itemsize(x.type);
  const BadBytes bytes(x.type);
  Word bad;
  std::memcpy(&bad, bytes.at, sizeof(Word));
  x.inner = x.inner * itemsize / int64_t(sizeof(Word));
  int64_t n = x.outer * x.k * x.inner;
  launch(take_kernel<Word>, blocks_for(n, threads), threads, 0, x.stream, n, x, static_cast<const Word*>(from), bad,
         static_cast<Word*>(out));
}

// Threads of one add_slices: more of them would only read the indices more often.
constexpr int64_t enough_threads = 132 * 2048;

// A thread has the sums [first, last) of one (outer, inner), and reads all its indices.
template <class T>
__global__ void add_kernel(int64_t tiles, int64_t tile, __grid_constant__ const Indexed x, const T* source,
                           Accumulate<T>* sum, const Accumulate<T> bad) {
  int64_t n = x.outer * tiles * x.inner;
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    int64_t row = i / x.inner, q = i - row * x.inner, a = row / tiles, first = (row - a * tiles) * tile;
    int64_t last = first + tile < x.n ? first + tile : x.n;
    const int64_t* index = x.index + a * x.strides[0] + q * x.strides[2];
    Accumulate<T>* column = sum + a * x.n * x.inner + q;
    bool all_known = true;
    for (int64_t j = 0; j < x.k; ++j) {
      int64_t at = index[j * x.strides[1]], here = at - x.begin;
      all_known &= at >= 0 && at < x.size;
      if (here >= first && here < last)
        column[here * x.inner] = functors::Add{}(column[here * x.inner], load(source[(a * x.k + j) * x.inner + q]));
    }
    if (!all_known)
      for (int64_t r = first; r < last; ++r) column[r * x.inner] = bad;
  }
}

template <class T>
void add_as(const Indexed& x, const void* source, void* sum) {
  using Sum = Accumulate<T>;
  int64_t columns = x.outer * x.inner, tile = ceil_div(columns * x.n, enough_threads);
  if (tile == 0) return;
  int64_t tiles = ceil_div(x.n, tile);
  Sum bad = std::is_same_v<T, int64_t> ? Sum(functors::no_integer) : Sum(NAN);
  launch(add_kernel<T>, blocks_for(columns * tiles, threads), threads, 0, x.stream, tiles, tile, x,
         static_cast<const T*>(source), static_cast<Sum*>(sum), bad);
}

// A thread has one (outer, inner), and writes there in order.
template <class Word>
__global__ void put_kernel(int64_t n, __grid_constant__ const Indexed x, const Word* source, const Word bad,
                           Word* out) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    int64_t a = i / x.inner, q = i - a * x.inner;
    Word* column = out + a * x.n * x.inner + q;
    bool all_known = true;
    for (int64_t j = 0; j < x.k; ++j) {
      int64_t at = x.index[j], here = at - x.begin;
      all_known &= at >= 0 && at < x.size;
      if (here >= 0 && here < x.n) column[here * x.inner] = source[(a * x.k + j) * x.inner + q];
    }
    if (!all_known)
      for (int64_t r = 0; r < x.n; ++r) column[r * x.inner] = bad;
  }
}

template <class Word>
void put_as(const Indexed& x, const void* source, void* out) {
  const BadBytes bytes(x.type);
  Word bad;
  std::memcpy(&bad, bytes.at, sizeof(Word));
  int64_t n = x.outer * x.inner;
  launch(put_kernel<Word>, blocks_for(n, threads), threads, 0, x.stream, n, x, static_cast<const Word*>(source), bad,
         static_cast<Word*>(out));
}

__global__ void one_hot_kernel(int64_t n, int64_t classes, int64_t begin, int64_t size, const int64_t* ids,
                               int64_t* out) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    int64_t row = quotient(i, classes), id = ids[row];
    out[i] = id < 0 || id >= size ? functors::no_integer : id == begin + i - row * classes;
  }
}

}  // namespace

void take(const Indexed& x, const void* from, void* out) {
  int64_t word = itemsize(x.type);
  auto fits = [&](int64_t size) {
    return x.inner * itemsize(x.type) % size == 0 && reinterpret_cast<uintptr_t>(from) % uint64_t(size) == 0;
  };
  if (x.strides[2] == 0)  // whole rows have one index
    while (word < 16 && fits(2 * word)) word *= 2;
  switch (word) {
    case 16:
      return take_as<uint4>(x, from, out);
    case 8:
      return take_as<uint64_t>(x, from, out);
    case 4:
      return take_as<uint32_t>(x, from, out);
    case 2:
      return take_as<uint16_t>(x, from, out);
    default:
      return take_as<uint8_t>(x, from, out);
  }
}

void add_slices(const Indexed& x, const void* source, void* sum) {
  if (x.type == DType::i64) return add_as<int64_t>(x, source, sum);
  for_floating(x.type, [&](auto t) { add_as<decltype(t)>(x, source, sum); });
}

void put_slices(const Indexed& x, const void* source, void* out) {
  switch (itemsize(x.type)) {
    case 8:
      return put_as<uint64_t>(x, source, out);
    case 4:
      return put_as<uint32_t>(x, source, out);
    case 2:
      return put_as<uint16_t>(x, source, out);
    default:
      return put_as<uint8_t>(x, source, out);
  }
}

void one_hot(StreamHandle stream, int64_t n, int64_t classes, int64_t begin, int64_t size, const int64_t* ids,
             int64_t* out) {
  launch(one_hot_kernel, blocks_for(n * classes, threads), threads, 0, stream, n * classes, classes, begin, size, ids,
         out);
}

}  // namespace dtensor::cuda
