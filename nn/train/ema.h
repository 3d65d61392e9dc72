// Averages of parameters over the steps of training.
#pragma once

#include "nn/module.h"

namespace dtensor::nn {

// The exponential moving average of each parameter, as stored: after a step it is `decay` times what it was and
// 1 - decay times the parameter. It begins as the parameters are when it is made. Nothing is communicated.
class Ema {
 public:
  // Errors: a decay that is not from 0 to below 1; parameters without values.
  Ema(std::vector<Parameter*> parameters, double decay);

  // The averages are the parameters as they are now.
  void begin();
  void update();
  // Exchanges the averages with the parameters, which compute with them until the next exchange.
  void exchange();

  // "PATH" of a parameter and its average: what a checkpoint saves and loads in place.
  struct Average {
    std::string path;
    DistributedTensor& tensor;
  };
  std::vector<Average> averages();

 private:
  std::vector<Parameter*> parameters_;
  std::vector<DistributedTensor> averages_;
  double decay_;
};

}  // namespace dtensor::nn
