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

template <class T, int n, class Of>
__global__ void __launch_bounds__(row_threads, row_blocks_of_sm) forward_kernel(__grid_constant__ const Forward<T> p) {
  using A = Accumulate<T>;
  const int64_t packs = p.d / n;
  for_rows<Of::threads, Of::rows>(p.rows, [&](int64_t row) {
    const int64_t at = row * p.d;
    RowPacks<Of, T, n> x(p.x + at, packs);
    if (p.residual) {
      RowPacks<Of, T, n> residual(p.residual + at, packs, 1);
      for_packs<Of>(packs, [&](int64_t i, int k) {
        Numbers<T, n> v = x(i, k), r = residual(i, k);
        for (int j = 0; j < n; ++j) v.at[j] += r.at[j];
        Pack<T, n> h = rounded_pack(v);
        write<T, n>(p.h + at + i * n, h);
        x.hold(i, k, h);
      });
      x.row = p.h + at;
    }
    Sums<Of, A> sum;
    for_packs<Of>(packs, [&](int64_t i, int k) {
      Numbers<T, n> v = x(i, k);
      for (int j = 0; j < n; ++j) sum.at(k) += p.centre ? v.at[j] : v.at[j] * v.at[j];
    });
    A mean = 0, rstd;
    if (p.given) {
      mean = p.mean ? p.mean[row] : A(0), rstd = p.rstd[row];
    } else {
      if (p.centre) {
        mean = sum.total() * p.per_d, sum = {};
        for_packs<Of>(packs, [&](int64_t i, int k) {
          Numbers<T, n> v = x(i, k);
          for (int j = 0; j < n; ++j) sum.at(k) += (v.at[j] - mean) * (v.at[j] - mean);
        });
      }
      rstd = rstd_of(sum.total() * p.per_d, p.eps);
      if (threadIdx.x == 0) {
        if (p.centre) p.mean[row] = mean;
        p.rstd[row] = rstd;
      }
    }
    for_packs<Of>(packs, [&](int64_t i, int k) {
      Numbers<T, n> y = x(i, k), w{}, b{};
      if (p.w) w = read_numbers<n>(p.w + i * n);
      if (p.b) b = read_numbers<n>(p.b + i * n);
      for (int j = 0; j < n; ++j) {
        y.at[j] = (y.at[j] - mean) * rstd;
        if (p.w) y.at[j] *= w.at[j];
        if (p.b) y.at[j] += b.at[j];
      }
      write<T, n>(p.y + at + i * n, rounded_pack(y));
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
// block's part of the sum over the rows of dy * normed, for rows that are held or staged and not centred.
template <class T, int n, class Of, bool weight>
__global__ void __launch_bounds__(row_threads, row_blocks_of_sm)
    backward_kernel(__grid_constant__ const Backward<T> p) {
  using A = Accumulate<T>;
  using Packs = RowPacks<Of, T, n>;
  const int64_t packs = p.d / n;
  // The block's sums, [j][pack], so that lanes use all banks: of each team, where rows are held, which adds to places
  // of its own; or of the block, behind the staged rows.
  constexpr bool held = weight && Of::held > 0;
  __shared__ A dw[held ? Of::rows : 1][held ? n : 1][held ? Of::threads * Of::held : 1];
  if constexpr (held)
    for_packs<Of>(packs, [&](int64_t i, int) {
      for (int j = 0; j < n; ++j) dw[threadIdx.y][j][i] = 0;
    });
  auto of_row = [&](int64_t row) {
    const int64_t at = row * p.d;
    Packs dy(p.dy + at, packs), x(p.x + at, packs, 1);
    const bool centred = !weight && p.mean;
    const A mean = centred ? p.mean[row] : A(0), rstd = p.rstd[row];
    Sums<Of, A> sums, alongs;
    for_packs<Of>(packs, [&](int64_t i, int k) {
      Numbers<T, n> g = dy(i, k), v = x(i, k), w{};
      if (p.w) w = read_numbers<n>(p.w + i * n);
      for (int j = 0; j < n; ++j) {
        A normed = (v.at[j] - mean) * rstd, gw = p.w ? g.at[j] * w.at[j] : g.at[j];
        sums.at(k) += gw, alongs.at(k) += gw * normed;
        if constexpr (held) dw[threadIdx.y][j][i] += g.at[j] * normed;
      }
    });
    A sum = 0, along;
    if (p.sums) {
      sum = p.sums[row], along = p.alongs[row];
    } else {
      if (centred || p.sum) sum = sums.total();
      along = alongs.total();
    }
    if (!weight && !p.dx) {
      if (threadIdx.x == 0) p.sum[row] = sum, p.along[row] = along;
      return;
    }
    sum = centred ? sum * p.per_row : A(0);  // without a mean nothing was subtracted
    along *= p.per_row;
    for_packs<Of, 2>(packs, [&](int64_t i, int k) {
      Numbers<T, n> g = dy(i, k), v = x(i, k), w{}, more{};
      if (p.w) w = read_numbers<n>(p.w + i * n);
      if (p.more) more = read_numbers<n>(p.more + at + i * n);
      for (int j = 0; j < n; ++j) {
        A normed = (v.at[j] - mean) * rstd, gw = p.w ? g.at[j] * w.at[j] : g.at[j];
        A dx = rstd * (gw - sum - along * normed);
        v.at[j] = p.more ? dx + more.at[j] : dx;
      }
      write<T, n>(p.dx + at + i * n, rounded_pack(v));
    });
  };
  const int thread = int(threadIdx.y) * Of::threads + int(threadIdx.x);
  if constexpr (weight && Of::staged) {
    // The rows in the order in which a block has them that works on one at a time: the sums have its bits.
    A* total = reinterpret_cast<A*>(Packs::staged(0, packs, 2));
    for (int64_t i = thread; i < p.d; i += Of::threads * Of::rows) total[i] = 0;
    const int64_t stride = gridDim.x;
    for (int64_t first = blockIdx.x; first < p.rows; first += stride * Of::rows) {
      if (first + stride * threadIdx.y < p.rows) of_row(first + stride * threadIdx.y);
      __syncthreads();
      for (int64_t i = thread; i < packs; i += Of::threads * Of::rows) {
        A sums[n];
        for (int j = 0; j < n; ++j) sums[j] = total[j * packs + i];
        for (int team = 0; team < Of::rows && first + stride * team < p.rows; ++team) {
          const Numbers<T, n> g = Packs::staged(team, packs, 0)[i].numbers(),
                              v = Packs::staged(team, packs, 1)[i].numbers();
          const A rstd = p.rstd[first + stride * team];
          for (int j = 0; j < n; ++j) sums[j] += g.at[j] * (v.at[j] * rstd);
        }
        for (int j = 0; j < n; ++j) total[j * packs + i] = sums[j];
      }
      __syncthreads();
    }
    for (int64_t i = thread; i < packs; i += Of::threads * Of::rows) {
      Pack<A, n> sums;
      for (int j = 0; j < n; ++j) sums.at[j] = total[j * packs + i];
      write<A, n>(p.partial + blockIdx.x * p.d + i * n, sums);
    }
  } else {
    for_rows<Of::threads, Of::rows>(p.rows, of_row);
  }
  if constexpr (held) {  // the teams of the block one after the other
    __syncthreads();
    for (int64_t j = thread; j < p.d; j += row_threads) {
      A total = 0;
      for (int t = 0; t < Of::rows; ++t) total += dw[t][j % n][j / n];
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

constexpr int64_t fused_blocks = 132 * row_blocks_of_sm, most_parts = 64;
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
  for_warp_team<T>(b.d, aligned, 2, [&]<class Of>(auto n, Of) {
    const size_t staged = staged_bytes<Of, T>(2, b.d);
    if constexpr (Of::held > 0 || Of::staged)
      if (b.dw && b.dx && !b.db && !b.mean) {
        const unsigned blocks = blocks_for(b.rows, Of::staged ? 1 : Of::rows, fused_blocks);
        launch(backward_kernel<T, n, Of, true>, blocks, row_block<Of>(),
               Of::staged ? staged + size_t(b.d) * sizeof(A) : 0, stream, p);
        sum_parts<T>(stream, blocks, b.d, p.partial, b.dw);
        done = true;
        return;
      }
    launch(backward_kernel<T, n, Of, false>, blocks_for(b.rows, Of::rows), row_block<Of>(), staged, stream, p);
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
    const int64_t kept = p.residual ? 2 : 1;
    for_warp_team<T>(n.d, all_aligned(p.x, p.residual, p.w, p.b, p.y, p.h), kept, [&]<class Of>(auto size, Of) {
      launch(forward_kernel<T, size, Of>, blocks_for(n.rows, Of::rows), row_block<Of>(), staged_bytes<Of, T>(kept, n.d),
             stream, p);
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
