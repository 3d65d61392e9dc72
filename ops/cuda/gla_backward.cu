// The backward pass: states and weights again, the gradients of states from the last chunk to the first, those of
// weights, of values, and of queries, keys and gates.
#include "ops/cuda/gla.cuh"

namespace dtensor::cuda {
namespace gla {
namespace {

// A block walks the chunks backwards with a tile of the state's gradient.
template <class T>
__global__ void __launch_bounds__(threads) state_gradients_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, 1, c.key_tiles, c.value_tiles);
  A *state = dynamic_shared<A>(), *q = state + tile_size<T>, *dout = q + tile_size<T>, *g = dout + tile_size<T>,
    *kept = g + tile_size<T>;
  if (c.dlast)
    load_state(at, state, c.dlast + at.state());
  else
    clear_tile<T>(state);
  for (at.chunk = c.chunks - 1; at.chunk >= 0; --at.chunk) {
    __syncthreads();
    store_state(at, c.gradients + at.state_of_chunk(), state);
    load_keys(at, g, c.g);
    if (c.dout) load_keys(at, q, c.q), load_values(at, dout, c.dout);
    __syncthreads();
    since_start<T>(g, [&](int i, int j, A sum) {
      const A e = std::exp(sum);
      if (c.dout) q[i * width<T> + j] *= c.scale * e;
      if (i == tile<T> - 1) kept[j] = e;
    });
    __syncthreads();
    Product<T> own;
    if (c.dout) own.add(at.row_count(), q, 1, width<T>, dout, width<T>, 1);
    for_each(own, [&](int i, int j, A x) { state[i * width<T> + j] = kept[i] * state[i * width<T> + j] + x; });
  }
  __syncthreads();
  if (c.dfirst) store_state(at, c.dfirst + at.state(), state);
}

// dout v^T on and under the diagonal.
template <class T>
__global__ void __launch_bounds__(threads) weight_gradients_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, c.chunks, 1, 1);
  A *dout = dynamic_shared<A>(), *v = dout + tile_size<T>;
  Product<T> dw;
  for (; at.value < c.values; at.value += tile<T>) {
    __syncthreads();
    load_values(at, dout, c.dout), load_values(at, v, c.v);
    __syncthreads();
    dw.add(at.value_count(), dout, width<T>, 1, v, 1, width<T>);
  }
  __syncthreads();
  for_each(dw, [&](int i, int j, A x) { v[i * width<T> + j] = j <= i ? x : A(0); });
  __syncthreads();
  store_weights(at, c.dweights, v);
}

template <class T>
__global__ void __launch_bounds__(threads) values_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, c.chunks, 1, c.value_tiles);
  A *x = dynamic_shared<A>(), *y = x + tile_size<T>, *g = y + tile_size<T>;
  Product<T> dv;
  if (c.dout) {
    load_weights(at, x, c.weights), load_values(at, y, c.dout);
    __syncthreads();
    dv.add(at.row_count(), x, 1, width<T>, y, width<T>, 1);
  }
  for (; at.key < c.keys; at.key += tile<T>) {
    __syncthreads();
    load_keys(at, x, c.k), load_keys(at, g, c.g), load_state(at, y, c.gradients + at.state_of_chunk());
    __syncthreads();
    until_end<T>(g, [&](int i, int j, A sum) { x[i * width<T> + j] *= std::exp(sum); });
    __syncthreads();
    dv.add(at.key_count(), x, width<T>, 1, y, width<T>, 1);
  }
  __syncthreads();
  for_each(dv, [&](int i, int j, A sum) { x[i * width<T> + j] = sum; });
  __syncthreads();
  store_values(at, c.dv, x);
}

// What a block has of a chunk and a tile of keys: q, k and g, and room. Gradients are a thread's elements of products:
// `dq` of scale * q, `dk` by way of the chunk's own rows, `dk_after` by way of the state after it.
template <class T>
struct Keys {
  using A = Accumulate<T>;
  A *q, *k, *g, *x, *y, *z;
  A* ends;  // [tile]: of each key, what the sum of all of the chunk's gates gets by way of the state before it
  Product<T> dq, dk, dk_after;

