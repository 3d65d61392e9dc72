// Tiles of queries, keys and scores are in shared memory; 256 threads multiply them, 4x4 elements each at a time. A
// block has a tile of queries (forward, dq) or of keys (dk, dv) to itself and walks the other in order, so that nothing
// is added in any other order.
#include "ops/cuda/attention.h"

#include <cmath>
#include <limits>

#include "dtensor/cuda/launch.cuh"
#include "ops/cpu/drop.h"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;
constexpr float inf = std::numeric_limits<float>::infinity();

// What a kernel is given. `tiles`: of queries or keys in a sequence.
template <class T>
struct Call {
  AttentionShape shape;
  AttentionScores scores;
  AttentionPointers pointers;
  const Accumulate<T>* delta;
  Accumulate<T> scale;
  int64_t tiles;
};

// Elements from row to row of a tile in shared memory: no two of a warp's rows begin in the same bank.
__host__ __device__ constexpr int row_size(int64_t head_dim) { return int((head_dim + 3) / 4 * 4 + 1); }

// Which tile of which head of which batch entry is this block's, and how many keys of that take part.
struct Place {
  int64_t batch, head, first, keys;
  template <class T>
  __device__ Place(const Call<T>& c, int64_t heads, int tile) {
    int64_t block = blockIdx.x;
    first = block % c.tiles * tile;
    head = block / c.tiles % heads;
    batch = block / c.tiles / heads;
    keys = c.shape.keys;
    if (c.scores.key_lengths) {
      const int64_t length = c.scores.key_lengths[batch * c.scores.key_length_stride];
      keys = length < 0 ? 0 : length < keys ? length : keys;
    }
  }
};

template <class T>
__device__ bool by_position(const Call<T>& c) {
  return c.scores.query_positions || c.scores.key_positions;
}
template <class T>
__device__ int64_t query_position(const Call<T>& c, const Place& at, int64_t i) {
  const AttentionScores& s = c.scores;
  return s.query_positions ? s.query_positions[at.batch * s.query_position_stride + i] : i + c.shape.diagonal;
}
template <class T>
__device__ int64_t key_position(const Call<T>& c, const Place& at, int64_t j) {
  const AttentionScores& s = c.scores;
  return s.key_positions ? s.key_positions[at.batch * s.key_position_stride + j] : j;
}

template <class T>
__device__ T* row_of(T* t, const AttentionStrides& strides, int64_t batch, int64_t head, int64_t row) {
  return t + batch * strides.batch + head * strides.head + row * strides.sequence;
}

// The rows that are there, and zeros around them.
template <int tile, class T>
__device__ void load_tile(Accumulate<T>* to, const T* from, int64_t stride, int64_t rows, int head_dim) {
  const int size = row_size(head_dim);
  for (int r = threadIdx.x / 32; r < tile; r += threads / 32)
    for (int c = threadIdx.x % 32; c < size; c += 32)
      to[r * size + c] = r < rows && c < head_dim ? load(from[r * stride + c]) : Accumulate<T>(0);
}
template <int tile, class T>
__device__ void store_tile(T* to, const Accumulate<T>* from, int64_t stride, int64_t rows, int head_dim) {
  const int size = row_size(head_dim);
  for (int r = threadIdx.x / 32; r < tile && r < rows; r += threads / 32)
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) to[r * stride + c] = rounded<T>(from[r * size + c]);
}
template <int tile, class A>
__device__ void clear_tile(A* t, int head_dim) {
  for (int i = threadIdx.x; i < tile * row_size(head_dim); i += threads) t[i] = 0;
}
// Numbers of `rows` queries, and zeros.
template <int tile, class A>
__device__ void load_column(A* to, const A* from, int64_t rows) {
  for (int r = threadIdx.x; r < tile; r += threads) to[r] = r < rows ? from[r] : A(0);
}

// to(i, j, sum over k < inner of a[i * a_row + k * a_inner] * b[k * b_inner + j * b_column]) for i < rows, j < columns,
// multiples of 4. The same thread has the same (i, j) each time that the sizes are the same.
template <class A, class To>
__device__ void product(int rows, int columns, int inner, const A* a, int a_row, int a_inner, const A* b, int b_inner,
                        int b_column, To to) {
  const int down = rows / 4, across = columns / 4;
  for (int at = threadIdx.x; at < down * across; at += threads) {
    const int i = at / across, j = at % across;
    A sum[4][4] = {};
    for (int k = 0; k < inner; ++k) {
      A x[4], y[4];
      for (int n = 0; n < 4; ++n) x[n] = a[(i + n * down) * a_row + k * a_inner];
      for (int n = 0; n < 4; ++n) y[n] = b[k * b_inner + (j + n * across) * b_column];
      for (int n = 0; n < 4; ++n)
        for (int m = 0; m < 4; ++m) sum[n][m] += x[n] * y[m];
    }
    for (int n = 0; n < 4; ++n)
      for (int m = 0; m < 4; ++m) to(i + n * down, j + m * across, sum[n][m]);
  }
}

