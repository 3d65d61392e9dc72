#include <limits>

#include "ops/cuda/reduce.cuh"

namespace dtensor::cuda {
namespace {

// A sum of terms, written by finish().
template <class T>
struct Total : Reducer<T, Accumulate<T>> {
  using A = Accumulate<T>;
  __device__ A none() const { return 0; }
  __device__ A join(A a, A b) const { return a + b; }
};

template <class T>
struct SumExact : Total<T> {
  Accumulate<T>* out;
  using A = Accumulate<T>;
  __device__ void add(A& s, T v, int64_t, int) const { s += load(v); }
  __device__ void finish(int64_t i, A s, int) const { out[i] = s; }
};

template <class T>
struct CentredSquares : Total<T> {
  using A = Accumulate<T>;
  const A* sum;
  A per_count, factor;
  bool root;
  A* out;          // one of the two
  T* rounded_out;  //
  __device__ A slice(int64_t i) const { return sum ? sum[i] * per_count : A(0); }
  __device__ void add(A& s, T v, int64_t, A mean) const { s += (load(v) - mean) * (load(v) - mean); }
  __device__ void finish(int64_t i, A s, A) const {
    s *= factor;
    if (root) s = sqrt(s);
    out ? void(out[i] = s) : void(rounded_out[i] = rounded<T>(s));
  }
};
template <class T>
struct VarBackward {
  using A = Accumulate<T>;
  const T *x, *dy, *y;
  const A* sum;
  A per_count, factor;
  bool root;
  T* dx;
  __device__ void operator()(int64_t at, int64_t i) const {
    A g = load(dy[i]), of_y = load(y[i]);
    A slope = root ? (of_y == A(0) ? A(0) : g / of_y) : 2 * g;
    dx[at] = rounded<T>(slope * factor * (load(x[at]) - sum[i] * per_count));
  }
};

// --- norms

template <class T, class Which>
struct Extreme : Reducer<T, Accumulate<T>> {
  using A = Accumulate<T>;
  A* out;
  A worst;
  bool size;
  __device__ A none() const { return worst; }
  __device__ void add(A& s, T v, int64_t, int) const { s = Which{}(s, size ? abs(load(v)) : load(v)); }
  __device__ A join(A a, A b) const { return Which{}(a, b); }
  __device__ void finish(int64_t i, A s, int) const { out[i] = s; }
};

// The power of two below m, which scales terms so that their powers neither overflow nor vanish.
template <class A>
__device__ A scale_of(A m, A p) {
  return p == A(0) || p == A(1) || m == A(0) || !isfinite(m) ? A(1) : A(ldexp(A(1), ilogb(m)));
}
template <class A>
__device__ A power(A v, A scale, A p) {
  if (p == A(0)) return A(v != A(0));
  if (p == A(1)) return abs(v);
  v = abs(v / scale);
  return p == A(2) ? v * v : A(pow(v, p));
}
template <class A>
__device__ A root_of(A sum, A scale, A p) {
  if (p == A(0) || p == A(1)) return sum;
  return scale * (p == A(2) ? A(sqrt(sum)) : A(pow(sum, A(1) / p)));
}
template <class T>
struct PowerSum : Total<T> {
  using A = Accumulate<T>;
  const A* m;
  A p;
  A* out;   // one of the two: the sum,
  T* norm;  // or its root
  __device__ A slice(int64_t i) const { return scale_of(m[i], p); }
  __device__ void add(A& s, T v, int64_t, A scale) const { s += power(load(v), scale, p); }
  __device__ void finish(int64_t i, A s, A scale) const {
    out ? void(out[i] = s) : void(norm[i] = rounded<T>(root_of(s, scale, p)));
  }
};
template <class A>
struct NormRoot {
  const A *sum, *m;
  A p;
  A* out;
  __device__ void operator()(int64_t, int64_t i) const { out[i] = root_of(sum[i], scale_of(m[i], p), p); }
};
template <class T>
struct NormBackward {
  using A = Accumulate<T>;
  const T *x, *dy, *y;
  A p;
  T* dx;
  __device__ A slope(A v, A size) const {
    if (v == A(0) || size == A(0) || p == A(0)) return 0;
    if (p == A(1)) return copysign(A(1), v);
    return p == A(2) ? v / size : A(copysign(pow(abs(v) / size, p - A(1)), v));
  }
  __device__ void operator()(int64_t at, int64_t i) const {
    dx[at] = rounded<T>(load(dy[i]) * slope(load(x[at]), load(y[i])));
  }
};

// --- log of the sum of exponentials

template <class T>
struct ExpSum : Total<T> {
  using A = Accumulate<T>;
  const A* m;
  A* out;                                                                    // one of the two: the sum,
  T* logs;                                                                   // or m + its logarithm
  __device__ A slice(int64_t i) const { return isinf(m[i]) ? A(0) : m[i]; }  // inf - inf would be NaN
  __device__ void add(A& s, T v, int64_t, A shift) const { s += exp(load(v) - shift); }
  __device__ void finish(int64_t i, A s, A) const {
    out ? void(out[i] = s) : void(logs[i] = rounded<T>(log(s) + m[i]));
  }
};
template <class T>
struct LogSumExpBackward {
  const T *x, *dy, *y;
  T* dx;
  __device__ void operator()(int64_t at, int64_t i) const {
    dx[at] = rounded<T>(load(dy[i]) * exp(load(x[at]) - load(y[i])));
  }
};

}  // namespace

void sum_exact(StreamHandle stream, DType type, const Terms& t, void* out) {
  for_floating(type, [&]<class T>(T) { reduce(stream, t, SumExact<T>{{{as<T>(t.x)}}, as<Accumulate<T>>(out)}); });
}
void centred_squares(StreamHandle stream, DType type, const Terms& t, const Centred& c, void* out) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    reduce(stream, t,
           CentredSquares<T>{{{as<T>(t.x)}},
                             as<A>(c.sum),
                             A(1 / c.count),
                             A(c.factor),
                             c.root,
                             c.rounded ? nullptr : as<A>(out),
                             as<T>(out)});
  });
}
void var_backward(StreamHandle stream, DType type, const Terms& x, const Centred& c, const void* dy, const void* y,
                  void* dx) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    for_each(
        stream, x,
        VarBackward<T>{as<T>(x.x), as<T>(dy), as<T>(y), as<A>(c.sum), A(1 / c.count), A(c.factor), c.root, as<T>(dx)});
  });
}

