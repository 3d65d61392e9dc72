#include "ops/cuda/rotary.h"

#include "ops/cuda/rows.cuh"

namespace dtensor::cuda {
namespace {

// Sine and cosine by their series on the eighth of a turn next to a quarter: CUDA's own would need local memory for
// huge angles, of which a whole number of turns can be left out here.
__device__ inline void sin_cos(double angle, double& sine, double& cosine) {
  constexpr double pi = 3.14159265358979323846;
  const double turns = angle * (0.5 / pi), part = turns - rint(turns), quarter = rint(4 * part);
  const double x = (part - quarter * 0.25) * (2 * pi), z = -x * x;
  double s = 1, c = 1;
#pragma unroll
  for (int k = 16; k > 0; k -= 2) s = 1 + s * z * (1.0 / (k * (k + 1))), c = 1 + c * z * (1.0 / (k * (k - 1)));
  s *= x;
  const int q = int(quarter) & 3;
  sine = q == 0 ? s : q == 1 ? c : q == 2 ? -s : -c;
  cosine = q == 0 ? c : q == 1 ? -s : q == 2 ? -c : s;
}

// table: of each position the cosines of its pairs, then the sines.
template <class A>
__global__ void __launch_bounds__(row_threads) table_kernel(__grid_constant__ const Rotary r, int64_t n, A* table) {
  for (int64_t i = blockIdx.x * int64_t(row_threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(row_threads)) {
    const int64_t row = quotient(i, r.pairs), pair = i - row * r.pairs;
    double sine, cosine;
    sin_cos(double(r.position ? r.position[row] : r.begin + row) * r.frequencies[pair], sine, cosine);
    A* to = table + row * 2 * r.pairs + pair;
    to[0] = A(r.scale * cosine), to[r.pairs] = A(r.scale * (r.inverse ? -sine : sine));
  }
}

// A thread has n pairs of a head, or n of the elements that stay; the heads of a position are next to each other, so
// that a warp reads few rows of the table.
template <class T, int n>
__global__ void __launch_bounds__(row_threads, row_blocks_of_sm)
    rotary_kernel(__grid_constant__ const Rotary r, const Accumulate<T>* table) {
  using A = Accumulate<T>;
  const int half = r.pairs, turning = half / n, items_of_head = turning + (int(r.d) - 2 * half) / n;
  const int64_t first_heads = r.tensor[0].heads, heads = first_heads + (r.count > 1 ? r.tensor[1].heads : 0),
                items = r.batch * r.positions * heads * items_of_head;
  for (int64_t at = blockIdx.x * int64_t(row_threads) + threadIdx.x; at < items;
       at += gridDim.x * int64_t(row_threads)) {
    const int64_t head_at = quotient(at, items_of_head), token = quotient(head_at, heads),
                  b = quotient(token, r.positions), s = token - b * r.positions;
    const int64_t of_all = head_at - token * heads;
    const bool is_first = of_all < first_heads;
    const RotaryTensor& tensor = r.tensor[is_first ? 0 : 1];
    const int64_t head = is_first ? of_all : of_all - first_heads;
    const int item = int(at - head_at * items_of_head);
    const T* x = static_cast<const T*>(tensor.x) + b * tensor.batch_stride + s * tensor.position_stride +
                 head * tensor.head_stride;
    T* y = static_cast<T*>(tensor.y) + (token * tensor.heads + head) * r.d;
    if (item >= turning) {
      const int i = 2 * half + (item - turning) * n;
      write<T, n>(y + i, read<T, n>(x + i));
      continue;
    }
    const int i = item * n;
    const A* cosine = table + (r.position_stride ? token : s) * 2 * half + i;
    const Numbers<T, n> u = read_numbers<n>(x + i), v = read_numbers<n>(x + half + i);
    const Numbers<A, n> c = read_numbers<n>(cosine), z = read_numbers<n>(cosine + half);
    Numbers<T, n> p, q;
    for (int j = 0; j < n; ++j) {
      p.at[j] = u.at[j] * c.at[j] - v.at[j] * z.at[j];
      q.at[j] = v.at[j] * c.at[j] + u.at[j] * z.at[j];
    }
    write<T, n>(y + i, rounded_pack(p)), write<T, n>(y + half + i, rounded_pack(q));
  }
}

template <class T, int n>
void run(StreamHandle stream, const Rotary& r) {
  using A = Accumulate<T>;
  int64_t heads = 0;
  for (int t = 0; t < r.count; ++t) heads += r.tensor[t].heads;
  const int64_t items = r.batch * r.positions * heads * (r.d - r.pairs) / n;
  if (items == 0) return;
  const int64_t angles = r.table_size() / 2;
  launch(table_kernel<A>, blocks_for(angles, row_threads), row_threads, 0, stream, r, angles, as<A>(r.table));
  launch(rotary_kernel<T, n>, blocks_for(items, row_threads), row_threads, 0, stream, r, as<A>(r.table));
}

}  // namespace

void rotary(StreamHandle stream, DType type, const Rotary& r) {
  if (r.d == 0) return;
  for_floating(type, [&]<class T>(T) {
    constexpr int n = 16 / sizeof(T);
    bool packed = r.pairs % n == 0 && r.d % n == 0;
    for (int t = 0; t < r.count; ++t) {
      const RotaryTensor& x = r.tensor[t];
      packed = packed && all_aligned(as<T>(x.x), as<T>(x.y)) && x.batch_stride % n == 0 && x.position_stride % n == 0 &&
               x.head_stride % n == 0;
    }
    packed ? run<T, n>(stream, r) : run<T, 1>(stream, r);
  });
}

}  // namespace dtensor::cuda
