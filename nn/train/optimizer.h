// What a trainer and a checkpoint need of an optimizer.
#pragma once

#include <string>

#include "nn/module.h"

namespace dtensor::nn {

// Updates stored local parts of parameters, those of them that require gradients, and communicates nothing. On meta
// nothing is written, but values count as new.
class Optimizer {
 public:
  explicit Optimizer(std::vector<Parameter*> parameters) : parameters_(std::move(parameters)) {
    std::erase_if(parameters_, [](const Parameter* p) { return !p->requires_grad; });
  }
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  const std::vector<Parameter*>& parameters() const { return parameters_; }

  // One step in place, begin_step() and apply().
  void step(const std::vector<DistributedTensor>& gradients, double lr, const DistributedTensor& norm = {},
            double clip = 0) {
    begin_step(lr);
    apply(gradients, norm, clip);
  }
  // Counts the step and, on CUDA, brings the numbers that change from step to step to the device.
  virtual void begin_step(double lr) = 0;
  // The update: on CUDA without a word from the host, so that a graph can hold it, but for parameters in host memory.
  // `gradients` are those of the parameters, in their order and stored layouts. With their global `norm` they are
  // clipped to `clip` (0: not), and nothing is changed where it is not finite. It renews the parameters' forms.
  virtual void apply(const std::vector<DistributedTensor>& gradients, const DistributedTensor& norm, double clip) = 0;
  int64_t steps() const { return steps_; }

  // What is kept of a parameter from step to step: of the parameter's stored specification, zeros before the first
  // step. With steps() this is all that a checkpoint needs besides the parameters, on any mesh; loading writes the
  // tensors in place, then set_steps().
  struct State {
    Parameter* parameter;
    std::string_view name;
    DistributedTensor& tensor;
    std::string path() const { return fmt::format("{}.{}", name, parameter->path()); }  // "exp_avg.model.norm.weight"
  };
  // In the order of the parameters. Errors: parameters without values.
  virtual std::vector<State> state() = 0;
  // Errors: a negative number.
  void set_steps(int64_t steps) {
    check(steps >= 0, "[Optimizer] {} steps cannot have been taken", steps);
    steps_ = steps;
  }

 protected:
  std::vector<Parameter*> parameters_;
  int64_t steps_ = 0;
};

}  // namespace dtensor::nn
