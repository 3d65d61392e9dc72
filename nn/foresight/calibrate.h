// What this machine can do, measured: hardware for forecasts of it.
#pragma once

#include <functional>
#include <string>

#include "dtensor/local/device.h"
#include "nn/foresight/hardware.h"

namespace dtensor::nn {

struct CalibrateOptions {
  Device device = Device::cpu;
  int64_t memory_bytes = 0;                           // of a device: what --check holds peaks against
  int cores = 1;                                      // of the host
  int steps = 9;                                      // measured of each size, after two that are not
  std::function<void(const std::string&)> note = {};  // is told what is measured
};

// Trains small Llamas for some steps, in as many copies as there are cores, and times each call: so products, attention
// and other kernels cost what they do in a step, the host's part included. Then reduces tensors of several sizes over
// ranks that are threads, and trains on 1, 2, 4 and 8 of them, over dp, over tp and fully sharded: how much they hold
// each other up. In half a minute; the machine should have nothing else to do. Errors: no memory, cores or steps.
Hardware calibrate(const CalibrateOptions& options);

// seconds + work / per_second through measured (work, seconds), so that the sum of squares of relative errors is least
// and neither is negative. Errors: no samples, or none that took time.
Rate fit(const std::vector<std::pair<double, double>>& samples);

}  // namespace dtensor::nn
