#include "ops/cuda/norm.h"

#include "ops/cuda/rows.cuh"

namespace dtensor::cuda {
namespace {

// Reciprocals come from the host: a division, and a square root, would be a call that spills registers.
__device__ inline float rstd_of(float mean_square, float eps) { return rsqrtf(mean_square + eps); }
__device__ inline double rstd_of(double mean_square, double eps) { return rsqrt(mean_square + eps); }

template <class T, class A = Accumulate<T>>
struct Forward {
  int64_t rows, d;
  A per_d, eps;  // 1 / d
  bool centre, given;
  const T *x, *residual, *w, *b;
  T *y, *h;
  A *mean, *rstd;
};

template <class T, int n, int team>
__global__ void __launch_bounds__(row_threads, 1) forward_kernel(__grid_constant__ const Forward<T> p) {
  using A = Accumulate<T>;
  const int64_t packs = p.d / n;
  for_rows<team>(p.rows, [&](int64_t row) {
    const int64_t at = row * p.d;
    Held<T, n> x{(p.residual ? p.h : p.x) + at, {}};
    A sum = 0;
    for_packs<team>(packs, [&](int64_t i, int k) {
      Pack<T, n> v = read<T, n>(p.x + at + i * n);
      if (p.residual) {
        Pack<T, n> r = read<T, n>(p.residual + at + i * n);
        for (int j = 0; j < n; ++j) v.at[j] = rounded<T>(load(v.at[j]) + load(r.at[j]));
        write<T, n>(p.h + at + i * n, v);
      }
      x.hold(k, v);
      for (int j = 0; j < n; ++j) sum += p.centre ? load(v.at[j]) : load(v.at[j]) * load(v.at[j]);
    });
    A mean = 0, rstd;
    if (p.given) {
      mean = p.mean ? p.mean[row] : A(0), rstd = p.rstd[row];
    } else {
      if (p.centre) {
        mean = team_sum<team>(sum) * p.per_d, sum = 0;
        for_packs<team>(packs, [&](int64_t i, int k) {
          Pack<T, n> v = x(i, k);
          for (int j = 0; j < n; ++j) sum += (load(v.at[j]) - mean) * (load(v.at[j]) - mean);
        });
      }
      rstd = rstd_of(team_sum<team>(sum) * p.per_d, p.eps);
      if (threadIdx.x == 0) {
        if (p.centre) p.mean[row] = mean;
        p.rstd[row] = rstd;
      }
    }
    for_packs<team>(packs, [&](int64_t i, int k) {
      Pack<T, n> v = x(i, k), w{}, b{};
      if (p.w) w = read<T, n>(p.w + i * n);
      if (p.b) b = read<T, n>(p.b + i * n);
      for (int j = 0; j < n; ++j) {
        A y = (load(v.at[j]) - mean) * rstd;
        if (p.w) y *= load(w.at[j]);
        if (p.b) y += load(b.at[j]);
        v.at[j] = rounded<T>(y);
      }
      write<T, n>(p.y + at + i * n, v);
    });
  });
}

template <class A>
__global__ void statistics_kernel(int64_t rows, A per_n, A eps, const A* sum, const A* squares, A* mean, A* rstd) {
  for (int64_t r = blockIdx.x * int64_t(row_threads) + threadIdx.x; r < rows; r += gridDim.x * int64_t(row_threads)) {
    mean[r] = sum ? sum[r] * per_n : A(0);
    rstd[r] = rstd_of(squares[r] * per_n, eps);
  }
}

// --- Gradients

template <class T, class A = Accumulate<T>>
struct Backward {
  int64_t rows, d;
  A per_row;  // 1 / elements of a whole row
  const T *dy, *x, *w;
  const A *mean, *rstd, *sums, *alongs;
  const T* more;
  T* dx;
  A *sum, *along, *partial;
};

// dx = rstd * (dy*w - mean of dy*w - mean of dy*w*normed * normed), normed = (x - mean)*rstd. `weight`: also each
// block's part of the sum over the rows of dy * normed, for rows that are held.
template <class T, int n, int team, bool weight>
__global__ void __launch_bounds__(row_threads, 1) backward_kernel(__grid_constant__ const Backward<T> p) {
  using A = Accumulate<T>;
  const int64_t packs = p.d / n;
  A dw[weight ? held_packs * n : 1] = {};
  for_rows<team>(p.rows, [&](int64_t row) {
    const int64_t at = row * p.d;
    Held<T, n> dy{p.dy + at, {}}, x{p.x + at, {}};
    const A mean = p.mean ? p.mean[row] : A(0), rstd = p.rstd[row];
    A sum = 0, along = 0;
    for_packs<team>(packs, [&](int64_t i, int k) {
      Pack<T, n> g = read<T, n>(p.dy + at + i * n), v = read<T, n>(p.x + at + i * n), w{};
      dy.hold(k, g), x.hold(k, v);
      if (p.w) w = read<T, n>(p.w + i * n);
      for (int j = 0; j < n; ++j) {
        A normed = (load(v.at[j]) - mean) * rstd, gw = p.w ? load(g.at[j]) * load(w.at[j]) : load(g.at[j]);
        sum += gw, along += gw * normed;
        if constexpr (weight)
          if (k < held_packs) dw[k * n + j] += load(g.at[j]) * normed;
      }
    });
    if (p.sums) {
      sum = p.sums[row], along = p.alongs[row];
    } else {
      if (p.mean || p.sum) sum = team_sum<team>(sum);
      along = team_sum<team>(along);
    }
    if (!p.dx) {
      if (threadIdx.x == 0) p.sum[row] = sum, p.along[row] = along;
      return;
    }
    sum = p.mean ? sum * p.per_row : A(0);  // without a mean nothing was subtracted
    along *= p.per_row;
    for_packs<team>(packs, [&](int64_t i, int k) {
      Pack<T, n> g = dy(i, k), v = x(i, k), w{}, more{};
      if (p.w) w = read<T, n>(p.w + i * n);
      if (p.more) more = read<T, n>(p.more + at + i * n);
      for (int j = 0; j < n; ++j) {
        A normed = (load(v.at[j]) - mean) * rstd, gw = p.w ? load(g.at[j]) * load(w.at[j]) : load(g.at[j]);
        A dx = rstd * (gw - sum - along * normed);
        v.at[j] = rounded<T>(p.more ? dx + load(more.at[j]) : dx);
      }
      write<T, n>(p.dx + at + i * n, v);
    });
  });
  if constexpr (weight) {  // the teams of the block one after the other
    A* of_team = dynamic_shared<A>();
    for_packs<team>(packs, [&](int64_t i, int k) {
      if (k < held_packs)
        for (int j = 0; j < n; ++j) of_team[threadIdx.y * p.d + i * n + j] = dw[k * n + j];
    });
    __syncthreads();
    for (int64_t j = int(threadIdx.y) * team + int(threadIdx.x); j < p.d; j += row_threads) {
      A total = 0;
      for (int t = 0; t < row_threads / team; ++t) total += of_team[t * p.d + j];
      p.partial[blockIdx.x * p.d + j] = total;
    }
  }
}

constexpr int column_lanes = 8;  // blocks are (32 columns, 8 rows at a time)

// The sum over the lanes of a column, to lane 0.
template <class A>
__device__ A column_sum(A x) {
  __shared__ A of_lane[column_lanes][32];
  of_lane[threadIdx.y][threadIdx.x] = x;
  __syncthreads();
  A total = 0;
  if (threadIdx.y == 0)
    for (int t = 0; t < column_lanes; ++t) total += of_lane[t][threadIdx.x];
  __syncthreads();
  return total;
}

// Part blockIdx.y of the rows: the sums of dy * (x - mean)*rstd and, if wanted, of dy behind them.
template <class T>
__global__ void affine_kernel(__grid_constant__ const Backward<T> p, int64_t rows_of_part, bool bias) {
  using A = Accumulate<T>;
  int64_t j = blockIdx.x * int64_t(32) + threadIdx.x, begin = blockIdx.y * rows_of_part,
          end = begin + rows_of_part < p.rows ? begin + rows_of_part : p.rows;
  A dw = 0, db = 0;
  if (j < p.d)
    for (int64_t row = begin + threadIdx.y; row < end; row += column_lanes) {
      A g = load(p.dy[row * p.d + j]);
      dw += g * ((load(p.x[row * p.d + j]) - (p.mean ? p.mean[row] : A(0))) * p.rstd[row]);
      db += g;
    }
  dw = column_sum(dw), db = column_sum(db);
  if (threadIdx.y > 0 || j >= p.d) return;
  p.partial[blockIdx.y * p.d + j] = dw;
  if (bias) p.partial[(gridDim.y + blockIdx.y) * p.d + j] = db;
}
template <class T>
__global__ void sum_parts_kernel(int64_t parts, int64_t d, const Accumulate<T>* partial, T* out) {
  int64_t j = blockIdx.x * int64_t(32) + threadIdx.x;
  Accumulate<T> sum = 0;
  if (j < d)
    for (int64_t part = threadIdx.y; part < parts; part += column_lanes) sum += partial[part * d + j];
  sum = column_sum(sum);
  if (threadIdx.y == 0 && j < d) out[j] = rounded<T>(sum);
}
template <class T>
void sum_parts(StreamHandle stream, int64_t parts, int64_t d, const Accumulate<T>* partial, void* out) {
  launch(sum_parts_kernel<T>, dim3(unsigned(ceil_div(d, 32))), dim3(32, column_lanes), 0, stream, parts, d, partial,
         as<T>(out));
}

// Whether the gradient of the weight is summed up by the kernel that writes dx: rows are held, and nothing is centred
// (which would need twice the registers).
template <class T>
bool is_fused(int64_t d, int n, bool centred) {
  return !centred && d <= row_threads * held_packs * n;
}
constexpr int64_t fused_blocks = 132 * 2, most_parts = 64;
int64_t parts_of(int64_t rows) {
  int64_t parts = ceil_div(rows, 256);
  return parts < most_parts ? parts : most_parts;
}

template <class T>
void backward(StreamHandle stream, const NormBackward& b) {
  using A = Accumulate<T>;
  Backward<T> p{b.rows,        b.d,           A(1) / A(b.whole), as<T>(b.dy),    as<T>(b.x),
                as<T>(b.w),    as<A>(b.mean), as<A>(b.rstd),     as<A>(b.sums),  as<A>(b.alongs),
                as<T>(b.more), as<T>(b.dx),   as<A>(b.sum),      as<A>(b.along), as<A>(b.partial)};
  bool aligned = all_aligned(p.dy, p.x, p.w, p.more, p.dx), done = false;
  for_team<T>(b.d, aligned, [&](auto n, auto team) {
    done = b.dw && b.dx && !b.db && is_fused<T>(b.d, n, b.mean != nullptr);
    if (!done) {
      launch(backward_kernel<T, n, team, false>, row_blocks(b.rows, team), row_block(team), 0, stream, p);
      return;
    }
    unsigned blocks = row_blocks(b.rows, team, fused_blocks);
    launch(backward_kernel<T, n, team, true>, blocks, row_block(team),
           size_t(row_threads / team * b.d * int64_t(sizeof(A))), stream, p);
    sum_parts<T>(stream, blocks, b.d, p.partial, b.dw);
  });
  if (!b.dw || done) return;
  int64_t parts = parts_of(b.rows), rows = parts ? ceil_div(b.rows, parts) : 0;
  launch(affine_kernel<T>, dim3(unsigned(ceil_div(b.d, 32)), unsigned(parts)), dim3(32, column_lanes), 0, stream, p,
         rows, b.db != nullptr);
  sum_parts<T>(stream, parts, b.d, p.partial, b.dw);
  if (b.db) sum_parts<T>(stream, parts, b.d, p.partial + parts * b.d, b.db);
}

}  // namespace

void norm(StreamHandle stream, DType type, const Norm& n) {
  for_floating(type, [&](auto t) {
    using T = decltype(t);
    using A = Accumulate<T>;
    Forward<T> p{n.rows,     n.d,        A(1) / A(n.d),     A(n.eps),     n.centre,
                 n.given,    as<T>(n.x), as<T>(n.residual), as<T>(n.w),   as<T>(n.b),
                 as<T>(n.y), as<T>(n.h), as<A>(n.mean),     as<A>(n.rstd)};
    for_team<T>(n.d, all_aligned(p.x, p.residual, p.w, p.b, p.y, p.h), [&](auto size, auto team) {
      launch(forward_kernel<T, size, team>, row_blocks(n.rows, team), row_block(team), 0, stream, p);
    });
  });
}

void norm_statistics(StreamHandle stream, DType type, int64_t rows, double n, double eps, const void* sum,
                     const void* squares, void* mean, void* rstd) {
  auto run = [&](auto t) {
    using A = decltype(t);
    launch(statistics_kernel<A>, blocks_for(rows, row_threads), row_threads, 0, stream, rows, A(1 / n), A(eps),
           as<A>(sum), as<A>(squares), as<A>(mean), as<A>(rstd));
  };
  type == DType::f64 ? run(double{}) : run(float{});
}

int64_t norm_partials(int64_t rows, int64_t d) {
  static_assert(fused_blocks >= 2 * most_parts);
  return (rows < 2 ? 2 : rows < fused_blocks ? rows : fused_blocks) * d;
}

void norm_backward(StreamHandle stream, DType type, const NormBackward& n) {
  for_floating(type, [&](auto t) { backward<decltype(t)>(stream, n); });
}

}  // namespace dtensor::cuda
