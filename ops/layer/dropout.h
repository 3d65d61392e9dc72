// Dropout, by global index: the same elements are dropped on every mesh, however the batch is cut and the sequence
// permuted, and again in a recomputation (law 5).
#pragma once

#include "dtensor/random_scope.h"
#include "ops/core/call.h"

namespace dtensor::ops {

// `key`: of the stream, at step 0.
struct Dropout {
  double p;
  int64_t key;
  static constexpr auto fields() { return std::tuple(field("p", &Dropout::p), run_time("key", &Dropout::key)); }
};

extern const Op dropout_op;

// Each element is 0 with probability p, else x / (1 - p), as torch.nn.functional.dropout. Element i, counted in global
// row-major order, is kept where the number that fill_uniform gives element i of the stream is at least p. x itself
// where p is 0; zeros for p = 1. Floating types. Errors: p outside [0,1].

// By the open RandomScope: x itself in evaluation, else by the innermost module's stream. Where the scope has rows or
// positions, i is counted as if element (r, s, ...) stood at (rows[r], positions[s], ...). Errors: no scope is open;
// rows or positions that are not as many as x has.
DistributedTensor dropout(const DistributedTensor& x, double p);
// By a stream; x itself where training is false. Errors: a graph is being captured, which would drop the same elements
// with each launch.
DistributedTensor dropout(const DistributedTensor& x, double p, const RandomStream& stream, bool training = true);

// For ops that drop: what a call draws from, as attributes and operands. The step is an operand, so that it may change
// in a captured graph, and so are rows and positions, which are undefined where elements have their own index.
struct Draw {
  int64_t key = 0;  // at step 0
  DistributedTensor step, rows, positions;
};
// From the open scope, or nothing in evaluation; from a stream. `who`: the public function.
std::optional<Draw> draw_from_scope(std::string_view who, const DeviceMesh& mesh);
Draw draw_from_stream(std::string_view who, const DeviceMesh& mesh, const RandomStream& stream);

// An error for a probability outside [0,1].
void check_probability(std::string_view who, double p);

}  // namespace dtensor::ops