// f(i, j) for the elements of a tile of scores; `tile` rows of tile + 1.
template <int tile, class F>
__device__ void for_scores(F f) {
  for (int at = threadIdx.x; at < tile * tile; at += threads) f(at / tile, at % tile);
}

// Whether query i sees key j, but for the mask.
template <class T>
__device__ bool sees(const Call<T>& c, const Place& at, int64_t i, int64_t j) {
  const AttentionShape& s = c.shape;
  if (i >= s.queries || j >= at.keys) return false;
  if (s.causal) {
    const int64_t behind = query_position(c, at, i) - key_position(c, at, j);
    if (behind < 0 || (s.window && behind >= s.window)) return false;
  }
  if (!c.scores.query_documents) return true;
  const int64_t document = c.scores.query_documents[at.batch * c.scores.query_document_stride + i];
  return document >= 0 && document == c.scores.key_documents[at.batch * c.scores.key_document_stride + j];
}

// Where a tile's queries or keys are: their least and greatest positions and documents. Nowhere, where none is of any
// document or takes part.
struct Extent {
  static constexpr int64_t none = std::numeric_limits<int64_t>::max();
  int64_t first = none, last = -none, first_document = none, last_document = -none;
};
// Of those in [begin, end), by their positions and documents, which are 0 where there are none. Every warp finds it by
// itself, so that none waits for another.
template <int tile, class Position, class Document>
__device__ Extent extent_of(int64_t begin, int64_t end, Position position, Document document) {
  Extent e;
  for (int64_t i = begin + threadIdx.x % 32; i < begin + tile && i < end; i += 32) {
    const int64_t at = position(i), of = document(i);
    if (of < 0) continue;
    e.first = Min()(e.first, at), e.last = Max()(e.last, at);
    e.first_document = Min()(e.first_document, of), e.last_document = Max()(e.last_document, of);
  }
  e.first = warp_reduce(e.first, Min()), e.last = warp_reduce(e.last, Max());
  e.first_document = warp_reduce(e.first_document, Min()), e.last_document = warp_reduce(e.last_document, Max());
  return e;
}

// Which tiles of a block can be left out because no query sees any key, as far as positions and documents tell: where
// there are neither, indices have told. To leave one out changes no bits: all of its weights would be 0.
template <class T, int tile>
struct Tiles {
  const Call<T>& c;
  const bool by_extent;
  __device__ explicit Tiles(const Call<T>& call)
      : c(call), by_extent((call.shape.causal && by_position(call)) || call.scores.query_documents) {}

  __device__ Extent queries(const Place& at, int64_t begin) const {
    const int64_t* documents = of_entry(c.scores.query_documents, at.batch * c.scores.query_document_stride);
    return !by_extent ? Extent()
                      : extent_of<tile>(
                            begin, c.shape.queries, [&](int64_t i) { return query_position(c, at, i); },
                            [&](int64_t i) { return documents ? documents[i] : 0; });
  }
  __device__ Extent keys(const Place& at, int64_t begin) const {
    const int64_t* documents = of_entry(c.scores.key_documents, at.batch * c.scores.key_document_stride);
    return !by_extent ? Extent()
                      : extent_of<tile>(
                            begin, at.keys, [&](int64_t j) { return key_position(c, at, j); },
                            [&](int64_t j) { return documents ? documents[j] : 0; });
  }
  __device__ bool is_hidden(const Extent& queries, const Extent& keys) const {
    if (!by_extent) return false;
    if (queries.first > queries.last || keys.first > keys.last) return true;
    if (queries.last_document < keys.first_document || keys.last_document < queries.first_document) return true;
    if (!c.shape.causal) return false;
    return queries.last < keys.first || (c.shape.window && queries.first - keys.last >= c.shape.window);
  }

 private:
  __device__ static const int64_t* of_entry(const int64_t* list, int64_t begin) {
    return list ? list + begin : nullptr;
  }
};

// The score of query i and key j, from the product of the two; -inf where the key is hidden.
template <class T>
__device__ Accumulate<T> score(const Call<T>& c, const Place& at, int64_t i, int64_t j, Accumulate<T> product) {
  if (!sees(c, at, i, j)) return -inf;
  const int64_t* by = c.scores.strides;
  int64_t element = at.batch * by[0] + at.head * by[1] + i * by[2] + j * by[3];
  if (c.scores.visible && !c.scores.visible[element]) return -inf;
  product *= c.scale;
  return c.scores.bias ? product + load(static_cast<const T*>(c.scores.bias)[element]) : product;
}