void extreme(StreamHandle stream, DType type, const Terms& t, bool smallest, bool size, void* out) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    constexpr A infinity = std::numeric_limits<A>::infinity();
    if (smallest)
      reduce(stream, t, Extreme<T, Min>{{as<T>(t.x)}, as<A>(out), infinity, size});
    else
      reduce(stream, t, Extreme<T, Max>{{as<T>(t.x)}, as<A>(out), -infinity, size});
  });
}
void power_sum(StreamHandle stream, DType type, const Terms& t, double p, const void* m, bool root, void* out) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    reduce(stream, t, PowerSum<T>{{{as<T>(t.x)}}, as<A>(m), A(p), root ? nullptr : as<A>(out), as<T>(out)});
  });
}
void norm_root(StreamHandle stream, DType type, int64_t n, double p, const void* sums, const void* m, void* out) {
  auto run = [&]<class A>(A) {
    for_each(stream, {nullptr, n, 1, 1}, NormRoot<A>{as<A>(sums), as<A>(m), A(p), as<A>(out)});
  };
  type == DType::f64 ? run(double{}) : run(float{});
}
void norm_backward(StreamHandle stream, DType type, const Terms& x, double p, const void* dy, const void* y, void* dx) {
  for_floating(type, [&]<class T>(T) {
    for_each(stream, x, NormBackward<T>{as<T>(x.x), as<T>(dy), as<T>(y), Accumulate<T>(p), as<T>(dx)});
  });
}

void exp_sum(StreamHandle stream, DType type, const Terms& t, const void* m, bool log, void* out) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    reduce(stream, t, ExpSum<T>{{{as<T>(t.x)}}, as<A>(m), log ? nullptr : as<A>(out), as<T>(out)});
  });
}
void logsumexp_backward(StreamHandle stream, DType type, const Terms& x, const void* dy, const void* y, void* dx) {
  for_floating(type, [&]<class T>(T) {
    for_each(stream, x, LogSumExpBackward<T>{as<T>(x.x), as<T>(dy), as<T>(y), as<T>(dx)});
  });
}

}  // namespace dtensor::cuda
