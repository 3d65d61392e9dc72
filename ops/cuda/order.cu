#include <limits>

#include "ops/cuda/reduce.cuh"

namespace dtensor::cuda {
namespace {

constexpr int64_t nowhere = std::numeric_limits<int64_t>::max();
template <class T>
using Ordered = std::conditional_t<std::is_same_v<T, bool>, int, Accumulate<T>>;

// Of 16 bytes, which a State has no padding in: values of 4 bytes stand as double, which has them all.
template <class T>
using Value = std::conditional_t<sizeof(Ordered<T>) == 4, double, Ordered<T>>;
template <class T>
struct Place {
  int64_t index;
  Value<T> value;
};

// The most extreme first: NaN first of all.
template <class T, bool largest>
struct FirstExtreme : Reducer<T, Place<T>> {
  using S = Value<T>;
  using State = Place<T>;
  int64_t* out;
  __device__ State none() const { return {nowhere, S(0)}; }
  __device__ bool beyond(S a, S b) const { return (largest ? a > b : a < b) || (a != a && b == b); }
  __device__ State join(State a, State b) const {
    if (a.index == nowhere || b.index == nowhere) return a.index == nowhere ? b : a;
    if (beyond(b.value, a.value)) return b;
    if (beyond(a.value, b.value)) return a;
    return a.index < b.index ? a : b;
  }
  __device__ void add(State& s, T v, int64_t k, int) const { s = join(s, {k, S(load(v))}); }
  __device__ void finish(int64_t i, State s, int) const { out[i] = s.index == nowhere ? 0 : s.index; }
};

template <class T>
struct FirstIndex : Reducer<T, int64_t> {
  GlobalDims dims;
  const T* extreme;
  int64_t* out;
  __device__ Ordered<T> slice(int64_t i) const { return Ordered<T>(load(extreme[i])); }
  __device__ int64_t none() const { return nowhere; }
  __device__ int64_t join(int64_t a, int64_t b) const { return a < b ? a : b; }
  __device__ void add(int64_t& s, T v, int64_t k, Ordered<T> e) const {
    Ordered<T> x = Ordered<T>(load(v));
    if (k < s && (x == e || (x != x && e != e))) s = k;
  }
  __device__ void finish(int64_t i, int64_t k, Ordered<T>) const {
    int64_t index = 0, stride = 1;
    for (int d = dims.count - 1; d >= 0 && k != nowhere; --d) {
      index += (dims.begin[d] + k % dims.local[d]) * stride;
      k /= dims.local[d], stride *= dims.global[d];
    }
    out[i] = k == nowhere ? nowhere : index;
  }
};

// A warp for each slice, 32 terms at a time. Floating sums are taken in f64, as the CPU's.
template <class T>
__global__ void __launch_bounds__(row_threads, 1)
    cumsum_kernel(int64_t slices, int64_t n, int64_t inner, bool reverse, const T* x, T* y) {
  using Sum = std::conditional_t<std::is_same_v<T, int64_t>, unsigned long long, double>;
  for_rows<32>(slices, [&](int64_t i) {
    const int64_t first = i / inner * n * inner + i % inner;
    const int lane = int(threadIdx.x);
    Sum before = 0;
    for (int64_t begin = 0; begin < n; begin += 32) {
      const int64_t k = begin + lane, at = first + (reverse ? n - 1 - k : k) * inner;
      Sum sum = k < n ? Sum(load(x[at])) : Sum(0);
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        Sum left = __shfl_up_sync(0xffffffffu, sum, unsigned(step));
        if (lane >= step) sum += left;
      }
      sum += before;
      if (k < n) y[at] = rounded<T>(Accumulate<T>(sum));
      before = __shfl_sync(0xffffffffu, sum, 31);
    }
  });
}

}  // namespace

void cumsum(StreamHandle stream, DType type, const Terms& t, bool reverse, void* y) {
  auto run = [&]<class T>(T) {
    launch(cumsum_kernel<T>, row_blocks(t.outer * t.inner, 32), row_block(32), 0, stream, t.outer * t.inner, t.n,
           t.inner, reverse, as<T>(t.x), as<T>(y));
  };
  type == DType::i64 ? run(int64_t{}) : void(for_floating(type, run));
}

void first_extreme(StreamHandle stream, DType type, const Terms& t, bool largest, void* out) {
  for_all_types(type, [&]<class T>(T) {
    if (largest)
      reduce(stream, t, FirstExtreme<T, true>{{as<T>(t.x)}, as<int64_t>(out)});
    else
      reduce(stream, t, FirstExtreme<T, false>{{as<T>(t.x)}, as<int64_t>(out)});
  });
}
void first_index(StreamHandle stream, DType type, const Terms& t, const GlobalDims& dims, const void* extreme,
                 void* out) {
  for_all_types(type, [&]<class T>(T) {
    reduce(stream, t, FirstIndex<T>{{as<T>(t.x)}, dims, as<T>(extreme), as<int64_t>(out)});
  });
}

}  // namespace dtensor::cuda
