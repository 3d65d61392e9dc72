// The rotary position embedding.
#pragma once

#include <tuple>
#include <vector>

#include "ops/core/call.h"

namespace dtensor::ops {

// How fast pairs of elements turn from position to position, in radians. Of d elements the pair i turns by
// theta^(-2i/d); or by frequencies[i], which may be fewer than d/2: then the elements from twice their number on stay
// as they are. What turns is multiplied by `scale`.
struct RotaryAngles {
  double theta = 10000;
  std::vector<double> frequencies = {};
  double scale = 1;
};
struct Rotary {
  double theta;
  std::vector<double> frequencies = {};
  double scale = 1;
  bool inverse = false;
  static constexpr auto fields() {
    return std::tuple(field("theta", &Rotary::theta), field("frequencies", &Rotary::frequencies),
                      field("scale", &Rotary::scale), field("inverse", &Rotary::inverse));
  }
  // Of heads of d elements. Errors: pairs that d has not.
  std::vector<double> of(int64_t d) const;
};

extern const Op rotary_op, rotary_pair_op;

// x [batch, sequence, heads, d]: rotates the pairs (i, i + pairs) by position * frequency, Hugging Face's rotate_half
// order. `positions`: i64 [sequence] or [batch, sequence], sharded as those dimensions of x are; absent,
// the position is the global index. Either way the sequence may be sharded.
DistributedTensor rotary(const DistributedTensor& x, const RotaryAngles& angles,
                         const DistributedTensor& positions = {});
DistributedTensor rotary(const DistributedTensor& x, double theta, const DistributedTensor& positions = {});
// Queries and keys at once, with one table of angles. The heads of q are a multiple of k's. Where theirs lie on other
// ranks than k's, as where k's are too few for the ranks, each is turned for itself.
std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        const RotaryAngles& angles,
                                                        const DistributedTensor& positions = {});
std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        double theta, const DistributedTensor& positions = {});

// Of a dimension `n` long, sequence or keys, of a tensor that has `batch` entries: an error but for i64 [n] or
// [batch, n].
void check_positions(std::string_view who, std::string_view what, const DistributedTensor& positions, int64_t batch,
                     int64_t n);
// A rule's term for them: "", "s" or "bs".
std::string positions_term(const Shape* positions, const char* sequence);
}  // namespace dtensor::ops
