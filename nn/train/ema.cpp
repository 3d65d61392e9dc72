#include "nn/train/ema.h"

#include "dtensor/creation.h"
#include "ops/functions.h"

namespace dtensor::nn {

Ema::Ema(std::vector<Parameter*> parameters, double decay) : parameters_(std::move(parameters)), decay_(decay) {
  check(decay >= 0 && decay < 1, "[Ema] a decay of {}; it is from 0 to below 1, as 0.999", decay);
  for (Parameter* p : parameters_) {
    DistributedTensor& stored = p->stored();
    check(stored.is_meta() == (stored.mesh().rank_state().device() == Device::meta),
          "[Ema] {} has no values yet: materialize() the model first", p->path());
    averages_.push_back(zeros_like(stored));
  }
  begin();
}

void Ema::begin() {
  for (size_t i = 0; i < parameters_.size(); ++i) averages_[i].copy_(parameters_[i]->stored());
}

void Ema::update() {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const DistributedTensor& now = parameters_[i]->stored();
    NoGrad scope(now.mesh().rank_state());
    averages_[i].copy_(ops::add(ops::mul(averages_[i], decay_), ops::mul(now, 1 - decay_)));
  }
}

// In place, because a captured step reads the parameters where they are.
void Ema::exchange() {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    DistributedTensor& stored = parameters_[i]->stored();
    NoGrad scope(stored.mesh().rank_state());
    DistributedTensor kept = zeros_like(stored);
    kept.copy_(stored);
    stored.copy_(averages_[i]);
    averages_[i].copy_(kept);
    parameters_[i]->renew();
  }
}

std::vector<Ema::Average> Ema::averages() {
  std::vector<Average> list;
  for (size_t i = 0; i < parameters_.size(); ++i) list.push_back({parameters_[i]->path(), averages_[i]});
  return list;
}

}  // namespace dtensor::nn
