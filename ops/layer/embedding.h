// Table look-up.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

// The row that has no gradient; -1: none.
struct Padding {
  int64_t padding_idx = -1;
  static constexpr auto fields() { return std::tuple(run_time("padding_idx", &Padding::padding_idx)); }
};
struct TableSize {
  int64_t num_embeddings, padding_idx = -1;
  static constexpr auto fields() {
    return std::tuple(field("num_embeddings", &TableSize::num_embeddings),
                      run_time("padding_idx", &TableSize::padding_idx));
  }
};

extern const Op embedding_op, embedding_backward_op;

// ids i64 [...], weight [v, d] -> [..., d]. A rank with part of the vocabulary looks up its range and leaves zeros
// elsewhere: Partial(sum). An id outside [0, v) is an error on CPU. The row padding_idx, if it is not -1, has no
// gradient, as in torch.nn.functional.embedding. Errors: a padding_idx outside [-1, v).
DistributedTensor embedding(const DistributedTensor& ids, const DistributedTensor& weight, int64_t padding_idx = -1);

}  // namespace dtensor::ops
