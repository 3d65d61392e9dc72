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
  switch (itemsize) {
    case 16:
      return copy_as<uint4>(stream, s, from, to);
    case 8:
      return copy_as<uint64_t>(stream, s, from, to);
    case 4:
      return copy_as<uint32_t>(stream, s, from, to);
    case 2:
      return copy_as<uint16_t>(stream, s, from, to);
    default:
      return copy_as<uint8_t>(stream, s, from, to);
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

template <class T>
__global__ void scale_kernel(int64_t n, Accumulate<T> factor, T* x) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads))
    x[i] = rounded<T>(load(x[i]) * factor);
}

}  // namespace

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
