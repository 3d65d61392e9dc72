// Rows in kernels: a team of threads, which is a warp or a block, works on one row at a time. It holds the beginning of
// the row in registers; what is longer is read again, from the cache. Included by .cu files only.
#pragma once

#include <cstring>
#include <type_traits>

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {

constexpr int row_threads = 256;  // of a block: (team, row_threads / team)
constexpr int held_packs = 4;     // that a thread holds of a row

template <class T, int n>
__device__ inline Pack<T, n> read(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <class T, int n>
__device__ inline void write(T* to, const Pack<T, n>& p) {
  store_pack(to, p);
}

// f(row) for the rows of this team.
template <int team, class F>
__device__ inline void for_rows(int64_t rows, F f) {
  constexpr int teams = row_threads / team;
  for (int64_t row = blockIdx.x * int64_t(teams) + threadIdx.y; row < rows; row += gridDim.x * int64_t(teams)) f(row);
}
// f(i, k) for the packs i of this thread: the first ones are held in place k < held_packs.
template <int team, class F>
__device__ inline void for_packs(int64_t packs, F f) {
#pragma unroll
  for (int k = 0; k < held_packs; ++k) {
    int64_t i = int(threadIdx.x) + k * team;
    if (i < packs) f(i, k);
  }
#pragma unroll 1
  for (int64_t i = int(threadIdx.x) + held_packs * team; i < packs; i += team) f(i, held_packs);
}
template <class T, int n>
struct Held {
  const T* row;
  Pack<T, n> packs[held_packs];

  __device__ void hold(int k, const Pack<T, n>& p) {
    if (k < held_packs) packs[k] = p;
  }
  __device__ Pack<T, n> operator()(int64_t i, int k) const {
    return k < held_packs ? packs[k] : read<T, n>(row + i * n);
  }
};

// f(k, pack) for all elements of a row, k the place of a pack's first: packs of 16 bytes where the row has them, single
// elements before and behind. So it is for rows of any width, which begin anywhere.
template <int team, class T, class F>
__device__ inline void for_row(const T* row, int64_t d, F f) {
  constexpr int n = Pack<T>::size;
  int64_t head = int64_t((16 - reinterpret_cast<uintptr_t>(row) % 16) % 16 / sizeof(T));
  if (head > d) head = d;
  int64_t packs = (d - head) / n, tail = head + packs * n;
  if (int(threadIdx.x) < head) f(int64_t(threadIdx.x), read<T, 1>(row + threadIdx.x));
#pragma unroll 2
  for (int64_t i = int(threadIdx.x); i < packs; i += team) f(head + i * n, read<T, n>(row + head + i * n));
  if (tail + int(threadIdx.x) < d) f(tail + int(threadIdx.x), read<T, 1>(row + tail + threadIdx.x));
}

// Any State of words of 4 bytes from the lane whose number differs by `step`.
template <class State>
__device__ inline State shuffled(State s, int step) {
  static_assert(sizeof(State) % 4 == 0);
  uint32_t words[sizeof(State) / 4];
  memcpy(words, &s, sizeof(State));
#pragma unroll
  for (uint32_t& w : words) w = __shfl_xor_sync(0xffffffffu, w, step);
  memcpy(&s, words, sizeof(State));
  return s;
}
// To all threads of the team.
template <int team, class T>
__device__ inline T team_sum(T x) {
  return block_reduce<team>(x, Sum{}, T(0));
}

template <int n>
using Int = std::integral_constant<int, n>;
// f(Int<elements of a pack>{}, Int<team>{}) for rows of d elements: packs of 16 bytes where rows begin at multiples of
// them, and a warp for rows that it holds.
template <class T, class F>
void for_team(int64_t d, bool aligned, F f) {
  constexpr int n = std::is_same_v<T, double> ? 1 : 16 / sizeof(T);  // f64 is for tests: one path will do
  auto with_team = [&](auto size) {
    if (d <= 32 * held_packs * size)
      f(size, Int<32>{});
    else
      f(size, Int<row_threads>{});
  };
  if constexpr (n > 1)
    if (aligned && d % n == 0) return with_team(Int<n>{});
  with_team(Int<1>{});
}
template <class... T>
bool all_aligned(const T*... pointers) {
  return (is_aligned(pointers) && ...);
}

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

inline dim3 row_block(int team) { return dim3(unsigned(team), unsigned(row_threads / team)); }
inline unsigned row_blocks(int64_t rows, int team, int64_t most = 132 * 16) {
  return blocks_for(rows, row_threads / team, most);
}

}  // namespace dtensor::cuda
