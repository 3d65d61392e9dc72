// One step of a redistribution.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "placement/cost.h"
#include "placement/layout.h"

namespace dtensor {

// slice           every rank keeps a part of what it holds, replicated axes become shards local
// embed           replicated axes or innermost shards become Partial, padded with zeros   local
// all_gather      innermost shards become replicated; replicated axes may be sliced along
// permute         shards change place; every new piece comes whole from one rank
// all_to_all      shards change place, or some of them leave; a new piece comes from several ranks
// reduce_scatter  Partial axes become shards, innermost; replicated axes may be sliced along
// all_reduce      Partial axes become replicated
enum class StepKind : uint8_t { slice, embed, all_gather, permute, all_to_all, reduce_scatter, all_reduce };

constexpr bool is_local(StepKind k) { return k == StepKind::slice || k == StepKind::embed; }
constexpr bool is_exchange(StepKind k) {
  return k == StepKind::all_gather || k == StepKind::permute || k == StepKind::all_to_all;
}

// The name of the collective in logs and JSON; steps that move nothing are "local".
constexpr std::string_view collective_name(StepKind k) {
  constexpr std::string_view names[] = {"local",      "local",          "all_gather", "permute",
                                        "all_to_all", "reduce_scatter", "all_reduce"};
  return names[int(k)];
}

struct Step {
  StepKind kind = StepKind::slice;
  AxisSet axes = 0;  // the group: ranks that differ on these axes only
  Layout from, to;
  int64_t bytes = 0;     // received by the busiest rank, without padding; reductions by a ring's count
  Picoseconds time = 0;  // by the cost model
};

// The steps from one layout to another, in order.
struct Plan {
  std::vector<Step> steps;
  int64_t bytes() const {
    int64_t n = 0;
    for (const Step& s : steps) n += s.bytes;
    return n;
  }
  // Steps that communicate.
  int collectives() const {
    int n = 0;
    for (const Step& s : steps) n += !is_local(s.kind);
    return n;
  }
};

}  // namespace dtensor
