// The forward pass, in three kernels: states from chunk to chunk, weights of the pairs of rows of each chunk, outputs.
#include "ops/cuda/gla.cuh"

namespace dtensor::cuda {
namespace gla {
namespace {

// A block walks the chunks with a tile of the state.
template <class T>
__global__ void __launch_bounds__(threads) states_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, 1, c.key_tiles, c.value_tiles);
  A *state = dynamic_shared<A>(), *k = state + tile_size<T>, *v = k + tile_size<T>, *g = v + tile_size<T>,
    *kept = g + tile_size<T>;
  if (c.first)
    load_state(at, state, c.first + at.state());
  else
    clear_tile<T>(state);
  for (; at.chunk < c.chunks; ++at.chunk) {
    __syncthreads();
    if (c.states) store_state(at, c.states + at.state_of_chunk(), state);
    load_keys(at, k, c.k), load_keys(at, g, c.g), load_values(at, v, c.v);
    __syncthreads();
    until_end<T>(g, [&](int i, int j, A sum) {
      k[i * width<T> + j] *= std::exp(sum);
      if (i == 0) kept[j] = std::exp(sum + g[j]);
    });
    __syncthreads();
    Product<T> own;
    own.add(at.row_count(), k, 1, width<T>, v, width<T>, 1);
    for_each(own, [&](int i, int j, A x) { state[i * width<T> + j] = kept[i] * state[i * width<T> + j] + x; });
  }
  __syncthreads();
  if (c.last) store_state(at, c.last + at.state(), state);
}

// w += scale * q k^T of what a tile of keys has, of blocks of `half` rows that meet; `factors` is room for a tile.
template <class T>
__device__ void add_halves(const Place<T>& at, int half, const Accumulate<T>* q, const Accumulate<T>* k,
                           const Accumulate<T>* g, Accumulate<T>* factors, Accumulate<T>* w) {
  using A = Accumulate<T>;
  to_middle<T>(g, half, [&](int i, int j, A sum, bool later) {
    factors[i * width<T> + j] = (later ? q : k)[i * width<T> + j] * std::exp(sum);
  });
  __syncthreads();
  const int keys = at.key_count();
  for (int pair = threadIdx.x; pair < tile<T> * half / 2; pair += threads) {
    const int begin = pair / (half * half) * 2 * half, i = begin + half + pair / half % half, j = begin + pair % half;
    A sum = 0;
#pragma unroll 8
    for (int n = 0; n < keys; ++n) sum += factors[i * width<T> + n] * factors[j * width<T> + n];
    w[i * width<T> + j] += at.c.scale * sum;
  }
  __syncthreads();
}

// The same of pairs of rows in blocks of `near`. Some lanes share a row.
template <class T>
__device__ void add_near(const Place<T>& at, const Accumulate<T>* q, const Accumulate<T>* k, const Accumulate<T>* g,
                         Accumulate<T>* w) {
  using A = Accumulate<T>;
  constexpr int lanes = threads / tile<T>;
  const int i = int(threadIdx.x) / lanes, lane = int(threadIdx.x) % lanes, keys = at.key_count();
  A sum[near] = {};  // by distance
  for (int n = lane; n < keys; n += lanes) {
    A gates = 0;
#pragma unroll
    for (int m = 0; m < near; ++m)
      if (m <= i % near) {
        sum[m] += q[i * width<T> + n] * k[(i - m) * width<T> + n] * std::exp(gates);
        gates += g[(i - m) * width<T> + n];
      }
  }
#pragma unroll
  for (int m = 0; m < near; ++m) {
    for (int step = lanes / 2; step > 0; step /= 2) sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], step);
    if (lane == 0 && m <= i % near) w[i * width<T> + i - m] += at.c.scale * sum[m];
  }
}

template <class T>
__global__ void __launch_bounds__(threads) weights_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, c.chunks, 1, 1);
  A *q = dynamic_shared<A>(), *k = q + tile_size<T>, *g = k + tile_size<T>, *factors = g + tile_size<T>,
    *w = factors + tile_size<T>;
  clear_tile<T>(w);
  for (; at.key < c.keys; at.key += tile<T>) {
    __syncthreads();
    load_keys(at, q, c.q), load_keys(at, k, c.k), load_keys(at, g, c.g);
    __syncthreads();
    for (int half = tile<T> / 2; half >= near; half /= 2)
      if (half < at.rows()) add_halves(at, half, q, k, g, factors, w);
    add_near(at, q, k, g, w);
  }
  __syncthreads();
  store_weights(at, c.weights, w);
}

template <class T>
__global__ void __launch_bounds__(threads) output_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, c.chunks, 1, c.value_tiles);
  A *x = dynamic_shared<A>(), *y = x + tile_size<T>, *g = y + tile_size<T>;
  Product<T> out;
  for (; at.key < c.keys; at.key += tile<T>) {
    __syncthreads();
    load_keys(at, x, c.q), load_keys(at, g, c.g), load_state(at, y, c.states + at.state_of_chunk());
    __syncthreads();
    since_start<T>(g, [&](int i, int j, A sum) { x[i * width<T> + j] *= c.scale * std::exp(sum); });
    __syncthreads();
    out.add(at.key_count(), x, width<T>, 1, y, width<T>, 1);
  }
  __syncthreads();
  load_weights(at, x, c.weights), load_values(at, y, c.v);
  __syncthreads();
  out.add(at.row_count(), x, width<T>, 1, y, width<T>, 1);
  for_each(out, [&](int i, int j, A sum) { g[i * width<T> + j] = sum; });
  __syncthreads();
  store_values(at, c.out, g);
}

}  // namespace

template <class T>
void launch_states(const LinearAttention& s, const Call<T>& c, StreamHandle stream) {
  launch(states_kernel<T>, unsigned(s.batch * s.heads * c.key_tiles * c.value_tiles), threads, bytes<T>(4), stream, c);
}
template <class T>
void launch_weights(const LinearAttention& s, const Call<T>& c, StreamHandle stream) {
  launch(weights_kernel<T>, unsigned(s.batch * s.heads * c.chunks), threads, bytes<T>(5), stream, c);
}
template void launch_states(const LinearAttention&, const Call<float>&, StreamHandle);
template void launch_states(const LinearAttention&, const Call<double>&, StreamHandle);
template void launch_states(const LinearAttention&, const Call<bf16>&, StreamHandle);
template void launch_weights(const LinearAttention&, const Call<float>&, StreamHandle);
template void launch_weights(const LinearAttention&, const Call<double>&, StreamHandle);
template void launch_weights(const LinearAttention&, const Call<bf16>&, StreamHandle);

}  // namespace gla

void linear_attention(const LinearAttention& s, const LinearForward& f, StreamHandle stream) {
  for_floating(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    gla::Call<T> c(s);
    c.q = static_cast<const T*>(f.q), c.k = static_cast<const T*>(f.k), c.v = static_cast<const T*>(f.v);
    c.g = static_cast<const A*>(f.g), c.first = static_cast<const A*>(f.first);
    c.out = static_cast<T*>(f.out), c.last = static_cast<A*>(f.last);
    c.states = f.q ? static_cast<A*>(f.states) : nullptr, c.weights = static_cast<A*>(f.weights);
    gla::launch_states(s, c, stream);
    if (!f.q) return;
    gla::launch_weights(s, c, stream);
    launch(gla::output_kernel<T>, unsigned(s.batch * s.heads * c.chunks * c.value_tiles), gla::threads,
           gla::bytes<T>(3), stream, c);
  });
}

}  // namespace dtensor::cuda
