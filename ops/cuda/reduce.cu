#include "ops/cuda/reduce.cuh"

#include <limits>

namespace dtensor::cuda {
namespace {

// What is computed in: bool as int, integers unsigned, because these wrap around.
template <class T>
struct number {
  using type = Accumulate<T>;
};
template <>
struct number<int64_t> {
  using type = uint64_t;
};
template <>
struct number<bool> {
  using type = int;
};
template <class T>
using Number = typename number<T>::type;

// f(T{}) for floating types and i64.
template <class F>
void for_numbers(DType t, F f) {
  t == DType::i64 ? f(int64_t{}) : void(for_floating(t, f));
}

template <class T>
struct Add : Reducer<T, Number<T>> {
  T* out;
  using S = Number<T>;
  __device__ S none() const { return 0; }
  __device__ void add(S& s, T v, int64_t, int) const { s += S(load(v)); }
  __device__ S join(S a, S b) const { return a + b; }
  __device__ void finish(int64_t i, S s, int) const { out[i] = rounded<T>(Accumulate<T>(s)); }
};
template <class T>
struct CountNonzero : Reducer<T, int64_t> {
  int64_t* out;
  __device__ int64_t none() const { return 0; }
  __device__ void add(int64_t& s, T v, int64_t, int) const { s += load(v) != Accumulate<T>(0); }
  __device__ int64_t join(int64_t a, int64_t b) const { return a + b; }
  __device__ void finish(int64_t i, int64_t s, int) const { out[i] = s; }
};
template <class T>
struct Multiply : Reducer<T, Number<T>> {
  T* out;
  using S = Number<T>;
  __device__ S none() const { return 1; }
  __device__ void add(S& s, T v, int64_t, int) const { s *= S(load(v)); }
  __device__ S join(S a, S b) const { return a * b; }
  __device__ void finish(int64_t i, S s, int) const { out[i] = rounded<T>(Accumulate<T>(s)); }
};

template <class T>
using Ordered = std::conditional_t<std::is_same_v<T, bool>, int, Accumulate<T>>;
template <class T, class Which>
struct Extreme : Reducer<T, Ordered<T>> {
  T* out;
  Ordered<T> worst;
  using S = Ordered<T>;
  __device__ S none() const { return worst; }
  __device__ void add(S& s, T v, int64_t, int) const { s = Which{}(s, S(load(v))); }
  __device__ S join(S a, S b) const { return Which{}(a, b); }
  __device__ void finish(int64_t i, S s, int) const { out[i] = rounded<T>(Accumulate<T>(s + S(0))); }  // no -0
};
template <class T>
Ordered<T> worst_of(bool largest) {
  using S = Ordered<T>;
  if (std::is_same_v<T, bool>) return S(!largest);
  using Limits = std::numeric_limits<S>;
  if (Limits::has_infinity) return largest ? -Limits::infinity() : Limits::infinity();
  return largest ? Limits::lowest() : Limits::max();
}

// Squares of f32 are exact in f64, and so nearly is their sum.
template <class T>
struct SumSquares : Reducer<T, double> {
  double* out;
  __device__ double none() const { return 0; }
  __device__ void add(double& s, T v, int64_t, int) const { s += double(load(v)) * double(load(v)); }
  __device__ double join(double a, double b) const { return a + b; }
  __device__ void finish(int64_t i, double s, int) const { out[i] = s; }
};

template <class A>
struct ProductState {
  A product;
  int zeros[sizeof(A) / 4];  // one, and room up to a multiple of the product's size
};
template <class T>
struct ProductParts : Reducer<T, ProductState<Accumulate<T>>> {
  T* out;
  int64_t* zeros;
  using A = Accumulate<T>;
  using S = ProductState<A>;
  __device__ S none() const { return {A(1), {}}; }
  __device__ void add(S& s, T v, int64_t, int) const {
    bool zero = load(v) == A(0);
    s.product *= zero ? A(1) : load(v), s.zeros[0] += zero;
  }
  __device__ S join(S a, const S& b) const {
    a.product *= b.product, a.zeros[0] += b.zeros[0];
    return a;
  }
  __device__ void finish(int64_t i, const S& s, int) const { out[i] = rounded<T>(s.product), zeros[i] = s.zeros[0]; }
};
template <class T>
struct ProductBackward {
  const T *x, *dy, *products;
  const int64_t* zeros;
  T* dx;
  __device__ void operator()(int64_t at, int64_t i) const {
    using A = Accumulate<T>;
    A v = load(x[at]), p = load(products[i]), others = 0;
    if (v == A(0) && zeros[i] == 1) others = p;
    if (v != A(0) && zeros[i] == 0) others = p / v;
    dx[at] = rounded<T>(load(dy[i]) * others);
  }
};

template <class T>
struct Ties : Reducer<T, int64_t> {
  const T* y;
  T* out;
  __device__ Accumulate<T> slice(int64_t i) const { return load(y[i]); }
  __device__ int64_t none() const { return 0; }
  __device__ void add(int64_t& s, T v, int64_t, Accumulate<T> of_slice) const { s += load(v) == of_slice; }
  __device__ int64_t join(int64_t a, int64_t b) const { return a + b; }
  __device__ void finish(int64_t i, int64_t s, Accumulate<T>) const { out[i] = rounded<T>(Accumulate<T>(s)); }
};
template <class T>
struct TiesBackward {
  const T *x, *share, *y;
  T* dx;
  __device__ void operator()(int64_t at, int64_t i) const {
    using A = Accumulate<T>;
    dx[at] = rounded<T>(load(share[i]) * A(load(x[at]) == load(y[i])));  // NaN where y is
  }
};

}  // namespace

void reduce(StreamHandle stream, Reducing what, DType type, const Terms& t, void* out) {
  switch (what) {
    case Reducing::sum:
      return for_numbers(type, [&]<class T>(T) { reduce(stream, t, Add<T>{{as<T>(t.x)}, as<T>(out)}); });
    case Reducing::product:
      return for_numbers(type, [&]<class T>(T) { reduce(stream, t, Multiply<T>{{as<T>(t.x)}, as<T>(out)}); });
    case Reducing::count_nonzero:
      for_all_types(type, [&]<class T>(T) { reduce(stream, t, CountNonzero<T>{{as<T>(t.x)}, as<int64_t>(out)}); });
      return;
    case Reducing::max:
      for_all_types(type, [&]<class T>(T) {
        reduce(stream, t, Extreme<T, Max>{{as<T>(t.x)}, as<T>(out), worst_of<T>(true)});
      });
      return;
    case Reducing::min:
      for_all_types(type, [&]<class T>(T) {
        reduce(stream, t, Extreme<T, Min>{{as<T>(t.x)}, as<T>(out), worst_of<T>(false)});
      });
      return;
    case Reducing::sum_squares:
      for_floating(type, [&]<class T>(T) { reduce(stream, t, SumSquares<T>{{as<T>(t.x)}, as<double>(out)}); });
  }
}

void product_parts(StreamHandle stream, DType type, const Terms& t, void* products, void* zeros) {
  for_floating(type, [&]<class T>(T) {
    reduce(stream, t, ProductParts<T>{{as<T>(t.x)}, as<T>(products), as<int64_t>(zeros)});
  });
}
void product_backward(StreamHandle stream, DType type, const Terms& x, const void* dy, const void* products,
                      const void* zeros, void* dx) {
  for_floating(type, [&]<class T>(T) {
    for_each(stream, x, ProductBackward<T>{as<T>(x.x), as<T>(dy), as<T>(products), as<int64_t>(zeros), as<T>(dx)});
  });
}
void ties(StreamHandle stream, DType type, const Terms& t, const void* y, void* out) {
  for_numbers(type, [&]<class T>(T) { reduce(stream, t, Ties<T>{{as<T>(t.x)}, as<T>(y), as<T>(out)}); });
}
void ties_backward(StreamHandle stream, DType type, const Terms& x, const void* share, const void* y, void* dx) {
  for_numbers(type, [&]<class T>(T) {
    for_each(stream, x, TiesBackward<T>{as<T>(x.x), as<T>(share), as<T>(y), as<T>(dx)});
  });
}

}  // namespace dtensor::cuda
