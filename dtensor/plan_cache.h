// Redistributions that a mesh has planned.
#pragma once

#include <optional>

#include "dtensor/device_mesh.h"
#include "dtensor/local/recently_used.h"
#include "dtensor/route.h"

namespace dtensor {

// A plan, and what this rank gives and takes in its steps, found when bytes first move.
class PlannedMove {
 public:
  explicit PlannedMove(Plan p) : plan(std::move(p)), routes_(plan.steps.size()) {}
  const Route& route(const DeviceMesh& mesh, const Shape& shape, size_t step);

  const Plan plan;

 private:
  std::vector<std::unique_ptr<Route>> routes_;
};

// By interned specification and target. Bounded: the least recently used go.
class PlanCache {
 public:
  static constexpr size_t capacity = 2048;

  // The plan from `from` to the layout `to`, which has no axes of one rank. `reduce_dtype`: as in
  // plan_redistribution().
  std::shared_ptr<PlannedMove> find(const DeviceMesh& mesh, const LocalSpec& from, const Layout& to,
                                    std::optional<DType> reduce_dtype = {});
  size_t size() const { return moves_.size(); }

 private:
  struct Key {
    uint64_t from, to;
    std::optional<DType> reduce_dtype;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct Hash {
    size_t operator()(const Key& k) const {
      uint64_t h =
          ((k.from << 8 | uint64_t(k.reduce_dtype.has_value())) * 0x9e3779b97f4a7c15u ^ k.to) * 0x9e3779b97f4a7c15u;
      return h ^ h >> 32;
    }
  };
  RecentlyUsed<Key, std::shared_ptr<PlannedMove>, Hash> moves_{capacity};
};

}  // namespace dtensor