// What the weights are multiplied by, after the softmax.
template <class T>
struct Dropout {
  const Call<T>& c;
  cpu::Drop drop;
  __device__ explicit Dropout(const Call<T>& call) : c(call) {
    if (c.scores.drop_step) drop = {key_at_step(c.scores.drop_key, *c.scores.drop_step), c.scores.drop_p};
  }
  __device__ Accumulate<T> operator()(const Place& at, int64_t i, int64_t j) const {
    if (drop.p == 0 || i >= c.shape.queries || j >= at.keys) return 1;
    const AttentionScores& s = c.scores;
    const int64_t row = s.rows ? s.rows[at.batch] : s.first_row + at.batch;
    const int64_t query = (row * s.all_heads + s.first_head + at.head) * s.all_queries + query_position(c, at, i);
    return Accumulate<T>(drop.factor(query * s.all_keys + key_position(c, at, j)));
  }
};

// Keys beyond which the queries before `end` see none.
template <class T>
__device__ int64_t seen_keys(const Call<T>& c, const Place& at, int64_t end) {
  const AttentionShape& s = c.shape;
  if (!s.causal || by_position(c)) return at.keys;
  if (end > s.queries) end = s.queries;
  return end + s.diagonal < at.keys ? end + s.diagonal : at.keys;
}

// The first tile of keys of which a query from `begin` on sees some.
template <class T>
__device__ int64_t first_seen_key(const Call<T>& c, int64_t begin, int tile) {
  const AttentionShape& s = c.shape;
  if (!s.causal || !s.window || by_position(c)) return 0;
  const int64_t first = begin + s.diagonal - s.window + 1;
  return first > 0 ? first / tile * tile : 0;
}

// --- Forward. The running maximum and sum of each query's scores, of those seen so far.

template <class A>
struct Softmax {
  A *max, *sum, *shrink;  // shrink: what has been added up so far is multiplied by it
};

// Products of queries and keys -> exp(scores - max), dropped.
template <int tile, class T>
__device__ void softmax(const Place& at, int64_t key, const Dropout<T>& dropout, Accumulate<T>* scores,
                        const Softmax<Accumulate<T>>& state) {
  using A = Accumulate<T>;
  constexpr int lanes = threads / tile;  // that share a query
  const int row = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  A* s = scores + row * (tile + 1);
  A max = state.max[row], sum = 0;
  for (int c = lane; c < tile; c += lanes) {
    s[c] = score(dropout.c, at, at.first + row, key + c, s[c]);
    max = Max()(max, s[c]);
  }
  for (int step = lanes / 2; step > 0; step /= 2) max = Max()(max, __shfl_xor_sync(0xffffffffu, max, step));
  const A base = max == -inf ? A(0) : max;
  for (int c = lane; c < tile; c += lanes) {
    A p = std::exp(s[c] - base);
    sum += p;
    s[c] = p * dropout(at, at.first + row, key + c);
  }
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) {
    A shrink = std::exp(state.max[row] - base);
    state.shrink[row] = shrink;
    state.sum[row] = state.sum[row] * shrink + sum;
    state.max[row] = max;
  }
}

template <int tile>
__host__ __device__ constexpr size_t forward_elements(int64_t head_dim) {
  return size_t(3 * tile * row_size(head_dim) + tile * (tile + 1) + 3 * tile);
}

template <class T, int tile>
__global__ void forward_kernel(Call<T> c) {
  using A = Accumulate<T>;
  const AttentionShape& s = c.shape;
  const Place at(c, s.heads, tile);
  const int d = int(s.head_dim), size = row_size(d);
  const int64_t rows = s.queries - at.first, group = (s.first_head + at.head) / s.repeats;
  A *q = dynamic_shared<A>(), *kv = q + tile * size, *out = kv + tile * size, *scores = out + tile * size;
  const Softmax<A> state{scores + tile * (tile + 1), scores + tile * (tile + 2), scores + tile * (tile + 3)};
  const Dropout<T> dropout(c);
  load_tile<tile>(q, row_of(static_cast<const T*>(c.pointers.q), s.q, at.batch, at.head, at.first), s.q.sequence, rows,
                  d);
  clear_tile<tile>(out, d);
  for (int r = threadIdx.x; r < tile; r += threads) state.max[r] = -inf, state.sum[r] = 0;

  const Tiles<T, tile> tiles(c);
  const Extent queries = tiles.queries(at, at.first);
  const int64_t end = seen_keys(c, at, at.first + tile);
  for (int64_t key = first_seen_key(c, at.first, tile); key < end; key += tile) {
    if (tiles.is_hidden(queries, tiles.keys(at, key))) continue;
    __syncthreads();
    load_tile<tile>(kv, row_of(static_cast<const T*>(c.pointers.k), s.k, at.batch, group, key), s.k.sequence,
                    at.keys - key, d);
    __syncthreads();
    product(tile, tile, d, q, size, 1, kv, 1, size, [&](int i, int j, A x) { scores[i * (tile + 1) + j] = x; });
    __syncthreads();
    softmax<tile>(at, key, dropout, scores, state);
    load_tile<tile>(kv, row_of(static_cast<const T*>(c.pointers.v), s.v, at.batch, group, key), s.v.sequence,
                    at.keys - key, d);
    __syncthreads();
    product(tile, size - 1, tile, scores, tile + 1, 1, kv, size, 1,
            [&](int i, int j, A x) { out[i * size + j] = out[i * size + j] * state.shrink[i] + x; });
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tile * size; i += threads)
    out[i] = state.sum[i / size] == 0 ? A(0) : out[i] / state.sum[i / size];
  __syncthreads();
  store_tile<tile>(row_of(static_cast<T*>(c.pointers.out), s.out, at.batch, at.head, at.first), out, s.out.sequence,
                   rows, d);
  A* lse = static_cast<A*>(c.pointers.lse) + (at.batch * s.heads + at.head) * s.queries + at.first;
  for (int r = threadIdx.x; r < tile && r < rows; r += threads) lse[r] = state.max[r] + std::log(state.sum[r]);
}

