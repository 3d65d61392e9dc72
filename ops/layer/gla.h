// Gated linear attention: a recurrence over the sequence with a state of fixed size.
#pragma once

#include <tuple>

#include "ops/core/call.h"

namespace dtensor::ops {

struct GatedLinear {
  double scale;
  static constexpr auto fields() { return std::tuple(field("scale", &GatedLinear::scale)); }
};

extern const Op gated_linear_attention_op, gated_linear_attention_backward_op, linear_state_op, state_scan_op,
    state_scan_backward_op;

struct GatedLinearOptions {
  // [batch, heads, d, e], the state before the first token; absent: 0.
  DistributedTensor initial_state = {};
  double scale = 0;  // of the queries; 0: 1 / sqrt(d)
};

// S_t = diag(exp g_t) S_{t-1} + k_t v_t^T and out_t = scale q_t^T S_t, by head, in time linear in the sequence.
// q, k, g [batch, sequence, heads, d], v [batch, sequence, heads, e] -> out as v, and the last state
// [batch, heads, d, e]. g <= 0 is the logarithm of what is kept of the state; it is f32 where the others are bf16, and
// so are states. No exponent is above 0, so any gates are safe.
// Batch and heads shard, and so does the sequence, into equal parts over one axis: ranks find their parts' states, pass
// them on by a scan over the ranks, which is an all-to-all of one state for each rank before it and after it, and then
// compute their parts. Errors: shapes that do not fit; a sequence that is divided unevenly or over several axes.
// Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2023).
std::tuple<DistributedTensor, DistributedTensor> gated_linear_attention(const DistributedTensor& q,
                                                                        const DistributedTensor& k,
                                                                        const DistributedTensor& v,
                                                                        const DistributedTensor& g,
                                                                        const GatedLinearOptions& options = {});

}  // namespace dtensor::ops
