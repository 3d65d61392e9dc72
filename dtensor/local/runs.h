// A part of a tensor as runs of elements that are neighbours in the whole.
#pragma once

#include "placement/layout.h"

namespace dtensor {

// Calls f(local, global, n) for runs of n elements, in order: `local` counts the elements of the box that come before,
// `global` is the first one's row-major index in the whole tensor of `shape`. Runs are as long as the box allows.
template <class F>
void for_each_run(const Shape& shape, const Box& box, const F& f) {
  int64_t left = box.numel();
  if (left == 0) return;
  Shape strides = contiguous_strides(shape), at = box.offset();
  int inner = box.dims;  // dimensions from here on are in every run
  int64_t n = 1, global = 0;
  while (inner > 0) {
    --inner;
    n *= box[inner].size();
    if (box[inner].size() != shape[inner]) break;
  }
  for (int d = 0; d < box.dims; ++d) global += at[d] * strides[d];
  for (int64_t local = 0; local < left; local += n) {
    f(local, global, n);
    for (int d = inner - 1; d >= 0; --d) {
      global += strides[d];
      if (++at[d] < box[d].end) break;
      global -= box[d].size() * strides[d];
      at[d] = box[d].begin;
    }
  }
}

// The global indices of element `local` of a box.
inline Shape global_index(const Box& box, int64_t local) {
  Shape at = box.offset();
  for (int d = box.dims - 1; d >= 0; --d) at[d] += local % box[d].size(), local /= box[d].size();
  return at;
}

}  // namespace dtensor
