// Table look-up.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

struct TableSize {
  int64_t num_embeddings;
  static constexpr auto fields() { return std::tuple(field("num_embeddings", &TableSize::num_embeddings)); }
};

extern const Op embedding_op, embedding_backward_op;

// ids i64 [...], weight [v, d] -> [..., d]. A rank with part of the vocabulary looks up its range and leaves zeros
// elsewhere: Partial(sum). An id outside [0, v) is an error on CPU.
DistributedTensor embedding(const DistributedTensor& ids, const DistributedTensor& weight);

}  // namespace dtensor::ops
