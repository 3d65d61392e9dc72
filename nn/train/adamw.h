// The optimizer AdamW.
#pragma once

#include "nn/train/optimizer.h"

namespace dtensor::nn {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-8;
  double weight_decay = 0.1;
  // Parameters that do not decay: patterns of the last parts of their paths, in which * stands for any part of one
  // name. "bias" is every bias, "*norm.weight" model.norm.weight and model.layers.0.input_layernorm.weight.
  std::vector<std::string> no_decay = {};
};

// Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); the same as torch.optim.AdamW.
class AdamW : public Optimizer {
 public:
  // Errors: a pattern that no parameter has.
  AdamW(std::vector<Parameter*> parameters, const AdamWOptions& options);
  void begin_step(double lr) override;
  // On CUDA one launch, or two where some do not decay; offloaded parameters are updated on the host, which waits for
  // the norm.
  void apply(const std::vector<DistributedTensor>& gradients, const DistributedTensor& norm, double clip) override;
  // "exp_avg" and "exp_avg_sq".
  std::vector<State> state() override;

 private:
  void make_states();
  struct Piece;
  void apply_on_host(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip);
  void apply_on_device(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip);

  AdamWOptions options_;
  std::vector<double> decay_;                            // by parameter
  std::vector<DistributedTensor> exp_avg_, exp_avg_sq_;  // by parameter, made when they are asked for
  Tensor numbers_;                                       // of this step, on the device
  double lr_ = 0;
};

}  // namespace dtensor::nn
