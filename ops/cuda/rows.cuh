// Rows in kernels: a team of threads, which is a warp or a block, works on one row at a time. It holds the beginning of
// the row in registers, or all of it in shared memory; what is longer is read again, from the cache. Included by .cu
// files only.
#pragma once

#include <cstring>
#include <type_traits>

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {

constexpr int row_threads = 256;     // of a block: (team, row_threads / team)
constexpr int row_blocks_of_sm = 4;  // 32 warps, with at most 64 registers for a thread: kernels hold no more than fits

template <class T, int n>
__device__ inline Pack<T, n> read(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <class T, int n>
__device__ inline void write(T* to, const Pack<T, n>& p) {
  store_pack(to, p);
}

// f(row) for the rows of this team.
template <int team, int teams = row_threads / team, class F>
__device__ inline void for_rows(int64_t rows, F f) {
  const int of_block = teams > 1 ? int(threadIdx.y) : 0;  // a row of the whole block's is the same number for all of it
  for (int64_t row = blockIdx.x * int64_t(teams) + of_block; row < rows; row += gridDim.x * int64_t(teams)) f(row);
}
// How a row is worked on: by a team, each thread of which holds `held` packs of it, or none where rows are too long.
template <int threads_, int held_>
struct Team {
  static constexpr int threads = threads_, held = held_, rows = row_threads / threads_, sums = 1;
  static constexpr bool staged = false;
};
// A warp that keeps its row in shared memory, without barriers. It adds to the same bits as a block of row_threads
// would: lane l stands for the threads l, l + 32, ..., and has a sum for each. Blocks are small, so that many fit.
struct Staged {
  static constexpr int threads = 32, held = 0, rows = 4, sums = row_threads / 32;
  static constexpr int at_once = 4;  // packs that a thread has under way
  static constexpr bool staged = true;
  static constexpr int64_t most_elements = 4096, most_bytes = 64 << 10;  // of a block: three are on an SM
};
// f(i, k) for the packs i of this thread, which holds pack i in place k; or adds it to sum k, where the row is staged:
// what adds nothing needs no more than `at_once` of them side by side.
template <class Of, int at_once = Of::sums, class F>
__device__ inline void for_packs(int64_t packs, F f) {
  if constexpr (Of::held > 0) {
#pragma unroll
    for (int k = 0; k < Of::held; ++k) {
      int i = int(threadIdx.x) + k * Of::threads;
      if (i < int(packs)) f(i, k);
    }
  } else if constexpr (Of::staged) {
#pragma unroll 1
    for (int first = int(threadIdx.x); first < int(packs); first += row_threads)
#pragma unroll at_once
      for (int k = 0; k < Of::sums; ++k)
        if (first + k * 32 < int(packs)) f(first + k * 32, k);
  } else {
#pragma unroll 1
    for (int64_t i = int(threadIdx.x); i < packs; i += Of::threads) f(i, 0);
  }
}
// A pack as numbers to compute with. It is read as words, of which bf16 are the halves: nvcc would keep each bf16 of a
// Pack in a register of its own.
template <class T, int n>
struct Numbers {
  Accumulate<T> at[n];
};
template <class T, int n>
struct Words {
  static constexpr bool halves = std::is_same_v<T, bf16> && n % 2 == 0;
  Pack<std::conditional_t<halves, uint32_t, T>, halves ? n / 2 : n> pack;

  __device__ Numbers<T, n> numbers() const {
    Numbers<T, n> x;
    if constexpr (halves) {
      for (int j = 0; j < n; ++j) {
        uint32_t bits = j % 2 ? pack.at[j / 2] & 0xffff0000u : pack.at[j / 2] << 16;
        memcpy(&x.at[j], &bits, 4);
      }
    } else {
      for (int j = 0; j < n; ++j) x.at[j] = load(pack.at[j]);
    }
    return x;
  }
};
template <int n, class T>
__device__ inline Words<T, n> read_words(const T* from) {
  return *reinterpret_cast<const Words<T, n>*>(from);
}
template <int n, class T>
__device__ inline Numbers<T, n> read_numbers(const T* from) {
  return read_words<n>(from).numbers();
}
template <class T, int n>
__device__ inline Pack<T, n> rounded_pack(const Numbers<T, n>& x) {
  Pack<T, n> p;
  for (int j = 0; j < n; ++j) p.at[j] = rounded<T>(x.at[j]);
  return p;
}

// The packs of a row that a thread has: those that it holds are all read before the first is used.
template <class Of, class T, int n>
struct RowPacks {
  const T* row;
  Words<T, n> words[Of::held > 0 ? Of::held : 1] = {};
  Words<T, n>* kept = nullptr;

  // `place`: of a staged row, among those that a team has at once.
  __device__ RowPacks(const T* of, int64_t packs, int place = 0) : row(of) {
    if constexpr (Of::held > 0) for_packs<Of>(packs, [&](int64_t i, int k) { words[k] = read_words<n>(row + i * n); });
    if constexpr (Of::staged) {
      kept = staged(int(threadIdx.y), packs, place);
#pragma unroll 1
      for (int first = int(threadIdx.x); first < int(packs); first += 32 * Of::at_once) {
        Words<T, n> read[Of::at_once];
#pragma unroll
        for (int k = 0; k < Of::at_once; ++k)
          if (first + k * 32 < int(packs)) read[k] = read_words<n>(row + (first + k * 32) * n);
#pragma unroll
        for (int k = 0; k < Of::at_once; ++k)
          if (first + k * 32 < int(packs)) kept[first + k * 32] = read[k];
      }
    }
  }
  // Of team `team` of the block. A lane finds what it put there; others do after a barrier.
  __device__ static Words<T, n>* staged(int team, int64_t packs, int place) {
    return dynamic_shared<Words<T, n>>() + (place * Of::rows + team) * int(packs);
  }
  __device__ Numbers<T, n> operator()(int64_t i, int k) const {
    if constexpr (Of::held > 0)
      return words[k].numbers();
    else if constexpr (Of::staged)
      return kept[i].numbers();
    else
      return read_numbers<n>(row + i * n);
  }
  // Has pack i be p from now on; a row that is not held has it in memory.
  __device__ void hold(int64_t i, int k, const Pack<T, n>& p) {
    if constexpr (Of::held > 0) memcpy(&words[k], &p, sizeof(p));
    if constexpr (Of::staged) memcpy(&kept[i], &p, sizeof(p));
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

// What a thread adds up of the packs of a row.
template <class Of, class A>
struct Sums {
  A of[Of::sums] = {};

  __device__ A& at(int k) { return of[Of::sums > 1 ? k : 0]; }
  // Over the team, to all of its threads.
  __device__ A total() const {
    if constexpr (Of::staged) {
      static_assert(Of::sums == 8);
      // As block_reduce adds: the lanes of each warp that is stood for, then these warps. A step halves how many of
      // them a lane still adds for, until bits 4, 3 and 2 of its number say of which warp it has the sum.
      A x[Of::sums];
      for (int k = 0; k < Of::sums; ++k) x[k] = of[k];
#pragma unroll
      for (int step = 16, left = Of::sums / 2; step > 0; step /= 2, left /= 2) {
        const bool upper = left && threadIdx.x & unsigned(step);
        for (int k = 0; k < (left ? left : 1); ++k) {
          const A mine = upper ? x[k + left] : x[k], others = upper ? x[k] : x[k + left];
          x[k] = mine + __shfl_xor_sync(0xffffffffu, others, step);
        }
      }
#pragma unroll
      for (int step = 16; step > 2; step /= 2) x[0] += __shfl_xor_sync(0xffffffffu, x[0], step);
      return x[0] + A(0);  // a block adds zeros: never -0
    } else {
      return team_sum<Of::threads>(of[0]);
    }
  }
};

template <int n>
using Int = std::integral_constant<int, n>;
// f(Int<elements of a pack>{}, Team{}) for rows of d elements: packs of 16 bytes where rows begin at multiples of them,
// and a warp for rows that it holds.
template <class T, class F>
void for_team(int64_t d, bool aligned, F f) {
  constexpr int n = std::is_same_v<T, double> ? 1 : 16 / sizeof(T);  // f64 is for tests: one path will do
  auto with_team = [&](auto size) {
    if (d <= 32 * 4 * size)
      f(size, Team<32, 4>{});
    else if (d <= row_threads * 4 * size)
      f(size, Team<row_threads, 4>{});
    else
      f(size, Team<row_threads, 0>{});
  };
  if constexpr (n > 1)
    if (aligned && d % n == 0) return with_team(Int<n>{});
  with_team(Int<1>{});
}
// The same, but for rows that a warp cannot hold, `kept` of which it can keep in shared memory at once.
template <class T, class F>
void for_warp_team(int64_t d, bool aligned, int64_t kept, F f) {
  constexpr int n = 16 / sizeof(T);
  if constexpr (!std::is_same_v<T, double>)
    if (aligned && d % n == 0 && d > 32 * 4 * n && d <= Staged::most_elements &&
        Staged::rows * kept * d * int64_t(sizeof(T)) <= Staged::most_bytes)
      return f(Int<n>{}, Staged{});
  for_team<T>(d, aligned, f);
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

template <class Of>
dim3 row_block() {
  return dim3(unsigned(Of::threads), unsigned(Of::rows));
}
// Shared memory for `kept` rows of d elements of each team.
template <class Of, class T>
size_t staged_bytes(int64_t kept, int64_t d) {
  return Of::staged ? size_t(Of::rows * kept * d) * sizeof(T) : 0;
}
inline dim3 row_block(int team) { return dim3(unsigned(team), unsigned(row_threads / team)); }
inline unsigned row_blocks(int64_t rows, int team, int64_t most = 132 * 16) {
  return blocks_for(rows, row_threads / team, most);
}

}  // namespace dtensor::cuda
