// Propagation: from an op's rule and the layouts of its inputs, how to run it on every axis of a mesh.
#pragma once

#include <span>
#include <vector>

#include "placement/notation.h"
#include "placement/redistribution.h"
#include "placement/rule.h"

namespace dtensor {

// One way to run an op on a mesh: a strategy per axis, and a sharding order per factor that all operands share (law 4).
struct Choice {
  std::vector<Layout> inputs, outputs;  // absent inputs: Replicate
  std::vector<AxisList> factors;        // of each factor of the rule, the axes that split it
  int64_t bytes = 0;                    // received by one rank to bring the inputs there
  int moves = 0;                        // inputs that need a redistribution, local ones included
  int64_t output_bytes = 0;             // from the outputs to the wanted layouts
  int output_moves = 0;                 // outputs that are not in the wanted layout
};

struct Propagation {
  const BoundRule& rule;
  const MeshShape& mesh;
  std::span<const TensorSpec* const> inputs;   // a null pointer is an absent operand
  std::span<const Layout* const> wanted = {};  // per output the layout it will be brought to; null where unknown
  const CostModel& cost;
  DType reduce_dtype = DType::f32;     // of contributions of bf16: f32 or bf16
  std::span<const int> in_place = {};  // output o is input in_place[o] itself: both stay in its layout
};

// The choice with the fewest bytes; then the fewest moves; then the outputs nearest to the wanted layouts; then the
// first in the order of strategies. Divided compute is not credited: it slices inputs for free and pays later. No
// heuristic: a search leaves out what cannot be that choice.
Choice choose(const Propagation& p);

// The first `count` choices in that order: what the nearest alternatives would have cost. Fewer where there are no
// more; there may be none where an operand is written in place.
std::vector<Choice> best_choices(const Propagation& p, size_t count);

// Every choice in that order, found by trying all: what the search must agree with. Their number is exponential in the
// axes: hundreds of thousands on six.
std::vector<Choice> all_choices(const Propagation& p);

}  // namespace dtensor