// --- Backward. With p the weights, dp = dout v^T and delta = sum(dout * out), the scores' gradient is p * (dp -
// delta).

template <class T>
__global__ void delta_kernel(Call<T> c) {  // a warp has a query
  using A = Accumulate<T>;
  const AttentionShape& s = c.shape;
  const int64_t n = s.batch * s.heads * s.queries, warps = gridDim.x * (threads / 32);
  for (int64_t row = blockIdx.x * (threads / 32) + threadIdx.x / 32; row < n; row += warps) {
    const int64_t i = row % s.queries, h = row / s.queries % s.heads, b = row / s.queries / s.heads;
    const T* out = row_of(static_cast<const T*>(c.pointers.out), s.out, b, h, i);
    const T* dout = row_of(static_cast<const T*>(c.pointers.dout), s.dout, b, h, i);
    A sum = 0;
    for (int64_t k = threadIdx.x % 32; k < s.head_dim; k += 32) sum += load(out[k]) * load(dout[k]);
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x % 32 == 0) const_cast<A*>(c.delta)[row] = sum;
  }
}

// A weight again, from the score: 0 for a query that sees nothing.
template <class A>
__device__ A weight(A score, A lse) {
  return lse == -inf ? A(0) : std::exp(score - lse);
}

template <int tile>
__host__ __device__ constexpr size_t queries_elements(int64_t head_dim) {
  return size_t(4 * tile * row_size(head_dim) + 2 * tile * (tile + 1) + 2 * tile);
}

// dq and dscores of a tile of queries.
template <class T, int tile>
__global__ void queries_kernel(Call<T> c) {
  using A = Accumulate<T>;
  const AttentionShape& s = c.shape;
  const Place at(c, s.heads, tile);
  const int d = int(s.head_dim), size = row_size(d);
  const int64_t rows = s.queries - at.first, group = (s.first_head + at.head) / s.repeats,
                row = (at.batch * s.heads + at.head) * s.queries + at.first;
  A *q = dynamic_shared<A>(), *dout = q + tile * size, *kv = dout + tile * size, *dq = kv + tile * size,
    *p = dq + tile * size, *ds = p + tile * (tile + 1), *lse = ds + tile * (tile + 1), *delta = lse + tile;
  T* dscores = static_cast<T*>(c.pointers.dscores);
  const Dropout<T> dropout(c);
  load_tile<tile>(q, row_of(static_cast<const T*>(c.pointers.q), s.q, at.batch, at.head, at.first), s.q.sequence, rows,
                  d);
  load_tile<tile>(dout, row_of(static_cast<const T*>(c.pointers.dout), s.dout, at.batch, at.head, at.first),
                  s.dout.sequence, rows, d);
  load_column<tile>(lse, static_cast<const A*>(c.pointers.lse) + row, rows);
  load_column<tile>(delta, c.delta + row, rows);
  clear_tile<tile>(dq, d);

  const Tiles<T, tile> tiles(c);
  const Extent queries = tiles.queries(at, at.first);
  const int64_t end = dscores ? s.keys : seen_keys(c, at, at.first + tile);
  for (int64_t key = dscores ? 0 : first_seen_key(c, at.first, tile); key < end; key += tile) {
    if (!dscores && tiles.is_hidden(queries, tiles.keys(at, key))) continue;
    __syncthreads();
    load_tile<tile>(kv, row_of(static_cast<const T*>(c.pointers.v), s.v, at.batch, group, key), s.v.sequence,
                    at.keys - key, d);
    __syncthreads();
    product(tile, tile, d, dout, size, 1, kv, 1, size, [&](int i, int j, A x) { ds[i * (tile + 1) + j] = x; });
    __syncthreads();
    load_tile<tile>(kv, row_of(static_cast<const T*>(c.pointers.k), s.k, at.batch, group, key), s.k.sequence,
                    at.keys - key, d);
    __syncthreads();
    product(tile, tile, d, q, size, 1, kv, 1, size, [&](int i, int j, A x) { p[i * (tile + 1) + j] = x; });
    __syncthreads();
    for_scores<tile>([&](int i, int j) {
      A& dp = ds[i * (tile + 1) + j];
      A w = weight(score(c, at, at.first + i, key + j, p[i * (tile + 1) + j]), lse[i]);
      A g = w * (dp * dropout(at, at.first + i, key + j) - delta[i]);
      if (dscores && i < rows && key + j < s.keys) dscores[(row + i) * s.keys + key + j] = rounded<T>(g);
      dp = g * c.scale;
    });
    __syncthreads();
    product(tile, size - 1, tile, ds, tile + 1, 1, kv, size, 1, [&](int i, int j, A x) { dq[i * size + j] += x; });
  }
  __syncthreads();
  store_tile<tile>(row_of(static_cast<T*>(c.pointers.dq), s.dq, at.batch, at.head, at.first), dq, s.dq.sequence, rows,
                   d);
}

