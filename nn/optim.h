// AdamW, learning-rate schedule, gradient norm. Optimizers see stored local parts only and communicate nothing.
#pragma once

#include "nn/gradient_store.h"
#include "nn/module.h"

namespace dtensor::nn {

// Gradients of all parameters are wanted; those of one group are reduced together, as soon as they are complete.
void watch_parameters(GradientStore& store, const std::vector<Parameter*>& parameters);

// The gradients of parameters, brought to their stored layouts, all in as few launches as possible. Zeros where the
// loss does not depend on a parameter.
std::vector<DistributedTensor> reduce_gradients(GradientStore& store, const std::vector<Parameter*>& parameters);

// The Euclidean norm of all gradients, each parameter once: f64, Replicate. Parts of one layout are added first, so
// that there is one reduction per layout, all in one launch; what is Partial is reduced before. The host does not wait
// for it. Errors: none, or an undefined one.
DistributedTensor global_norm(const std::vector<DistributedTensor>& gradients);

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-8;
  double weight_decay = 0.1;
};

// Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); the same as torch.optim.AdamW.
class AdamW {
 public:
  AdamW(std::vector<Parameter*> parameters, const AdamWOptions& options);

  // One step in place, begin_step() and apply(). On meta nothing is written.
  void step(const std::vector<DistributedTensor>& gradients, double lr, const DistributedTensor& norm = {},
            double clip = 0);
  // Counts the step and, on CUDA, brings the numbers that change from step to step to the device.
  void begin_step(double lr);
  // The update: on CUDA one launch and no word from the host, so a graph can hold it. `gradients` are those of the
  // parameters, in their order and stored layouts. With their global `norm` they are clipped to `clip` (0: not), and
  // nothing is changed where it is not finite.
  void apply(const std::vector<DistributedTensor>& gradients, const DistributedTensor& norm, double clip);
  int64_t steps() const { return steps_; }

  // What is kept of a parameter from step to step: "exp_avg" and "exp_avg_sq", each of the parameter's stored
  // specification, zeros before the first step. With steps() this is all that a checkpoint needs besides the
  // parameters, on any mesh; loading writes the tensors in place, then set_steps().
  struct State {
    Parameter* parameter;
    std::string_view name;
    DistributedTensor& tensor;
    std::string path() const;  // "exp_avg.model.norm.weight"
  };
  // In the order of the parameters. Errors: parameters without values.
  std::vector<State> state();
  // Errors: a negative number.
  void set_steps(int64_t steps);

 private:
  void make_states();
  struct Piece;
  void apply_on_host(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip);
  void apply_on_device(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip);

  std::vector<Parameter*> parameters_;
  AdamWOptions options_;
  std::vector<DistributedTensor> exp_avg_, exp_avg_sq_;  // by parameter, made when they are asked for
  Tensor numbers_;                                       // of this step, on the device
  double lr_ = 0;
  int64_t steps_ = 0;
};

// Linear warm-up from a tenth, then a cosine to zero at `total` (torch: LinearLR(0.1), then CosineAnnealingLR).
// step counts from 0.
double warmup_cosine(int64_t step, double peak, int64_t warmup, int64_t total);

}  // namespace dtensor::nn
