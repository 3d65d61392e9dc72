#include "ops/cuda/loss.h"

#include "ops/cuda/online.cuh"
#include "ops/cuda/reduce.cuh"

namespace dtensor::cuda {
namespace {

struct Target {
  int64_t column;  // here, -1 if elsewhere
  bool ignored, bad;
};
struct TargetList {
  const int64_t* target;
  int64_t ignore, classes, begin, end;
  __device__ Target operator[](int64_t row) const {
    int64_t t = target[row];
    bool ignored = t == ignore;
    return {!ignored && t >= begin && t < end ? t - begin : -1, ignored, !ignored && (t < 0 || t >= classes)};
  }
};
TargetList list_of(const Targets& t) { return {as<int64_t>(t.target), t.ignore, t.classes, t.begin, t.end}; }

// (m - picked) + log_sum, as ops/layer/loss.cpp has it.
template <class A>
struct LossOfRow {
  A kept, moved;  // 1 - smoothing, smoothing / classes
  bool smooth;
  __device__ A operator()(A m, A log_sum, A picked, A below) const {
    A d = m - picked;
    if (smooth) d = kept * d + moved * below;
    return d + log_sum;
  }
};
template <class A>
LossOfRow<A> loss_of_row(double smoothing, int64_t classes) {
  return {A(1 - smoothing), A(smoothing / double(classes)), smoothing > 0};
}

// --- The whole row at once

template <class T>
struct Forward {
  using A = Accumulate<T>;
  int64_t rows, v;
  const T* x;
  TargetList targets;
  LossOfRow<A> loss_of;
  A *loss, *m, *log_sum, *counts;
};

template <class T, class Of>
__global__ void __launch_bounds__(row_threads, blocks_of_sm<T>) forward_kernel(__grid_constant__ const Forward<T> p) {
  using A = Accumulate<T>;
  for_rows<Of::threads, Of::rows>(p.rows, [&](int64_t row) {
    const T* x = p.x + row * p.v;
    Online<A> s = online_of_row<Of>(x, p.v);
    A below = 0;
    if (p.loss_of.smooth) {
      Sums<Of, A> sum;
      for_row<Of>(x, p.v, [&](int64_t, auto pack, int k) {
        for (int j = 0; j < pack.size; ++j) sum.at(k) += s.m - load(pack.at[j]);
      });
      below = sum.total();
    }
    if (threadIdx.x > 0) return;
    Target t = p.targets[row];
    A m = s.m + A(0), log_sum = log(s.sum) + (m - m), loss = 0;  // no -0; NaN where m is infinite
    if (!t.ignored) loss = t.bad ? A(NAN) : p.loss_of(m, log_sum, load(x[t.column]), below);
    p.loss[row] = loss, p.m[row] = m, p.log_sum[row] = log_sum, p.counts[row] = A(!t.ignored);
  });
}

// --- Where other ranks have some classes

template <class T>
struct OfMaximum : Reducer<T, Accumulate<T>> {
  using A = Accumulate<T>;
  const A* m;
  A* out;
  __device__ A slice(int64_t i) const { return m[i]; }
  __device__ A none() const { return 0; }
  __device__ A join(A a, A b) const { return a + b; }
  __device__ void finish(int64_t i, A s, A) const { out[i] = s; }
};
template <class T>
struct SumExp : OfMaximum<T> {
  using A = Accumulate<T>;
  __device__ void add(A& s, T v, int64_t, A m) const { s += exponential<T>(load(v) - m); }
};
template <class T>
struct SumBelow : OfMaximum<T> {
  using A = Accumulate<T>;
  __device__ void add(A& s, T v, int64_t, A m) const { s += m - load(v); }
};

template <class T>
struct Pick {
  const T* x;
  int64_t v;
  TargetList targets;
  Accumulate<T>* out;
  __device__ void operator()(int64_t, int64_t row) const {
    using A = Accumulate<T>;
    Target t = targets[row];
    out[row] = t.bad ? A(NAN) : t.column >= 0 ? A(load(x[row * v + t.column])) : A(0);
  }
};

template <class A>
struct Rows {
  TargetList targets;
  LossOfRow<A> loss_of;
  const A *m, *log_sum, *picked, *below;
  A *loss, *counts;
  __device__ void operator()(int64_t, int64_t row) const {
    bool ignored = targets[row].ignored;
    loss[row] = ignored ? A(0) : loss_of(m[row], log_sum[row], picked[row], below ? below[row] : A(0));
    counts[row] = A(!ignored);
  }
};

// --- Gradient

template <class T>
struct Backward {
  using A = Accumulate<T>;
  int64_t rows, v;
  const T* x;
  const A *m, *log_sum, *scale;
  int64_t scale_stride;
  TargetList targets;
  A smoothing, per_class;  // 1 / classes
  T* dx;
};

template <class T, class Of>
__global__ void __launch_bounds__(row_threads, blocks_of_sm<T>) backward_kernel(__grid_constant__ const Backward<T> p) {
  using A = Accumulate<T>;
  for_rows<Of::threads, Of::rows>(p.rows, [&](int64_t row) {
    const Target t = p.targets[row];
    const A m = p.m[row], log_sum = p.log_sum[row];
    const A scale = t.bad ? A(NAN) : t.ignored ? A(0) : p.scale[row * p.scale_stride];
    const A moved = p.smoothing * scale, of_all = moved * p.per_class;
    T* dx = p.dx + row * p.v;
    for_row<Of>(p.x + row * p.v, p.v, [&](int64_t k, auto pack, int) {
      for (int j = 0; j < pack.size; ++j) {
        A here = A(k + j == t.column), g = (exponential<T>((load(pack.at[j]) - m) - log_sum) - here) * scale;
        g += moved * here - of_all;
        pack.at[j] = rounded<T>(t.ignored ? A(0) : g);
      }
      write<T, pack.size>(dx + k, pack);
    });
  });
}

template <class From, class To>
__global__ void scaled_kernel(int64_t n, const From* x, const Accumulate<From>* factor, To* y) {
  for (int64_t i = blockIdx.x * int64_t(row_threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(row_threads))
    y[i] = rounded<To>(load(x[i]) * *factor);
}

}  // namespace

void cross_entropy_forward(StreamHandle stream, DType type, const CrossEntropy& e) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    Forward<T> p{e.rows,        e.v,        as<T>(e.x),       list_of(e.targets), loss_of_row<A>(e.smoothing, e.v),
                 as<A>(e.loss), as<A>(e.m), as<A>(e.log_sum), as<A>(e.counts)};
    with_team<T>(e.v, [&]<class Of>(Of) {
      launch(forward_kernel<T, Of>, blocks_for(e.rows, Of::rows), row_block<Of>(), 0, stream, p);
    });
  });
}