template <int tile>
__host__ __device__ constexpr size_t keys_elements(int64_t head_dim) {
  return size_t(6 * tile * row_size(head_dim) + 2 * tile * (tile + 1) + 2 * tile);
}

// dk and dv of a tile of keys.
template <class T, int tile>
__global__ void keys_kernel(Call<T> c) {
  using A = Accumulate<T>;
  const AttentionShape& s = c.shape;
  Place at(c, s.kv_heads, tile);
  const int d = int(s.head_dim), size = row_size(d);
  const int64_t rows = s.keys - at.first, there = at.keys - at.first, group = at.head;
  A *k = dynamic_shared<A>(), *v = k + tile * size, *dk = v + tile * size, *dv = dk + tile * size,
    *q = dv + tile * size, *dout = q + tile * size, *p = dout + tile * size, *ds = p + tile * (tile + 1),
    *lse = ds + tile * (tile + 1), *delta = lse + tile;
  const Dropout<T> dropout(c);
  load_tile<tile>(k, row_of(static_cast<const T*>(c.pointers.k), s.k, at.batch, group, at.first), s.k.sequence, there,
                  d);
  load_tile<tile>(v, row_of(static_cast<const T*>(c.pointers.v), s.v, at.batch, group, at.first), s.v.sequence, there,
                  d);
  clear_tile<tile>(dk, d);
  clear_tile<tile>(dv, d);

  const Tiles<T, tile> tiles(c);
  const Extent keys = tiles.keys(at, at.first);
  const bool by_index = s.causal && !by_position(c);
  const int64_t begin = by_index && at.first > s.diagonal ? (at.first - s.diagonal) / tile * tile : 0;
  int64_t end = s.queries;
  if (by_index && s.window && at.first + tile - 1 + s.window - s.diagonal < end)
    end = at.first + tile - 1 + s.window - s.diagonal;
  const int64_t reader = group * s.repeats - s.first_head, readers_end = reader + s.repeats;
  for (at.head = reader < 0 ? 0 : reader; at.head < readers_end && at.head < s.heads; ++at.head)
    for (int64_t query = begin; query < end; query += tile) {
      if (tiles.is_hidden(tiles.queries(at, query), keys)) continue;
      const int64_t row = (at.batch * s.heads + at.head) * s.queries + query, left = s.queries - query;
      __syncthreads();
      load_tile<tile>(q, row_of(static_cast<const T*>(c.pointers.q), s.q, at.batch, at.head, query), s.q.sequence, left,
                      d);
      load_tile<tile>(dout, row_of(static_cast<const T*>(c.pointers.dout), s.dout, at.batch, at.head, query),
                      s.dout.sequence, left, d);
      load_column<tile>(lse, static_cast<const A*>(c.pointers.lse) + row, left);
      load_column<tile>(delta, c.delta + row, left);
      __syncthreads();
      product(tile, tile, d, dout, size, 1, v, 1, size, [&](int i, int j, A x) { ds[i * (tile + 1) + j] = x; });
      product(tile, tile, d, q, size, 1, k, 1, size, [&](int i, int j, A x) { p[i * (tile + 1) + j] = x; });
      __syncthreads();
      for_scores<tile>([&](int i, int j) {
        A &w = p[i * (tile + 1) + j], &dp = ds[i * (tile + 1) + j], kept = dropout(at, query + i, at.first + j);
        w = weight(score(c, at, query + i, at.first + j, w), lse[i]);
        dp = w * (dp * kept - delta[i]) * c.scale;
        w *= kept;
      });
      __syncthreads();
      product(tile, size - 1, tile, p, 1, tile + 1, dout, size, 1, [&](int i, int j, A x) { dv[i * size + j] += x; });
      product(tile, size - 1, tile, ds, 1, tile + 1, q, size, 1, [&](int i, int j, A x) { dk[i * size + j] += x; });
    }
  __syncthreads();
  store_tile<tile>(row_of(static_cast<T*>(c.pointers.dk), s.dk, at.batch, group, at.first), dk, s.dk.sequence, rows, d);
  store_tile<tile>(row_of(static_cast<T*>(c.pointers.dv), s.dv, at.batch, group, at.first), dv, s.dv.sequence, rows, d);
}

