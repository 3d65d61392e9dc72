// The element-wise kernel: a family is a .cu file that gives it functions of single elements
// (ops/pointwise/functors.h).
#pragma once

#include "dtensor/cuda/launch.cuh"
#include "ops/cuda/elementwise.h"
#include "ops/pointwise/functors.h"

namespace dtensor::cuda {

constexpr int elementwise_threads = 256;

// V neighbouring elements of an operand.
template <class T, int V>
struct Values {
  Accumulate<T> at[V];
};

// From element number `first` on, along the innermost dimension; V > 1 asks for a stride of 1 or 0.
template <int V, class T>
__device__ Values<T, V> read(const Elementwise::Input& in, int64_t first) {
  Values<T, V> values;
  const T* from = static_cast<const T*>(in.at);
  if (V > 1 && from && in.stride[0] == 1) {
    auto pack = *reinterpret_cast<const Pack<T, V>*>(from + first);
    for (int v = 0; v < V; ++v) values.at[v] = load(pack.at[v]);
  } else {
    Accumulate<T> x = from ? load(from[first]) : Accumulate<T>(in.value);
    for (int v = 0; v < V; ++v) values.at[v] = x;
  }
  return values;
}

// The results of a function with two outputs.
template <class T>
struct Both {
  T first, second;
};

template <int outputs, class Out, int V, class F, class... X>
__device__ void write(const Elementwise& e, int64_t first, const F& f, const X&... x) {
  Pack<Out, V> y[outputs];
  for (int v = 0; v < V; ++v) {
    auto result = f(x.at[v]...);
    if constexpr (outputs == 1)
      y[0].at[v] = rounded<Out>(result);
    else
      y[0].at[v] = rounded<Out>(result.first), y[1].at[v] = rounded<Out>(result.second);
  }
  for (int o = 0; o < outputs; ++o) store_pack(static_cast<Out*>(e.out[o]) + first, y[o]);
}

// Where element `first` of the output reads each operand.
template <int inputs>
struct Offsets {
  int64_t at[inputs] = {};
  __device__ Offsets(const Elementwise& e, int64_t first) {
    for (int d = 0; d < e.dims; ++d) {
      int64_t rest = d + 1 < e.dims ? quotient(first, e.size[d]) : 0, i = first - rest * e.size[d];
      for (int k = 0; k < inputs; ++k) at[k] += i * e.in[k].stride[d];
      first = rest;
    }
  }
};

template <int... k>
struct Operands {};

// Elements [begin, end) of the outputs, a multiple of V.
template <int V, int outputs, class F, class Out, class... In, int... k>
__device__ void walk(const Elementwise& e, int64_t begin, int64_t end, const F& f, Operands<k...>) {
  int64_t step = int64_t(gridDim.x) * elementwise_threads * V;
  for (int64_t i = begin + (int64_t(blockIdx.x) * elementwise_threads + threadIdx.x) * V; i < end; i += step) {
    Offsets<sizeof...(In)> offsets(e, i);
    write<outputs, Out, V>(e, i, f, read<V, In>(e.in[k], offsets.at[k])...);
  }
}

template <int V, int outputs, class F, class Out, class... In>
__global__ void elementwise_kernel(__grid_constant__ const Elementwise e, int64_t begin, int64_t end, const F f) {
  if constexpr (sizeof...(In) == 1)
    walk<V, outputs, F, Out, In...>(e, begin, end, f, Operands<0>{});
  else if constexpr (sizeof...(In) == 2)
    walk<V, outputs, F, Out, In...>(e, begin, end, f, Operands<0, 1>{});
  else
    walk<V, outputs, F, Out, In...>(e, begin, end, f, Operands<0, 1, 2>{});
}

// Whether V elements of the input can be read at once, or are the same.
inline bool fits(const Elementwise& e, const Elementwise::Input& in, int64_t size, int V) {
  if (!in.at) return true;
  for (int d = 1; d < e.dims; ++d)
    if (in.stride[d] % V) return in.stride[0] == 0;
  return in.stride[0] == 0 || (in.stride[0] == 1 && reinterpret_cast<uintptr_t>(in.at) % uint64_t(V * size) == 0);
}

constexpr int largest(int a) { return a; }
template <class... Sizes>
constexpr int largest(int a, int b, Sizes... rest) {
  return largest(a < b ? b : a, rest...);
}

// Accesses of 16 bytes where operands allow them; of one long run all but a last few elements.
template <int outputs, class Out, class... In, class F>
void launch_elementwise(const Elementwise& e, F f) {
  constexpr int V = 16 / largest(sizeof(Out), sizeof(In)...), threads = elementwise_threads;
  bool pack = e.dims == 1 || e.size[0] % V == 0;
  int k = 0;
  ((pack = pack && fits(e, e.in[k++], sizeof(In), V)), ...);
  for (int o = 0; o < outputs; ++o) pack = pack && is_aligned(e.out[o]);
  int64_t packed = pack ? e.n / V * V : 0, rest = e.n - packed;
  launch(elementwise_kernel<V, outputs, F, Out, In...>, blocks_for(packed, threads * V), threads, 0, e.stream, e,
         int64_t(0), packed, f);
  launch(elementwise_kernel<1, outputs, F, Out, In...>, blocks_for(rest, threads), threads, 0, e.stream, e, packed, e.n,
         f);
}

// --- Operands and outputs of one type. `make(T{})` is the function for arithmetic in T.

template <int inputs, int outputs = 1, class T, class F>
void launch_same(const Elementwise& e, F f) {
  if constexpr (inputs == 1)
    launch_elementwise<outputs, T, T>(e, f);
  else if constexpr (inputs == 2)
    launch_elementwise<outputs, T, T, T>(e, f);
  else
    launch_elementwise<outputs, T, T, T, T>(e, f);
}
template <int inputs, int outputs = 1, class Make>
bool floating_with(const Elementwise& e, Make make) {
  return for_floating(e.type, [&](auto t) {
    using T = decltype(t);
    launch_same<inputs, outputs, T>(e, make(Accumulate<T>{}));
  });
}
template <int inputs, class Make>
bool numbers_with(const Elementwise& e, Make make) {
  if (e.type != DType::i64) return floating_with<inputs>(e, make);
  launch_same<inputs, 1, int64_t>(e, make(int64_t{}));
  return true;
}
template <int inputs, class F>
bool floating(const Elementwise& e, F f) {
  return floating_with<inputs>(e, [f](auto) { return f; });
}
template <int inputs, class F>
bool numbers(const Elementwise& e, F f) {
  return numbers_with<inputs>(e, [f](auto) { return f; });
}

}  // namespace dtensor::cuda