  __device__ explicit Keys(A* shared)
      : q(shared),
        k(q + tile_size<T>),
        g(k + tile_size<T>),
        x(g + tile_size<T>),
        y(x + tile_size<T>),
        z(y + tile_size<T>),
        ends(z + tile_size<T>) {}

  // From the state before the chunk and the gradient of that after it.
  __device__ void by_states(const Call<T>& c, Place<T>& at) {
    constexpr int lanes = threads / tile<T>;  // that share a key
    const int key = int(threadIdx.x) / lanes * width<T>, lane = int(threadIdx.x) % lanes;
    A meet = 0;
    for (; at.value < c.values; at.value += tile<T>) {
      __syncthreads();
      if (c.dout) load_values(at, x, c.dout);
      load_state(at, y, c.states + at.state_of_chunk()), load_state(at, z, c.gradients + at.state_of_chunk());
      __syncthreads();
      if (c.dout) dq.add(at.value_count(), x, width<T>, 1, y, 1, width<T>);
      for (int n = lane; n < tile<T>; n += lanes) meet += y[key + n] * z[key + n];
      __syncthreads();
      load_values(at, x, c.v);
      __syncthreads();
      dk_after.add(at.value_count(), x, width<T>, 1, z, 1, width<T>);
    }
    for (int step = lanes / 2; step > 0; step /= 2) meet += __shfl_xor_sync(0xffffffffu, meet, step);
    if (lane == 0) ends[key / width<T>] = meet;
    __syncthreads();
    since_start<T>(g, [&](int i, int j, A sum) {
      x[i * width<T> + j] = std::exp(sum);
      if (i == tile<T> - 1) ends[j] *= std::exp(sum);
    });
    until_end<T>(g, [&](int i, int j, A sum) { y[i * width<T> + j] = std::exp(sum); });
    __syncthreads();
#pragma unroll
    for (int n = 0; n < Product<T>::count; ++n) {
      const int element = dq.row(n) * width<T> + dq.column(n);
      dq.sum[n] *= x[element], dk_after.sum[n] *= y[element];
    }
    __syncthreads();
  }

  // From the gradients of weights, in x, of blocks of `half` rows that meet.
  __device__ void by_halves(A scale, int half) {
    to_middle<T>(g, half, [&](int i, int j, A sum, bool later) {
      const int element = i * width<T> + j;
      y[element] = std::exp(sum);
      z[element] = y[element] * (later ? scale * q[element] : k[element]);
    });
    __syncthreads();
#pragma unroll
    for (int n = 0; n < Product<T>::count; ++n) {
      const int i = dq.row(n), j = dq.column(n), begin = (i / half ^ 1) * half;  // of the rows that row i meets
      const bool later = i / half % 2;
      const A *w = x + (later ? i * width<T> + begin : begin * width<T> + i), *other = z + begin * width<T> + j;
      const int next = later ? 1 : width<T>;
      A sum = 0;
#pragma unroll 4
      for (int m = 0; m < half; ++m) sum += w[m * next] * other[m * width<T>];
      sum *= y[i * width<T> + j];
      dq.sum[n] += later ? sum : A(0), dk.sum[n] += later ? A(0) : sum;
    }
    __syncthreads();
  }

  // The same of different rows in blocks of `near`.
  __device__ void by_near(A scale) {
#pragma unroll
    for (int n = 0; n < Product<T>::count; ++n) {
      const int i = dq.row(n), j = dq.column(n), begin = i / near * near;
      A gates = 0;
      for (int m = i - 1; m >= begin; --m) {
        gates += g[(m + 1) * width<T> + j];
        dq.sum[n] += x[i * width<T> + m] * k[m * width<T> + j] * std::exp(gates);
      }
      gates = 0;
      for (int m = i + 1; m < begin + near; ++m) {
        gates += g[m * width<T> + j];
        dk.sum[n] += x[m * width<T> + i] * scale * q[m * width<T> + j] * std::exp(gates);
      }
    }
  }

