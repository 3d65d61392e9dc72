// Gated linear attention on CUDA, in chunks, by the formulae of ops/cpu/gla.h.
#pragma once

#include <cstdint>

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// q, k, g [batch, rows, heads, keys], v and out [batch, rows, heads, values], states [batch, heads, keys, values]: all
// contiguous, of any sizes, 0 too. Gates, states and what is computed in between are f32 where the others are bf16.
struct LinearAttention {
  DType dtype;  // of q, k, v and out
  int64_t batch, rows, heads, keys, values;
  double scale;

  int64_t chunk() const { return dtype == DType::f64 ? 32 : 64; }  // rows
  int64_t chunks() const { return (rows + chunk() - 1) / chunk(); }
  // The elements of a state before each chunk, and of weights of each chunk's pairs of rows.
  int64_t states() const { return batch * heads * chunks() * keys * values; }
  int64_t weights() const { return batch * heads * chunks() * chunk() * chunk(); }
};

// `states` and `weights` are room of that many elements.
struct LinearForward {
  const void *q, *k, *v, *g;
  const void* first;  // the state before row 0; null: 0
  void *out, *last;
  void *states, *weights;
};

// Writes out and the last state; with q null, the last state alone, and then only k, v, g, first and last are used.
// Each head's bits depend on its own rows alone, and are the same every time. No exponent is above 0. Time is linear in
// the rows: states pass from chunk to chunk in one block for each head and 64 x 64 elements of its state; all else is
// done for all chunks at once. Products of whole tiles of bf16 run on tensor cores in TF32, the others and what pairs
// of rows in a chunk have to do with each other in plain multiply-adds.
// Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2023), with halving in
// place of their secondary blocks.
void linear_attention(const LinearAttention&, const LinearForward&, StreamHandle);

// What LinearForward has again, and more such room.
struct LinearBackward {
  const void *dout, *dlast;  // either may be null, and is 0 then
  const void *q, *k, *v, *g, *first;
  void *dq, *dk, *dv, *dg, *dfirst;  // dfirst may be null
  void *states, *gradients;          // of the states after chunks
  void *weights, *dweights;
};

// The gradients of all that the forward pass reads. With q null so are dout and dq.
void linear_attention_backward(const LinearAttention&, const LinearBackward&, StreamHandle);

// before_0 = first and before_{p+1} = exp(decay_p) before_p + own_p: decay [batch, parts, rows], own and before
// [batch, parts, rows, values], first (null: 0) and last [batch, rows, values], all f32 or f64.
struct StateScan {
  DType dtype;
  int64_t batch, parts, rows, values;
};
void state_scan(const StateScan&, const void* decay, const void* own, const void* first, void* before, void* last,
                StreamHandle);
// dbefore and dlast may be null, and are 0 then.
void state_scan_backward(const StateScan&, const void* dbefore, const void* dlast, const void* decay,
                         const void* before, void* ddecay, void* down, void* dfirst, StreamHandle);

}  // namespace dtensor::cuda