// --- Two results of the same queries.

// What the exponentials of a row's scores add up to, of two parts of its keys: their shares, and its logarithm.
template <class A>
struct Shares {
  A x, y, lse;
  __device__ Shares(A a, A b) {
    const A most = Max()(a, b);
    const bool none = most == -A(inf);  // neither saw a key: the sum is 0, and out is
    x = none ? A(1) : exp(a - most), y = none ? A(0) : exp(b - most);
    const A sum = x + y;
    lse = most + log(sum), x /= sum, y /= sum;
  }
};

template <class T>
struct Merge {
  int64_t n, queries, heads, head_dim;
  const Accumulate<T>*x, *x_lse;
  const T* y;
  const Accumulate<T>* y_lse;
  Accumulate<T>*out, *lse;
};

template <class T>
__global__ void merge_kernel(Merge<T> m) {
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < m.n; i += gridDim.x * int64_t(threads)) {
    const int64_t width = m.head_dim > 0 ? m.head_dim : 1;  // heads of no elements have logarithms too
    const int64_t h = i / width % m.heads, s = i / width / m.heads % m.queries,
                  row = (i / width / m.heads / m.queries * m.heads + h) * m.queries + s;
    const Shares<Accumulate<T>> shares(m.x_lse[row], m.y_lse[row]);
    if (m.head_dim > 0) m.out[i] = shares.x * m.x[i] + shares.y * load(m.y[i]);
    if (i % width == 0) m.lse[row] = shares.lse;
  }
}

// --- What cuDNN is told of lengths, and what it leaves open beyond them.

__global__ void lengths_kernel(AttentionShape s, AttentionScores scores, int32_t* of_queries, int32_t* of_keys) {
  for (int64_t b = blockIdx.x * int64_t(threads) + threadIdx.x; b < s.batch; b += gridDim.x * int64_t(threads)) {
    const int64_t length = scores.key_lengths[b * scores.key_length_stride], keys = length < 0        ? 0
                                                                                    : length < s.keys ? length
                                                                                                      : s.keys;
    of_queries[b] = keys > 0 ? int32_t(s.queries) : 0;
    of_keys[b] = int32_t(keys);
  }
}

struct Rows {
  void* values;  // of 2 bytes, from row to row multiples of 8 of them
  AttentionStrides strides;
  int64_t batch, rows, heads, head_dim;
  const int32_t* lengths;
  float* lse;  // null where there is none
};

__global__ void clear_kernel(Rows t) {
  const int64_t packs = t.head_dim / 8, n = t.batch * t.rows * t.heads * packs;
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    const int64_t pack = i % packs, h = i / packs % t.heads, row = i / packs / t.heads % t.rows,
                  b = i / packs / t.heads / t.rows;
    if (row < t.lengths[b]) continue;
    const int64_t at = b * t.strides.batch + row * t.strides.sequence + h * t.strides.head;
    static_cast<uint4*>(t.values)[at / 8 + pack] = uint4{0, 0, 0, 0};
    if (t.lse && pack == 0) t.lse[(b * t.heads + h) * t.rows + row] = -float(inf);
  }
}

// --- Documents as runs of tokens.

struct FindRuns {
  AttentionShape shape;
  AttentionScores scores;
  AttentionRuns to;
  int64_t sequence[attention_tensors];  // from token to token

  __device__ bool is_first(const int64_t* documents, int64_t i) const {
    return documents[i] >= 0 && (i == 0 || documents[i - 1] != documents[i]);
  }
  __device__ int64_t query_position(int64_t b, int64_t i) const {
    return scores.query_positions ? scores.query_positions[b * scores.query_position_stride + i] : i;
  }
  // Query and key i are one token, which follows the one before.
  __device__ bool fits(const int64_t* documents, int64_t b, int64_t i) const {
    const int64_t document = documents[i], of_key = scores.key_documents[b * scores.key_document_stride + i];
    if (document < 0 && of_key < 0) return true;
    if (document != of_key) return false;
    const int64_t position = query_position(b, i);
    if (position != (scores.key_positions ? scores.key_positions[b * scores.key_position_stride + i] : i)) return false;
    return is_first(documents, i) || position == query_position(b, i - 1) + 1;
  }
  __device__ void begin(int64_t run, int64_t token) const {
    for (int t = 0; t < attention_tensors; ++t)
      to.lengths.offsets[t * to.lengths.offset_stride + run] = token * sequence[t];
  }
};

