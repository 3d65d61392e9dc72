// Layers: Linear, Embedding, RMSNorm.
#pragma once

#include "nn/module.h"
#include "ops/all.h"

namespace dtensor::nn {

// x [..., in_features] -> [..., out_features]; weight [out_features, in_features].
class Linear : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Linear(Module& parent, std::string name, int64_t in_features, int64_t out_features, bool with_bias, double std)
      : Callable(parent, std::move(name)), weight(*this, "weight", {out_features, in_features}, Init::normal(std)) {
    input_names = {"input"};
    if (with_bias) bias = std::make_unique<Parameter>(*this, "bias", Shape{out_features}, Init::zeros());
  }
  std::string_view kind() const override { return "Linear"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    return ops::linear(x, weight(), bias ? (*bias)() : DistributedTensor());
  }

  Parameter weight;
  std::unique_ptr<Parameter> bias;
};

// ids [...] -> [..., embedding_dim]; weight [num_embeddings, embedding_dim].
class Embedding : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Embedding(Module& parent, std::string name, int64_t num_embeddings, int64_t embedding_dim, double std)
      : Callable(parent, std::move(name)), weight(*this, "weight", {num_embeddings, embedding_dim}, Init::normal(std)) {
    input_names = {"input"};
  }
  std::string_view kind() const override { return "Embedding"; }
  DistributedTensor forward(const DistributedTensor& ids) override { return ops::embedding(ids, weight()); }

  Parameter weight;
};

class RMSNorm : public Callable<DistributedTensor(const DistributedTensor&),
                                std::tuple<DistributedTensor, DistributedTensor>(const DistributedTensor&,
                                                                                 const DistributedTensor&)> {
 public:
  RMSNorm(Module& parent, std::string name, int64_t dim, double eps)
      : Callable(parent, std::move(name)), weight(*this, "weight", {dim}, Init::ones()), eps_(eps) {
    input_names = {"input", "residual"};
  }
  std::string_view kind() const override { return "RMSNorm"; }
  DistributedTensor forward(const DistributedTensor& x) override { return ops::rms_norm(x, weight(), eps_); }
  // The norm of x + residual, and the sum itself, in one pass.
  std::tuple<DistributedTensor, DistributedTensor> forward(const DistributedTensor& x,
                                                           const DistributedTensor& residual) override {
    return ops::add_rms_norm(x, residual, weight(), eps_);
  }

  Parameter weight;

 private:
  double eps_;
};

}  // namespace dtensor::nn
