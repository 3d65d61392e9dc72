// What tests of plans share: cost models, and plans as text.
#pragma once

#include "placement/notation.h"
#include "placement/redistribution.h"

namespace dtensor::testing {

struct Machine {
  const char* name;
  CostModel cost;
};

inline const CostModel bytes_only{std::vector<Link>(max_axes, Link{1, 0, 100}), {0, 0, 1000000}};
inline const CostModel late_outside{{{20000, 600, 370000}}, {1000, 0, 1500000}};
inline const CostModel slow_outside{{{20000, 2000, 25000}}, {1000, 0, 1500000}};

inline const Machine machines[] = {
    {"fast links", {}}, {"only bytes count", bytes_only}, {"the first axis is slow", slow_outside}};

inline Picoseconds time_of(const Plan& plan) {
  Picoseconds t = 0;
  for (const Step& s : plan.steps) t += s.time;
  return t;
}

// "all_gather(tp) 12, local": collectives, axes and bytes.
inline std::string show(const Plan& plan, const MeshShape& mesh) {
  std::string text;
  for (const Step& s : plan.steps) {
    text += (text.empty() ? "" : ", ") + std::string(collective_name(s.kind));
    if (!is_local(s.kind)) text += fmt::format("({}) {}", mesh.names(s.axes), s.bytes);
  }
  return text;
}

// "[5,8] on a=2,b=2, a=Shard(0) b=Replicate to a=Replicate b=Replicate"
inline std::string show(const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to) {
  return fmt::format("{} on {}, {} to {}", to_string(shape), to_string(mesh), to_string(from, mesh),
                     to_string(to, mesh));
}

}  // namespace dtensor::testing