  // A gate's gradient is the sum of what passes over it: of q dq - k dk of its row and those behind it, but for what k
  // has by way of the state after, which passes over the gates behind it; and of `ends`. Then dq and dk are complete:
  // pairs of a row and itself pass over no gate.
  __device__ void finish(A scale, bool has_queries) {
#pragma unroll
    for (int n = 0; n < Product<T>::count; ++n) {
      const int i = dq.row(n), element = i * width<T> + dq.column(n);
      const A a = has_queries ? scale * q[element] : A(0), b = k[element];
      y[element] = a * dq.sum[n] - b * dk.sum[n];
      z[i + 1 < tile<T> ? element + width<T> : dq.column(n)] = i + 1 < tile<T> ? b * dk_after.sum[n] : A(0);
      const A w = has_queries ? x[i * width<T> + i] : A(0);
      dq.sum[n] = scale * (dq.sum[n] + w * b);
      dk.sum[n] += w * a + dk_after.sum[n];
    }
    __syncthreads();
    until_end<T>(y, [&](int i, int j, A sum) { x[i * width<T> + j] = sum + y[i * width<T> + j]; });
    since_start<T>(z, [&](int i, int j, A sum) { x[i * width<T> + j] += sum + ends[j]; });
    __syncthreads();
  }
};

// Shared memory is enough for two blocks at a time, and registers shall be.
template <class T>
__global__ void __launch_bounds__(threads, 2) keys_kernel(Call<T> c) {
  using A = Accumulate<T>;
  Place<T> at(c, c.chunks, c.key_tiles, 1);
  Keys<T> s(dynamic_shared<A>());
  if (c.dout) load_keys(at, s.q, c.q);
  load_keys(at, s.k, c.k), load_keys(at, s.g, c.g);
  s.by_states(c, at);
  if (c.dout) {
    load_weights(at, s.x, c.dweights);
    __syncthreads();
    for (int half = tile<T> / 2; half >= near; half /= 2)
      if (half < at.rows()) s.by_halves(c.scale, half);
    s.by_near(c.scale);
  }
  s.finish(c.scale, c.dout != nullptr);
  store_keys(at, c.dg, s.x);
  for_each(s.dq, [&](int i, int j, A sum) { s.y[i * width<T> + j] = sum; });
  for_each(s.dk, [&](int i, int j, A sum) { s.z[i * width<T> + j] = sum; });
  __syncthreads();
  if (c.dq) store_keys(at, c.dq, s.y);
  store_keys(at, c.dk, s.z);
}

}  // namespace
}  // namespace gla

void linear_attention_backward(const LinearAttention& s, const LinearBackward& b, StreamHandle stream) {
  for_floating(s.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    gla::Call<T> c(s);
    c.q = static_cast<const T*>(b.q), c.k = static_cast<const T*>(b.k), c.v = static_cast<const T*>(b.v);
    c.g = static_cast<const A*>(b.g), c.first = static_cast<const A*>(b.first);
    c.dout = static_cast<const T*>(b.dout), c.dlast = static_cast<const A*>(b.dlast);
    c.dq = static_cast<T*>(b.dq), c.dk = static_cast<T*>(b.dk), c.dv = static_cast<T*>(b.dv);
    c.dg = static_cast<A*>(b.dg), c.dfirst = static_cast<A*>(b.dfirst);
    c.states = static_cast<A*>(b.states), c.gradients = static_cast<A*>(b.gradients);
    c.weights = static_cast<A*>(b.weights), c.dweights = static_cast<A*>(b.dweights);
    const unsigned heads = unsigned(s.batch * s.heads), chunks = heads * unsigned(c.chunks);
    gla::launch_states(s, c, stream);
    launch(gla::state_gradients_kernel<T>, heads * unsigned(c.key_tiles * c.value_tiles), gla::threads,
           gla::bytes<T>(4), stream, c);
    if (c.dout) {
      gla::launch_weights(s, c, stream);
      launch(gla::weight_gradients_kernel<T>, chunks, gla::threads, gla::bytes<T>(2), stream, c);
    }
    launch(gla::values_kernel<T>, chunks * unsigned(c.value_tiles), gla::threads, gla::bytes<T>(3), stream, c);
    launch(gla::keys_kernel<T>, chunks * unsigned(c.key_tiles), gla::threads, gla::bytes<T>(6), stream, c);
  });
}

}  // namespace dtensor::cuda
