#include "ops/cuda/softmax.h"

#include "ops/cuda/online.cuh"

namespace dtensor::cuda {
namespace {

// y = f(x - m, s) of a row, what is added up to sum s.
template <class Of, class T, class F>
__device__ inline void map_row(const T* x, int64_t n, Accumulate<T> m, T* y, F f) {
  for_row<Of>(x, n, [&](int64_t k, auto pack, int s) {
    for (int j = 0; j < pack.size; ++j) pack.at[j] = rounded<T>(f(load(pack.at[j]) - m, s));
    write<T, pack.size>(y + k, pack);
  });
}

template <class T, class Of, bool log>
__global__ void __launch_bounds__(row_threads, blocks_of_sm<T>)
    softmax_kernel(int64_t rows, int64_t n, const T* x, T* y) {
  using A = Accumulate<T>;
  for_rows<Of::threads, Of::rows>(rows, [&](int64_t row) {
    Online<A> s = online_of_row<Of>(x + row * n, n);
    A log_sum = ::log(s.sum), factor = A(1) / s.sum;
    map_row<Of>(x + row * n, n, s.m, y + row * n,
                [&](A shifted, int) { return log ? shifted - log_sum : exp(shifted) * factor; });
  });
}
template <class T, class Of, bool log>
__global__ void __launch_bounds__(row_threads, blocks_of_sm<T>)
    shifted_kernel(int64_t rows, int64_t n, const T* x, const T* m, T* sums, T* y) {
  using A = Accumulate<T>;
  for_rows<Of::threads, Of::rows>(rows, [&](int64_t row) {
    A log_sum = log ? ::log(load(sums[row])) : A(0);
    Sums<Of, A> sum;
    map_row<Of>(x + row * n, n, load(m[row]), y + row * n, [&](A shifted, int k) {
      if (log) return shifted - log_sum;
      A e = exp(shifted);
      sum.at(k) += e;
      return e;
    });
    if (log) return;
    const A total = sum.total();
    if (threadIdx.x == 0) sums[row] = rounded<T>(total);
  });
}
template <class T, class Of, bool log>
__global__ void __launch_bounds__(row_threads, blocks_of_sm<T>)
    backward_kernel(int64_t rows, int64_t n, const T* dy, const T* y, const Accumulate<T>* sums, T* dx) {
  using A = Accumulate<T>;
  for_rows<Of::threads, Of::rows>(rows, [&](int64_t row) {
    const T *of_dy = dy + row * n, *of_y = y + row * n;
    A sum = 0;
    if (sums) {
      sum = sums[row];
    } else {
      Sums<Of, A> of_row;
      for_row<Of>(of_dy, n, [&](int64_t k, auto g, int s) {
        auto v = read<T, g.size>(of_y + k);
        for (int j = 0; j < g.size; ++j) of_row.at(s) += log ? load(g.at[j]) : load(g.at[j]) * load(v.at[j]);
      });
      sum = of_row.total();
    }
    for_row<Of>(of_dy, n, [&](int64_t k, auto g, int) {
      auto v = read<T, g.size>(of_y + k);
      for (int j = 0; j < g.size; ++j) {
        A a = load(g.at[j]), b = load(v.at[j]);
        g.at[j] = rounded<T>(log ? a - exp(b) * sum : b * (a - sum));
      }
      write<T, g.size>(dx + row * n + k, g);
    });
  });
}

// f(T{}, Team{}, std::bool_constant<log>{})
template <class F>
void for_softmax(DType type, int64_t n, bool log, F f) {
  for_floating(type, [&](auto t) {
    with_team<decltype(t)>(n, [&](auto team) { log ? f(t, team, std::true_type{}) : f(t, team, std::false_type{}); });
  });
}

}  // namespace

void softmax(StreamHandle stream, DType type, bool log, int64_t rows, int64_t n, const void* x, void* y) {
  for_softmax(type, n, log, [&]<class T, class Of>(T, Of, auto of_log) {
    launch(softmax_kernel<T, Of, of_log>, blocks_for(rows, Of::rows), row_block<Of>(), 0, stream, rows, n, as<T>(x),
           as<T>(y));
  });
}
void softmax_shifted(StreamHandle stream, DType type, bool log, int64_t rows, int64_t n, const void* x, const void* m,
                     void* sum, void* y) {
  for_softmax(type, n, log, [&]<class T, class Of>(T, Of, auto of_log) {
    launch(shifted_kernel<T, Of, of_log>, blocks_for(rows, Of::rows), row_block<Of>(), 0, stream, rows, n, as<T>(x),
           as<T>(m), as<T>(sum), as<T>(y));
  });
}
void softmax_backward(StreamHandle stream, DType type, bool log, int64_t rows, int64_t n, const void* dy, const void* y,
                      const void* sum, void* dx) {
  for_softmax(type, n, log, [&]<class T, class Of>(T, Of, auto of_log) {
    launch(backward_kernel<T, Of, of_log>, blocks_for(rows, Of::rows), row_block<Of>(), 0, stream, rows, n, as<T>(dy),
           as<T>(y), as<Accumulate<T>>(sum), as<T>(dx));
  });
}

}  // namespace dtensor::cuda
