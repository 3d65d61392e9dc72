#include "nn/parallel/data_parallel.h"

#include "nn/parallel/json_place.h"

namespace dtensor::nn {

DataParallelPlan DataParallelPlan::from_json(const JsonPlace& p) {
  p.fields({"axis"}, {"axis"});
  return {p.at("axis").text()};
}

nlohmann::ordered_json DataParallelPlan::to_json() const { return {{"axis", axis}}; }

// The batch is divided over the axis (batch_layout), and parameters are replicated as they are.
void DataParallelPlan::apply(Module&) const {}

}  // namespace dtensor::nn
