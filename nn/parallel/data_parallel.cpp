#include "nn/parallel/data_parallel.h"

#include <fmt/format.h>

#include "nn/parallel/json_place.h"

namespace dtensor::nn {
namespace {

constexpr double most_mb = 1 << 20;

// Parameters that are whole anyway, and whose gradients travel together.
class Bucket : public ParameterGroup {
 public:
  explicit Bucket(std::vector<Parameter*> parameters) : parameters_(std::move(parameters)) {}
  const std::vector<Parameter*>& parameters() const override { return parameters_; }
  DistributedTensor tensor(const Parameter&, size_t) const override { return {}; }

 private:
  std::vector<Parameter*> parameters_;
};

int64_t gradient_bytes(const Parameter& p) {
  return numel(p.stored().spec().local_shape) * itemsize(p.stored().dtype());
}

}  // namespace

void replicate(Module& module, int64_t bucket_bytes) {
  check(bucket_bytes >= 1, "[replicate] buckets of {} bytes hold no gradient", bucket_bytes);
  std::vector<Parameter*> bucket;
  int64_t bytes = 0;
  auto close = [&] {
    if (bucket.empty()) return;
    auto group = std::make_shared<Bucket>(bucket);
    for (Parameter* p : bucket) p->join(group);
    bucket.clear(), bytes = 0;
  };
  std::vector<Parameter*> parameters = module.parameters();
  for (size_t i = parameters.size(); i-- > 0;) {
    if (parameters[i]->group()) continue;
    bucket.push_back(parameters[i]);
    bytes += gradient_bytes(*parameters[i]);
    if (bytes >= bucket_bytes) close();
  }
  close();
}

DataParallelPlan DataParallelPlan::from_json(const JsonPlace& p) {
  p.fields({"axis", "bucket_mb"}, {"axis"});
  DataParallelPlan d{p.at("axis").text()};
  if (!p.has("bucket_mb")) return d;
  JsonPlace mb = p.at("bucket_mb");
  double value = mb.value.is_number() ? mb.value.get<double>() : 0;
  if (!(value > 0 && value <= most_mb))
    mb.error(fmt::format("{} is no size of a bucket: a number of MiB above 0, at most {}", mb.value.dump(), most_mb));
  d.bucket_mb = value;
  return d;
}

nlohmann::ordered_json DataParallelPlan::to_json() const {
  nlohmann::ordered_json object{{"axis", axis}};
  if (bucket_mb != DataParallelPlan().bucket_mb) object["bucket_mb"] = bucket_mb;
  return object;
}

// The batch is divided over the axis by batch_layout, where parameters are replicated as they are.
void DataParallelPlan::apply(Module& model) const {
  replicate(model, std::max(int64_t(bucket_mb * (1 << 20)), int64_t(1)));
}

}  // namespace dtensor::nn