void sum_exp(StreamHandle stream, DType type, const Terms& t, const void* m, void* out) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    reduce(stream, t, SumExp<T>{{{as<T>(t.x)}, as<A>(m), as<A>(out)}});
  });
}
void sum_below(StreamHandle stream, DType type, const Terms& t, const void* m, void* out) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    reduce(stream, t, SumBelow<T>{{{as<T>(t.x)}, as<A>(m), as<A>(out)}});
  });
}
void pick(StreamHandle stream, DType type, int64_t rows, int64_t v, const void* x, const Targets& t, void* out) {
  for_floating(type, [&]<class T>(T) {
    for_each(stream, {nullptr, rows, 1, 1}, Pick<T>{as<T>(x), v, list_of(t), as<Accumulate<T>>(out)});
  });
}
void cross_entropy_rows(StreamHandle stream, DType type, int64_t rows, const Targets& t, double smoothing,
                        const void* m, const void* log_sum, const void* picked, const void* below, void* loss,
                        void* counts) {
  auto run = [&]<class A>(A) {
    for_each(stream, {nullptr, rows, 1, 1},
             Rows<A>{list_of(t), loss_of_row<A>(smoothing, t.classes), as<A>(m), as<A>(log_sum), as<A>(picked),
                     as<A>(below), as<A>(loss), as<A>(counts)});
  };
  type == DType::f64 ? run(double{}) : run(float{});
}

void cross_entropy_backward(StreamHandle stream, DType type, const CrossEntropyBackward& e) {
  for_floating(type, [&]<class T>(T) {
    using A = Accumulate<T>;
    Backward<T> p{e.rows,           e.v,
                  as<T>(e.x),       as<A>(e.m),
                  as<A>(e.log_sum), as<A>(e.scale),
                  e.scale_stride,   list_of(e.targets),
                  A(e.smoothing),   A(1 / double(e.targets.classes)),
                  as<T>(e.dx)};
    with_team<T>(e.v, [&]<class Of>(Of) {
      launch(backward_kernel<T, Of>, blocks_for(e.rows, Of::rows), row_block<Of>(), 0, stream, p);
    });
  });
}

void scaled(StreamHandle stream, DType from, DType to, int64_t n, const void* x, const void* factor, void* y) {
  for_floating(from, [&]<class From>(From) {
    for_floating(to, [&]<class To>(To) {
      if constexpr (std::is_same_v<Accumulate<From>, Accumulate<To>>)
        launch(scaled_kernel<From, To>, blocks_for(n, row_threads), row_threads, 0, stream, n, as<From>(x),
               as<Accumulate<From>>(factor), as<To>(y));
    });
  });
}

}  // namespace dtensor::cuda
