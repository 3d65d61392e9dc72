// Layers: Linear, Embedding, LayerNorm, RMSNorm, Dropout, Activation, and those of several in one. nn/parallel/layers.h
// has those that are sharded by themselves, without a plan.
#pragma once

#include "nn/module.h"
#include "ops/all.h"

namespace dtensor::nn {

// x [..., in_features] -> [..., out_features]; weight [out_features, in_features].
class Linear : public Callable<DistributedTensor(const DistributedTensor&)> {
  std::unique_ptr<Parameter> own_;

 public:
  Linear(Module& parent, std::string name, int64_t in_features, int64_t out_features, bool with_bias, double std)
      : Callable(parent, std::move(name)),
        own_(std::make_unique<Parameter>(*this, "weight", Shape{out_features, in_features}, Init::normal(std))),
        weight(*own_) {
    input_names = {"input"};
    if (with_bias) add_bias(out_features);
  }
  // With the parameter of another module, which outlives this one: a head tied to its embedding. It stays one tensor,
  // of that module's name, and is the sum of both gradients.
  Linear(Module& parent, std::string name, Parameter& tied, bool with_bias = false)
      : Callable(parent, std::move(name)), weight(tied) {
    input_names = {"input"};
    if (with_bias) add_bias(tied.shape()[0]);
  }
  std::string_view kind() const override { return "Linear"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    return ops::linear(x, weight(), bias ? (*bias)() : DistributedTensor());
  }
  // residual + (*this)(x): one op where the module is plain.
  DistributedTensor add_to(const DistributedTensor& residual, const DistributedTensor& x);
  bool is_tied() const { return !own_; }

  Parameter& weight;
  std::unique_ptr<Parameter> bias;

 private:
  void add_bias(int64_t n) { bias = std::make_unique<Parameter>(*this, "bias", Shape{n}, Init::zeros()); }
};

// The linear layer of GPT-2's checkpoints: weight [in_features, out_features], and a bias.
class Conv1D : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Conv1D(Module& parent, std::string name, int64_t in_features, int64_t out_features, double std)
      : Callable(parent, std::move(name)),
        weight(*this, "weight", {in_features, out_features}, Init::normal(std)),
        bias(*this, "bias", {out_features}, Init::zeros()) {
    input_names = {"x"};
  }
  std::string_view kind() const override { return "Conv1D"; }
  DistributedTensor forward(const DistributedTensor& x) override { return ops::matmul(x, weight()) + bias(); }

  Parameter weight, bias;
};

// ids [...] -> [..., embedding_dim]; weight [num_embeddings, embedding_dim]. The row padding_idx, if it is not -1,
// begins at 0 and has no gradient.
class Embedding : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Embedding(Module& parent, std::string name, int64_t num_embeddings, int64_t embedding_dim, double std,
            int64_t padding_idx = -1)
      : Callable(parent, std::move(name)),
        weight(*this, "weight", {num_embeddings, embedding_dim}, Init::normal(std, padding_idx)),
        padding_idx_(padding_idx) {
    check(padding_idx >= -1 && padding_idx < num_embeddings,
          "[Embedding] padding_idx of {} is {}, outside its {} rows; -1 is none", path(), padding_idx, num_embeddings);
    input_names = {"input"};
  }
  std::string_view kind() const override { return "Embedding"; }
  DistributedTensor forward(const DistributedTensor& ids) override {
    return ops::embedding(ids, weight(), padding_idx_);
  }

  Parameter weight;

 private:
  int64_t padding_idx_;
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

// Over the last dimension.
class LayerNorm : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LayerNorm(Module& parent, std::string name, int64_t dim, double eps = 1e-5)
      : Callable(parent, std::move(name)),
        weight(*this, "weight", {dim}, Init::ones()),
        bias(*this, "bias", {dim}, Init::zeros()),
        eps_(eps) {
    input_names = {"input"};
  }
  std::string_view kind() const override { return "LayerNorm"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    return ops::layer_norm(x, weight.shape(), weight(), bias(), eps_);
  }

  Parameter weight, bias;

 private:
  double eps_;
};

// Drops by the open RandomScope, in training only (ops/layer/dropout.h).
class Dropout : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Dropout(Module& parent, std::string name, double p) : Callable(parent, std::move(name)), p_(p) {
    ops::check_probability("Dropout", p);
    input_names = {"input"};
  }
  std::string_view kind() const override { return "Dropout"; }
  DistributedTensor forward(const DistributedTensor& x) override { return p_ == 0 ? x : ops::dropout(x, p_); }

 private:
  double p_;
};

// By Hugging Face's names: silu (swish), gelu, gelu_new (gelu_pytorch_tanh), relu, tanh.
class Activation : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  // Errors: a name that is none of these.
  Activation(Module& parent, std::string name, const std::string& function);
  std::string_view kind() const override { return "Activation"; }
  DistributedTensor forward(const DistributedTensor& x) override { return function_(x); }

 private:
  DistributedTensor (*function_)(const DistributedTensor&);
};

// down(silu(gate) * up): a module for plans that name it, as flash-linear-attention's.
class SwiGLULinear : public Callable<DistributedTensor(const DistributedTensor&, const DistributedTensor&, Linear&)> {
 public:
  SwiGLULinear(Module& parent, std::string name) : Callable(parent, std::move(name)) { input_names = {"x", "y"}; }
  std::string_view kind() const override { return "SwiGLULinear"; }
  DistributedTensor forward(const DistributedTensor& gate, const DistributedTensor& up, Linear& down) override {
    return down(ops::swiglu(gate, up));
  }
};

// The head and its cross entropy in one, some rows at a time, so that the logits of all tokens never exist: as
// flash-linear-attention's criterion. A plan's LinearLossParallel is for it, and has the loss computed by it.
class LinearCrossEntropyLoss
    : public Callable<DistributedTensor(const DistributedTensor&, const DistributedTensor&, Linear&, int64_t)> {
 public:
  LinearCrossEntropyLoss(Module& parent, std::string name) : Callable(parent, std::move(name)) {
    input_names = {"x", "target"};
  }
  std::string_view kind() const override { return "LinearCrossEntropyLoss"; }
  // x [..., hidden], target i64 [...] -> the sum of the losses of targets that are not `ignored`: one number.
  DistributedTensor forward(const DistributedTensor& x, const DistributedTensor& target, Linear& head,
                            int64_t ignored) override;

  bool in_use = false;  // in place of logits
};

}  // namespace dtensor::nn
