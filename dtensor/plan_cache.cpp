#include "dtensor/plan_cache.h"

#include "placement/redistribution.h"

namespace dtensor {

const Route& PlannedMove::route(const DeviceMesh& mesh, const Shape& shape, size_t step) {
  if (!routes_[step])
    routes_[step] = std::make_unique<Route>(find_route(mesh.shape(), shape, plan.steps[step], mesh.rank()));
  return *routes_[step];
}

std::shared_ptr<PlannedMove> PlanCache::find(const DeviceMesh& mesh, const LocalSpec& from, const Layout& to,
                                             std::optional<DType> reduce_dtype) {
  Key key{from.id, to.code(), reduce_dtype};
  if (auto* known = moves_.find(key)) return *known;
  return moves_.insert(key, std::make_shared<PlannedMove>(plan_redistribution(mesh.shape(), from.shape, from.dtype,
                                                                              from.layout, to, {}, reduce_dtype)));
}

std::shared_ptr<PlanCache> make_plan_cache() { return std::make_shared<PlanCache>(); }

}  // namespace dtensor