// A block has a row, of which each thread has a chunk.
__global__ void find_runs_kernel(FindRuns f) {
  const int64_t b = blockIdx.x, n = f.shape.queries, chunk = (n + threads - 1) / threads, first_run = b * f.to.most,
                first = threadIdx.x * chunk < n ? threadIdx.x * chunk : n, end = first + chunk < n ? first + chunk : n;
  const int64_t* documents = f.scores.query_documents + b * f.scores.query_document_stride;
  int32_t* lengths = f.to.lengths.of_queries + first_run;
  int64_t *latest = dynamic_shared<int64_t>(), *runs = latest + threads, *wrong = runs + threads;
  if (threadIdx.x == 0) *wrong = 0;
  __syncthreads();
  int64_t last = -1, count = 0;
  for (int64_t i = first; i < end; ++i) {
    count += f.is_first(documents, i);
    last = Max()(last, documents[i]);
    if (!f.fits(documents, b, i)) *wrong = 1;
  }
  latest[threadIdx.x] = last, runs[threadIdx.x] = count;
  __syncthreads();
  int64_t before = -1, begun = 0, all = 0;
  for (int t = 0; t < threads; ++t) {
    if (t < int(threadIdx.x)) before = Max()(before, latest[t]), begun += runs[t];
    all += runs[t];
  }
  int64_t run = begun;
  for (int64_t i = first; i < end; ++i) {
    if (f.is_first(documents, i)) {
      if (documents[i] <= before) *wrong = 1;
      if (run < f.to.most) f.begin(first_run + run, b * n + i), lengths[run] = int32_t(i);  // the length comes below
      ++run;
    }
    before = Max()(before, documents[i]);
  }
  if (threadIdx.x == 0 && all > f.to.most) *wrong = 1;
  for (int64_t j = all + threadIdx.x; j < f.to.most; j += threads) f.begin(first_run + j, (b + 1) * n), lengths[j] = 0;
  if (threadIdx.x == 0 && b + 1 == f.shape.batch) f.begin(f.shape.batch * f.to.most, f.shape.batch * n);
  __syncthreads();
  if (threadIdx.x == 0) f.to.wrong[b] = int32_t(*wrong);
  run = begun;
  for (int64_t i = first; i < end; ++i) {
    run += f.is_first(documents, i);
    const bool is_last = documents[i] >= 0 && (i + 1 == n || documents[i + 1] != documents[i]);
    if (is_last && run <= f.to.most) lengths[run - 1] = *wrong ? 0 : int32_t(i + 1) - lengths[run - 1];
  }
}

// lse [batch, heads, queries] -> [batch, queries, heads]
__global__ void lse_to_runs_kernel(AttentionShape s, const float* lse, float* to) {
  const int64_t n = s.batch * s.queries * s.heads;
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    const int64_t h = i % s.heads, row = i / s.heads % s.queries, b = i / s.heads / s.queries;
    to[i] = lse[(b * s.heads + h) * s.queries + row];
  }
}

struct SettleRuns {
  Rows rows;
  const int64_t* documents;
  int64_t document_stride;
  AttentionRuns runs;
};

__global__ void settle_runs_kernel(SettleRuns c) {
  const Rows& t = c.rows;
  const int64_t packs = t.head_dim / 8, n = t.batch * t.rows * t.heads * packs;
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    const int64_t pack = i % packs, h = i / packs % t.heads, row = i / packs / t.heads % t.rows,
                  b = i / packs / t.heads / t.rows;
    const bool wrong = c.runs.wrong[b], outside = c.documents[b * c.document_stride + row] < 0;
    if (t.lse && pack == 0)
      t.lse[(b * t.heads + h) * t.rows + row] = wrong     ? float(NAN)
                                                : outside ? -float(inf)
                                                          : c.runs.lse[(b * t.rows + row) * t.heads + h];
    if (!wrong && !outside) continue;
    const unsigned word = wrong ? 0x7fc07fc0u : 0u;  // two NaNs of bf16
    const int64_t at = b * t.strides.batch + row * t.strides.sequence + h * t.strides.head;
    static_cast<uint4*>(t.values)[at / 8 + pack] = uint4{word, word, word, word};
  }
}

// --- Launching.

template <class T>
Call<T> call_of(const AttentionShape& s, const AttentionScores& scores, const AttentionPointers& p, const void* delta,
                double scale, int64_t sequence, int tile) {
  return {s, scores, p, static_cast<const Accumulate<T>*>(delta), Accumulate<T>(scale), ceil_div(sequence, tile)};
}

template <class T, int tile>
void launch_backward(const AttentionShape& s, const AttentionScores& scores, const AttentionPointers& p, void* delta,
                     double scale, StreamHandle stream) {
  auto call = [&](int64_t sequence) { return call_of<T>(s, scores, p, delta, scale, sequence, tile); };
  launch(delta_kernel<T>, blocks_for(s.batch * s.heads * s.queries, threads / 32), threads, 0, stream, call(0));
  Call<T> queries = call(s.queries), keys = call(s.keys);
  launch(queries_kernel<T, tile>, unsigned(s.batch * s.heads * queries.tiles), threads,
         queries_elements<tile>(s.head_dim) * sizeof(Accumulate<T>), stream, queries);
  launch(keys_kernel<T, tile>, unsigned(s.batch * s.kv_heads * keys.tiles), threads,
         keys_elements<tile>(s.head_dim) * sizeof(Accumulate<T>), stream, keys);
}

}  // namespace

