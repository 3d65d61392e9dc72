// The largest element of a row and the sum of exponentials in one read: the sum is taken relative to the largest
// element so far. Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). Included by .cu
// files only.
#pragma once

#include "ops/cuda/rows.cuh"

namespace dtensor::cuda {

// bf16 logits have no use for more than the hardware's.
template <class T>
__device__ inline Accumulate<T> exponential(Accumulate<T> x) {
  if constexpr (std::is_same_v<T, bf16>)
    return __expf(x);
  else
    return exp(x);
}

template <class A>
struct Online {
  A m, sum;  // of exp(x - m)
};
template <class T>
struct JoinOnline {
  using A = Accumulate<T>;
  // exp(a - b), and where both are the same infinity nothing is scaled.
  static __device__ A factor(A a, A b) { return a == b ? A(1) : exponential<T>(a - b); }
  __device__ Online<A> operator()(Online<A> a, Online<A> b) const {
    A m = Max{}(a.m, b.m);
    return {m, a.sum * factor(a.m, m) + b.sum * factor(b.m, m)};
  }
};

// The reduction of a team, by shuffles and then through shared memory.
template <class Of, class A, class Join>
__device__ Online<A> team_join(Online<A> (&of)[Of::sums], Join join) {
  Online<A> s;
  if constexpr (Of::sums > 1) {
    const Online<A> of_warp = join_lanes(of, join);
    auto from = [&](int lane) {
      return Online<A>{__shfl_sync(0xffffffffu, of_warp.m, lane), __shfl_sync(0xffffffffu, of_warp.sum, lane)};
    };
    s = from(0);
    for (int w = 1; w < Of::sums; ++w) s = join(s, from(4 * w));
  } else {
    s = of[0];
    for (int step = 16; step > 0; step /= 2) s = join(s, shuffled(s, step));
    if constexpr (Of::threads > 32) {
      __shared__ Online<A> of_warp[Of::threads / 32];
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = s;
      __syncthreads();
      s = of_warp[0];
      for (int w = 1; w < Of::threads / 32; ++w) s = join(s, of_warp[w]);
      __syncthreads();
    }
  }
  return s;
}

template <class Of, class T>
__device__ Online<Accumulate<T>> online_of_row(const T* x, int64_t n) {
  using A = Accumulate<T>;
  JoinOnline<T> join;
  Online<A> of[Of::sums];
  for (Online<A>& s : of) s = {-A(INFINITY), 0};
  for_row<Of>(x, n, [&](int64_t, auto pack, int k) {
    Online<A>& s = of[k];
    A m = s.m, sum = 0;
    for (int j = 0; j < pack.size; ++j) m = Max{}(m, A(load(pack.at[j])));
    if (!(m == s.m)) s.sum *= join.factor(s.m, m), s.m = m;
    A shift = m == -A(INFINITY) ? A(0) : m;  // so far all are -inf
    for (int j = 0; j < pack.size; ++j) sum += exponential<T>(load(pack.at[j]) - shift);
    s.sum += sum;
  });
  return team_join<Of>(of, join);
}

// f(Team{}) for rows of n elements.
template <class T, class F>
void with_team(int64_t n, F f) {
  if (n <= 1024) return f(Team<32, 0>{});
  if constexpr (!std::is_same_v<T, double>)
    if (n <= 4096) return f(WarpAsBlock{});
  f(Team<row_threads, 0>{});
}

}  // namespace dtensor::cuda
