#include "ops/cuda/optim.h"

#include <algorithm>

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;
constexpr int64_t chunk = threads * 4 * 8;  // elements of one block
constexpr int most = 400;                   // tensors of one launch: what a kernel's parameters hold

// Tensors and the number of the first block of each.
template <class T>
struct Table {
  T at[most];
  unsigned first[most + 1];
  int count;

  // Takes tensors from `from` on; what is left is for the next launch.
  int take(const T* from, int n) {
    count = std::min(n, most);
    unsigned block = 0;
    for (int i = 0; i < count; ++i) {
      at[i] = from[i];
      first[i] = block;
      block += unsigned(ceil_div(from[i].n, chunk));
    }
    first[count] = block;
    return count;
  }
};

// The tensor of a block: the last one that begins there or before. Empty tensors have no block.
template <class T>
__device__ int tensor_of(const Table<T>& table, unsigned block) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (table.first[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// A parameter's element and the states of it.
__device__ void update(const AdamWConstants& c, const AdamWNumbers& s, float grad_scale, float& p, float g, float& m,
                       float& v) {
  g *= grad_scale;
  m = fmaf(1 - c.beta1, g - m, m);
  v = fmaf((1 - c.beta2) * g, g, c.beta2 * v);
  p = fmaf(-s.step_size, m / (sqrtf(v) / s.root + c.eps), p * s.keep);
}

__global__ void __launch_bounds__(threads)
    adamw_kernel(__grid_constant__ const Table<AdamWTensor> table, AdamWConstants c, const AdamWNumbers* numbers,
                 const double* of_gradients, float clip) {
  float norm = float(*of_gradients);
  if (!isfinite(norm)) return;
  float grad_scale = clip > 0 && norm > clip ? clip / (norm + 1e-6f) : 1.0f;
  AdamWNumbers s = *numbers;
  int i = tensor_of(table, blockIdx.x);
  const AdamWTensor& t = table.at[i];
  bf16* copy = static_cast<bf16*>(t.copy);
  int64_t begin = int64_t(blockIdx.x - table.first[i]) * chunk, end = min(begin + chunk, t.n), whole = end / 4 * 4;
  for (int64_t at = begin + threadIdx.x * 4; at < whole; at += threads * 4) {
    auto p = load_pack(t.value + at), g = load_pack(t.gradient + at), m = load_pack(t.exp_avg + at),
         v = load_pack(t.exp_avg_sq + at);
    for (int k = 0; k < 4; ++k) update(c, s, grad_scale, p.at[k], g.at[k], m.at[k], v.at[k]);
    store_pack(t.value + at, p), store_pack(t.exp_avg + at, m), store_pack(t.exp_avg_sq + at, v);
    if (!copy) continue;
    Pack<bf16, 4> values;
    for (int k = 0; k < 4; ++k) values.at[k] = rounded<bf16>(p.at[k]);
    store_pack(copy + at, values);
  }
  if (int64_t at = whole + threadIdx.x; at >= begin && at < end) {  // the last up to three
    update(c, s, grad_scale, t.value[at], t.gradient[at], t.exp_avg[at], t.exp_avg_sq[at]);
    if (copy) copy[at] = rounded<bf16>(t.value[at]);
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    squares_kernel(__grid_constant__ const Table<ConstTensor> table, double* of_block) {
  int i = tensor_of(table, blockIdx.x);
  const T* x = static_cast<const T*>(table.at[i].data);
  int64_t begin = int64_t(blockIdx.x - table.first[i]) * chunk, end = min(begin + chunk, table.at[i].n);
  constexpr int n = Pack<T>::size;
  int64_t whole = end / n * n;
  double sum = 0;
  auto add = [&](const T& value) {
    double v = double(load(value));
    sum += v * v;
  };
  for (int64_t at = begin + threadIdx.x * n; at < whole; at += threads * n) {
    auto pack = load_pack(x + at);
    for (int k = 0; k < n; ++k) add(pack.at[k]);
  }
  if (int64_t at = whole + threadIdx.x; at >= begin && at < end) add(x[at]);
  double total = block_reduce<threads>(sum, Sum{}, 0.0);
  if (threadIdx.x == 0) of_block[blockIdx.x] = total;
}

__global__ void __launch_bounds__(threads) add_kernel(int64_t n, const double* x, double* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += threads) sum += x[i];
  sum = block_reduce<threads>(sum, Sum{}, 0.0);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

void adamw(StreamHandle stream, const AdamWTensor* tensors, int count, const AdamWConstants& constants,
           const AdamWNumbers* numbers, const double* norm, float clip) {
  for (int done = 0; done < count;) {
    Table<AdamWTensor> table;
    done += table.take(tensors + done, count - done);
    launch(adamw_kernel, table.first[table.count], threads, 0, stream, table, constants, numbers, norm, clip);
  }
}

int64_t sum_squares_scratch(const ConstTensor* tensors, int count) {
  int64_t n = 0;
  for (int i = 0; i < count; ++i) n += ceil_div(tensors[i].n, chunk);
  return n;
}

void sum_squares(StreamHandle stream, DType type, const ConstTensor* tensors, int count, double* scratch, double* out) {
  int64_t blocks = 0;
  for (int done = 0; done < count;) {
    Table<ConstTensor> table;
    done += table.take(tensors + done, count - done);
    for_floating(type, [&](auto t) {
      launch(squares_kernel<decltype(t)>, table.first[table.count], threads, 0, stream, table, scratch + blocks);
    });
    blocks += table.first[table.count];
  }
  launch(add_kernel, 1, threads, 0, stream, blocks, static_cast<const double*>(scratch), out);
}

}  // namespace dtensor::cuda
