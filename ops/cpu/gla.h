// Gated linear attention for one batch entry and one head, in chunks:
//
//   S_t = diag(exp g_t) S_{t-1} + k_t v_t^T,   out_t = scale q_t^T S_t.
//
// What the rows of a chunk take from the state before it is a product, and so is what they leave to the next. Among
// rows of a chunk the weights q_i k_j exp(g_{j+1} + ... + g_i), j <= i, are found by halving: rows of the second half
// meet those of the first at the row r between them, exp(g_{r+1} + ... + g_i) exp(g_{j+1} + ... + g_r), so that no
// exponent is above 0 and nothing overflows, whatever the gates are.
//
// Bits: a head's results depend on its own rows alone, an output on the rows up to its own, not on how many follow nor
// on the instruction set.
//
// Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2023), with halving in
// place of their secondary blocks.
#pragma once
#include <cstdint>
#include "ops/cpu/scratch.h"

namespace dtensor::cpu {

constexpr int64_t gla_chunk = 64;

/// Rows of q, k and g have `keys` elements, of v and out `values`; a row is contiguous, and rows are k_stride or
/// v_stride elements apart. States are [keys, values]. Any size may be 0. g <= 0.
struct GatedLinear {
  int64_t rows, keys, values;
  int64_t k_stride, v_stride;  // of q, k, g and their gradients; of v, out and theirs
  double scale = 1;
};

/// Writes out and the last state. `first` (null: 0) is the state before row 0. With q and out null, the state alone.
/// `last` may be `first`.
template <class T>
void gated_linear(const GatedLinear& a, const T* q, const T* k, const T* v, const T* g, const T* first, T* out, T* last,
                  Scratch& scratch);

/// The gradients of all that gated_linear reads, from those of out and of the last state (either may be null, and is 0
/// then). With q null, dout and dq are null too. States are computed again: rows / gla_chunk of them in memory.
template <class T>
struct GatedLinearGradients {
  T *dq, *dk, *dv, *dg, *dfirst;  // dfirst may be null
};
template <class T>
void gated_linear_backward(const GatedLinear& a, const T* dout, const T* dlast, const T* q, const T* k, const T* v,
                           const T* g, const T* first, const GatedLinearGradients<T>& gradients, Scratch& scratch);

}  // namespace dtensor::cpu
