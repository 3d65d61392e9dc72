// Kernels that give each element of a part the word of its index in the whole (law 5).
#pragma once

#include "dtensor/cuda/launch.cuh"
#include "dtensor/cuda/random.h"
#include "dtensor/philox.h"

namespace dtensor::cuda {

// The index in the whole of the first element of a run of a part.
__device__ inline int64_t first_of_run(const Part& part, int64_t run) {
  int64_t index = part.first;
  for (int d = part.dims - 1; d >= 0; --d) {
    int64_t rest = quotient(run, part.size[d]);
    index += (run - rest * part.size[d]) * part.stride[d];
    run = rest;
  }
  return index;
}

// Of a stream at step 0; `step`, where it is not null, is in device memory.
struct Key {
  uint64_t at_step_0;
  const int64_t* step = nullptr;
  __device__ uint64_t get() const { return step ? key_at_step(at_step_0, *step) : at_step_0; }
};

// Runs of elements that are neighbours in the whole: of a Part. Others have the same members.
struct PartRuns {
  Part part;
  __host__ __device__ int64_t count() const { return part.n / part.run; }
  __host__ __device__ int64_t size() const { return part.run; }
  __device__ int64_t first(int64_t run) const { return first_of_run(part, run); }
};

// out[i] = f(word of element i, x[i]), or f(word) without x. A thread has the four words of a counter. `aligned`: four
// elements can be read and written at once.
template <class T, class Runs, class F>
__global__ void words_kernel(Key from, __grid_constant__ const Runs runs, const T* x, T* out, bool aligned, const F f) {
  const uint64_t key = from.get();
  const int64_t size = runs.size(), counters = (size + 6) / 4;  // that a run can have words of
  const int64_t n = runs.count() * counters, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t run = quotient(i, counters), first = runs.first(run);
    int64_t counter = first / 4 + i - run * counters;
    int64_t begin = counter * 4 - first, at = run * size + begin;  // of the counter, in the run and in the part
    if (begin >= size) continue;
    Philox words(key, uint64_t(counter));
    auto value = [&](int k, T old) {
      if constexpr (requires { f(words.word[k], old); })
        return f(words.word[k], old);
      else
        return f(words.word[k]);
    };
    if (aligned && begin >= 0 && begin + 4 <= size && at % 4 == 0) {
      Pack<T, 4> pack{};
      if (x) pack = *reinterpret_cast<const Pack<T, 4>*>(x + at);
      for (int k = 0; k < 4; ++k) pack.at[k] = value(k, pack.at[k]);
      store_pack(out + at, pack);
    } else {
      for (int k = 0; k < 4; ++k)
        if (begin + k >= 0 && begin + k < size) out[at + k] = value(k, x ? x[at + k] : T{});
    }
  }
}

template <class T, class Runs, class F>
void launch_words(StreamHandle stream, Key key, const Runs& runs, const T* x, T* out, const F& f) {
  if (runs.count() == 0) return;
  int64_t n = runs.count() * ((runs.size() + 6) / 4);
  launch(words_kernel<T, Runs, F>, blocks_for(n, 256), 256, 0, stream, key, runs, x, out,
         is_aligned(x) && is_aligned(out), f);
}

}  // namespace dtensor::cuda