void attention_forward(const AttentionShape& s, const AttentionScores& scores, const AttentionPointers& p, double scale,
                       StreamHandle stream) {
  for_floating(s.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int tile = 256 / sizeof(Accumulate<T>);
    Call<T> call = call_of<T>(s, scores, p, nullptr, scale, s.queries, tile);
    launch(forward_kernel<T, tile>, unsigned(s.batch * s.heads * call.tiles), threads,
           forward_elements<tile>(s.head_dim) * sizeof(Accumulate<T>), stream, call);
  });
}

void attention_backward(const AttentionShape& s, const AttentionScores& scores, const AttentionPointers& p, void* delta,
                        double scale, StreamHandle stream) {
  for_floating(s.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int tile = 256 / sizeof(Accumulate<T>);
    if (s.head_dim <= 128)
      launch_backward<T, tile>(s, scores, p, delta, scale, stream);
    else  // six tiles have to fit
      launch_backward<T, tile / 2>(s, scores, p, delta, scale, stream);
  });
}

void lengths_for_cudnn(const AttentionShape& s, const AttentionScores& scores, const AttentionLengths& to,
                       StreamHandle stream) {
  launch(lengths_kernel, blocks_for(s.batch, threads), threads, 0, stream, s, scores, to.of_queries, to.of_keys);
}

void clear_beyond(const AttentionShape& s, AttentionPass pass, const AttentionPointers& p,
                  const AttentionLengths& lengths, StreamHandle stream) {
  auto clear = [&](void* values, const AttentionStrides& strides, bool of_queries, void* lse) {
    Rows rows{values,
              strides,
              s.batch,
              of_queries ? s.queries : s.keys,
              of_queries ? s.heads : s.kv_heads,
              s.head_dim,
              of_queries ? lengths.of_queries : lengths.of_keys,
              static_cast<float*>(lse)};
    launch(clear_kernel, blocks_for(s.batch * rows.rows * rows.heads * s.head_dim / 8, threads), threads, 0, stream,
           rows);
  };
  if (pass == AttentionPass::forward) return clear(p.out, s.out, true, p.lse);
  clear(p.dq, s.dq, true, nullptr), clear(p.dk, s.dk, false, nullptr), clear(p.dv, s.dv, false, nullptr);
}

void find_runs(const AttentionShape& s, const AttentionScores& scores, const AttentionRuns& to, StreamHandle stream) {
  FindRuns find{s,
                scores,
                to,
                {s.q.sequence, s.k.sequence, s.v.sequence, s.out.sequence, s.heads, s.dout.sequence, s.dq.sequence,
                 s.dk.sequence, s.dv.sequence}};
  launch(find_runs_kernel, unsigned(s.batch), threads, (2 * threads + 1) * sizeof(int64_t), stream, find);
}

void lse_to_runs(const AttentionShape& s, const float* lse, const AttentionRuns& to, StreamHandle stream) {
  launch(lse_to_runs_kernel, blocks_for(s.batch * s.queries * s.heads, threads), threads, 0, stream, s, lse, to.lse);
}

void settle_runs(const AttentionShape& s, AttentionPass pass, const AttentionPointers& p, const AttentionScores& scores,
                 const AttentionRuns& runs, StreamHandle stream) {
  auto settle = [&](void* values, const AttentionStrides& strides, int64_t heads, void* lse) {
    Rows rows{values, strides, s.batch, s.queries, heads, s.head_dim, nullptr, static_cast<float*>(lse)};
    launch(settle_runs_kernel, blocks_for(s.batch * s.queries * heads * s.head_dim / 8, threads), threads, 0, stream,
           SettleRuns{rows, scores.query_documents, scores.query_document_stride, runs});
  };
  if (pass == AttentionPass::forward) return settle(p.out, s.out, s.heads, p.lse);
  settle(p.dq, s.dq, s.heads, nullptr);
  settle(p.dk, s.dk, s.kv_heads, nullptr), settle(p.dv, s.dv, s.kv_heads, nullptr);
}

void merge_attention(const std::array<int64_t, 4>& shape, DType type, const AttentionResult& x,
                     const AttentionResult& y, const MergedAttention& to, StreamHandle stream) {
  const int64_t n = shape[0] * shape[1] * shape[2] * (shape[3] > 0 ? shape[3] : 1);
  for_floating(type, [&](auto of) {
    using T = decltype(of);
    using A = Accumulate<T>;
    Merge<T> m{n,
               shape[1],
               shape[2],
               shape[3],
               static_cast<const A*>(x.out),
               static_cast<const A*>(x.lse),
               static_cast<const T*>(y.out),
               static_cast<const A*>(y.lse),
               static_cast<A*>(to.out),
               static_cast<A*>(to.lse)};
    launch(merge_kernel<T>, blocks_for(n, threads), threads, 0, stream, m);
  });
}

}  // namespace dtensor::cuda
