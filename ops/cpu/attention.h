// Softmax attention without the matrix of scores, for one batch entry and one query head: out = softmax(scale q k^T) v.
//
// Bits: a query row's out, lse and dq depend on that row, its global position, and the keys and values; not on the
// other rows of the call (queries may be split anywhere), not on the instruction set. Keys are taken in blocks that
// begin at multiples of key_block of the GLOBAL key index, in order; blocks that a row sees nothing of do not matter.
// Positions that are given change what is seen, nothing else: given as they would be anyway, they change no bit.
// dk and dv are sums over the queries, taken in blocks of query_block global positions, in order: calls that split the
// queries elsewhere add to other bits.
//
// As in every such kernel, hidden keys have weight 0, so an infinity or NaN in v still spreads within its block.
//
// Source: Dao et al., "FlashAttention" (2022), the running maximum and sum of Milakov and Gimelshein, "Online
// normalizer calculation for softmax" (2018), and the backward pass with delta = sum(dout * out) of FlashAttention-2
// (2023).
#pragma once
#include <cstdint>
#include <type_traits>
#include "ops/cpu/drop.h"
#include "ops/cpu/scratch.h"

namespace dtensor::cpu {

constexpr int64_t key_block = 64;
constexpr int64_t query_block = 256;

/// q, out, dout, dq: [queries, head_dim]; k, v, dk, dv: [keys, head_dim]; lse: [queries]. Query row i is at global
/// position query_begin + i, key row j at key_begin + j (both >= 0), or where query_positions[i] and key_positions[j]
/// say; with `causal` the row sees the keys at its position and before, and of these the `window` last where that is
/// not 0; and where documents are given those of its own document alone, which is none where that is negative.
/// With query_step 0 all rows are at the first one's position and of its document: several heads of one query.
/// scale > 0. Sizes may be 0.
struct Attention {
  int64_t queries, keys, head_dim;
  int64_t query_begin = 0, key_begin = 0;
  bool causal = true;
  double scale = 1;
  const int64_t *query_positions = nullptr, *key_positions = nullptr;
  int64_t window = 0;
  const int64_t *query_documents = nullptr, *key_documents = nullptr;
  int64_t query_step = 1;

  bool by_position() const { return query_positions || key_positions || query_step == 0; }
  int64_t query_position(int64_t i) const {
    return query_positions ? query_positions[i * query_step] : query_begin + i * query_step;
  }
  int64_t query_document(int64_t i) const { return query_documents[i * query_step]; }
  int64_t key_position(int64_t j) const { return key_positions ? key_positions[j] : key_begin + j; }
};

/// What happens to the scores of one head besides. Pointers are at its query row 0 and key row 0; strides are elements
/// from row to row and from key to key, 0 where all have the same.
template <class T>
struct Scores {
  const T* bias = nullptr;        // added to scale * q k^T
  const bool* visible = nullptr;  // or: false hides the key from the row
  int64_t row_stride = 0, key_stride = 0;
  T* bias_gradient = nullptr;        // written by the backward pass: contiguous rows
  int64_t bias_gradient_stride = 0;  // from row to row
  Drop drop;                         // of the weights, after the softmax; the sum of a row is of all of them
  // The index of a weight is drop_first + query position * drop_stride + key position.
  int64_t drop_first = 0, drop_stride = 0;

  bool masked() const { return bias || visible; }
};

/// Writes out and lse = log(sum(exp(scale * q k^T))) by row. A row that sees no key, or that a mask
/// leaves none, gets out = 0 and lse = -inf, and no gradient.
/// Strides are elements from row to row; a row is contiguous. out overlaps no input. T: float or double.
template <class T>
void attention(const Attention& a, const T* q, int64_t q_stride, const T* k, int64_t k_stride, const T* v,
               int64_t v_stride, T* out, int64_t out_stride, T* lse, Scratch& scratch,
               const std::type_identity_t<Scores<T>>& more = {});

/// From the results of the forward pass and dout: writes dq, ADDS to dk and dv (so that the query heads that share a
/// key head are calls in a row, in a fixed order).
template <class T>
void attention_backward(const Attention& a, const T* q, int64_t q_stride, const T* k, int64_t k_stride, const T* v,
                        int64_t v_stride, const T* out, int64_t out_stride, const T* dout, int64_t dout_stride,
                        const T* lse, T* dq, int64_t dq_stride, T* dk, int64_t dk_stride, T* dv, int64_t dv_stride,
                        Scratch& scratch, const std::type_identity_t<Scores<T>>& more = {});

}  // namespace dtensor::cpu
