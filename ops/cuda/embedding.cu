#include "ops/cuda/embedding.h"

#include "ops/cuda/rows.cuh"

namespace dtensor::cuda {
namespace {

struct IdList {
  const int64_t* ids;
  int64_t begin, end, size;
  // The row here, -1 if elsewhere.
  __device__ int row(int64_t token) const {
    int64_t id = ids[token];
    return id >= begin && id < end ? int(id - begin) : -1;
  }
  __device__ bool bad(int64_t token) const { return ids[token] < 0 || ids[token] >= size; }
};

template <class T, int n, class Of>
__global__ void __launch_bounds__(row_threads, row_blocks_of_sm)
    lookup_kernel(__grid_constant__ const IdList ids, int64_t count, int64_t d, const T* w, T* y) {
  for_rows<Of::threads>(count, [&](int64_t token) {
    const int row = ids.row(token);
    const bool bad = ids.bad(token);
    for_packs<Of>(d / n, [&](int64_t i, int) {
      Pack<T, n> p;
      if (row >= 0)
        p = read<T, n>(w + row * d + i * n);
      else
        for (int j = 0; j < n; ++j) p.at[j] = rounded<T>(bad ? Accumulate<T>(NAN) : Accumulate<T>(0));
      write<T, n>(y + token * d + i * n, p);
    });
  });
}

// --- Gradient: tokens are put into a bucket for each row, in their order, and then each row adds up its bucket.

constexpr int tile = 1024;  // tokens

struct Buckets {
  int *count, *begin, *filled;  // of each row
  int *token, *place, *total;   // tokens by bucket; of each token: its place among those of its row in its tile
};

__global__ void count_kernel(__grid_constant__ const IdList ids, int64_t count, __grid_constant__ const Buckets b) {
  for (int64_t t = blockIdx.x * int64_t(row_threads) + threadIdx.x; t < count; t += gridDim.x * int64_t(row_threads))
    if (int row = ids.row(t); row >= 0) atomicAdd(b.count + row, 1);
}
// Where the buckets lie in `token` is not the same every time, but what is in them is.
__global__ void begin_kernel(int64_t rows, __grid_constant__ const Buckets b) {
  for (int64_t r = blockIdx.x * int64_t(row_threads) + threadIdx.x; r < rows; r += gridDim.x * int64_t(row_threads))
    if (b.count[r] > 0) b.begin[r] = atomicAdd(b.total, b.count[r]);
}
// A block for each tile. The last token of a row in its tile has a negative place, -1 - place.
__global__ void __launch_bounds__(tile, 1)
    place_kernel(__grid_constant__ const IdList ids, int64_t count, __grid_constant__ const Buckets b) {
  __shared__ int row_of[tile];
  const int i = int(threadIdx.x);
  const int64_t token = blockIdx.x * int64_t(tile) + i;
  const int row = token < count ? ids.row(token) : -1;
  row_of[i] = row;
  __syncthreads();
  int place = 0;
  bool last = true;
  for (int j = 0; j < tile; ++j)
    if (row_of[j] == row) place += j < i, last &= j <= i;
  if (token < count) b.place[token] = last ? -1 - place : place;
}
// One block, tile after tile.
__global__ void __launch_bounds__(tile, 1)
    fill_kernel(__grid_constant__ const IdList ids, int64_t count, __grid_constant__ const Buckets b) {
  for (int64_t first = 0; first < count; first += tile) {
    const int64_t token = first + threadIdx.x;
    const int row = token < count ? ids.row(token) : -1;
    int place = 0, filled = 0;
    if (row >= 0) {
      place = b.place[token], filled = b.filled[row];
      b.token[b.begin[row] + filled + (place < 0 ? -1 - place : place)] = int(token);
    }
    __syncthreads();  // all have read `filled`
    if (row >= 0 && place < 0) b.filled[row] = filled - place;
    __syncthreads();
  }
}

template <class T, int n, int team>
__global__ void __launch_bounds__(row_threads, 1)
    add_kernel(int64_t rows, int64_t d, __grid_constant__ const Buckets b, const T* dy, T* dw) {
  for_rows<team>(rows, [&](int64_t row) {
    const int count = b.count[row];
    const int* token = b.token + (count ? b.begin[row] : 0);
#pragma unroll 1
    for (int64_t i = int(threadIdx.x); i < d / n; i += team) {
      Accumulate<T> sum[n] = {};
#pragma unroll 4
      for (int t = 0; t < count; ++t) {
        Pack<T, n> p = read<T, n>(dy + token[t] * d + i * n);
        for (int j = 0; j < n; ++j) sum[j] += load(p.at[j]);
      }
      Pack<T, n> p;
      for (int j = 0; j < n; ++j) p.at[j] = rounded<T>(sum[j]);
      write<T, n>(dw + row * d + i * n, p);
    }
  });
}

IdList list_of(const Ids& i) { return {as<int64_t>(i.ids), i.begin, i.end, i.size}; }

}  // namespace

void embedding(StreamHandle stream, DType type, const Ids& ids, int64_t d, const void* w, void* y) {
  for_floating(type, [&]<class T>(T) {
    for_team<T>(d, all_aligned(as<T>(w), as<T>(y)), [&]<class Of>(auto n, Of) {
      launch(lookup_kernel<T, n, Of>, row_blocks(ids.count, Of::threads), row_block(Of::threads), 0, stream,
             list_of(ids), ids.count, d, as<T>(w), as<T>(y));
    });
  });
}

int64_t embedding_room(const Ids& ids) { return 3 * (ids.end - ids.begin) + 2 * ids.count + 1; }

void embedding_backward(StreamHandle stream, DType type, const Ids& ids, int64_t d, const void* dy, void* dw,
                        void* room) {
  int64_t rows = ids.end - ids.begin;
  int* counts = as<int>(room);
  Buckets b{counts, counts + rows, counts + 2 * rows, nullptr, nullptr, counts + 3 * rows};
  b.token = b.total + 1, b.place = b.token + ids.count;
  zero(room, (3 * rows + 1) * int64_t(sizeof(int)), stream);
  IdList list = list_of(ids);
  launch(count_kernel, blocks_for(ids.count, row_threads), row_threads, 0, stream, list, ids.count, b);
  launch(begin_kernel, blocks_for(rows, row_threads), row_threads, 0, stream, rows, b);
  launch(place_kernel, unsigned(ceil_div(ids.count, tile)), tile, 0, stream, list, ids.count, b);
  launch(fill_kernel, ids.count > 0, tile, 0, stream, list, ids.count, b);
  for_floating(type, [&]<class T>(T) {
    for_team<T>(d, all_aligned(as<T>(dy), as<T>(dw)), [&](auto n, auto of) {
      constexpr int team = decltype(of)::threads;
      launch(add_kernel<T, n, team>, row_blocks(rows, team), row_block(team), 0, stream, rows, d, b, as<T>(dy),
             as<T>(dw));
    });
  });
}

}  // namespace dtensor::cuda
