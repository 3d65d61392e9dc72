#include "nn/train/adamw.h"

#include <cmath>

#include "dtensor/creation.h"
#include "nn/train/gradients.h"
#include "ops/cpu/fused.h"
#include "ops/cuda/optim.h"
#include "ops/family/kernel.h"

namespace dtensor::nn {

// This rank's part of a parameter, its states and its gradient; and of its copy for computing, where the update writes
// that one too.
struct AdamW::Piece {
  Tensor value, copy, exp_avg, exp_avg_sq, gradient;
};

AdamW::AdamW(std::vector<Parameter*> parameters, const AdamWOptions& options)
    : Optimizer(std::move(parameters)), options_(options) {}

void AdamW::make_states() {
  if (!exp_avg_.empty()) return;
  for (const Parameter* p : parameters_) {
    const DistributedTensor& stored = p->stored();
    check(stored.local().device() == stored.mesh().rank_state().device(),
          "[AdamW] {} has no values yet: materialize() the model first", p->path());
  }
  for (const Parameter* p : parameters_) {
    exp_avg_.push_back(zeros_like(p->stored()));
    exp_avg_sq_.push_back(zeros_like(p->stored()));
  }
}

std::vector<AdamW::State> AdamW::state() {
  make_states();
  std::vector<State> list;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    list.push_back({parameters_[i], "exp_avg", exp_avg_[i]});
    list.push_back({parameters_[i], "exp_avg_sq", exp_avg_sq_[i]});
  }
  return list;
}

void AdamW::begin_step(double lr) {
  make_states();
  ++steps_;
  lr_ = lr;
  if (parameters_.empty()) return;
  Rank& rank = parameters_[0]->stored().mesh().rank_state();
  if (rank.device() != Device::cuda) return;
  if (!numbers_.defined()) numbers_ = Tensor(rank.allocator(), DType::f32, {3});
  double correction1 = 1 - std::pow(options_.beta1, double(steps_)),
         correction2 = 1 - std::pow(options_.beta2, double(steps_));
  copy(Tensor::of<float>(
           {3}, {float(lr / correction1), float(1 - lr * options_.weight_decay), float(std::sqrt(correction2))}),
       numbers_);
}

void AdamW::apply(const std::vector<DistributedTensor>& gradients, const DistributedTensor& norm, double clip) {
  check(gradients.size() == parameters_.size(), "[AdamW] {} gradients for {} parameters", gradients.size(),
        parameters_.size());
  if (parameters_.empty()) return;
  bool on_cuda = parameters_[0]->stored().mesh().rank_state().device() == Device::cuda;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = *parameters_[i];
    DistributedTensor& stored = p.stored();
    if (gradients[i].layout() != stored.layout() || gradients[i].shape() != stored.shape() ||
        gradients[i].dtype() != stored.dtype())
      fail("[AdamW] the gradient of {} is {}, not {}", p.path(), to_string(gradients[i]), to_string(stored));
    pieces.push_back({stored.local_for_writing(), on_cuda && p.is_cast() ? p.value().local_for_writing() : Tensor(),
                      exp_avg_[i].local_for_writing(), exp_avg_sq_[i].local_for_writing(), gradients[i].local()});
  }
  if (!parameters_[0]->stored().is_meta())
    on_cuda ? apply_on_device(pieces, norm, clip) : apply_on_host(pieces, norm, clip);
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (!pieces[i].copy.defined()) parameters_[i]->renew();
}

void AdamW::apply_on_host(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip) {
  double value = norm.defined() ? norm.item() : 0;
  if (!std::isfinite(value)) return;
  cpu::AdamW numbers{lr_,
                     options_.beta1,
                     options_.beta2,
                     options_.eps,
                     options_.weight_decay,
                     1 - std::pow(options_.beta1, double(steps_)),
                     1 - std::pow(options_.beta2, double(steps_)),
                     clip > 0 && value > clip ? clip / (value + 1e-6) : 1};
  // All tensors in one launch: the elements of one follow those of another.
  int64_t total = 0;
  std::vector<std::pair<int64_t, Tensor>> gradients;  // from where on
  for (const Piece& p : pieces) {
    gradients.emplace_back(total, p.gradient.contiguous());
    total += p.value.numel();
  }
  parameters_[0]->stored().mesh().rank_state().pool().parallel_for(
      total, pointwise_grain, [&](int64_t begin, int64_t end, int) {
        for (size_t i = 0; i < pieces.size(); ++i) {
          const auto& [first, gradient] = gradients[i];
          const Piece& p = pieces[i];
          int64_t b = std::max(begin - first, int64_t(0)), e = std::min(end - first, p.value.numel());
          if (b < e)
            cpu::adamw(e - b, numbers, p.value.data<float>() + b, gradient.data<float>() + b,
                       p.exp_avg.data<float>() + b, p.exp_avg_sq.data<float>() + b);
        }
      });
}

void AdamW::apply_on_device(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip) {
  Rank& rank = parameters_[0]->stored().mesh().rank_state();
  std::vector<Tensor> gradients;
  std::vector<cuda::AdamWTensor> tensors;
  auto floats = [](const Tensor& t) { return reinterpret_cast<float*>(t.bytes_data()); };
  for (const Piece& p : pieces) {
    gradients.push_back(aligned(p.gradient));
    tensors.push_back({floats(p.value), floats(gradients.back()), floats(p.exp_avg), floats(p.exp_avg_sq),
                       p.copy.bytes_data(), p.value.numel()});
  }
  Tensor no_norm = norm.defined() ? Tensor() : Tensor::zeros(rank.allocator(), DType::f64, {});
  const Tensor& of_gradients = norm.defined() ? norm.local() : no_norm;
  cuda::adamw(rank.allocator()->stream(), tensors.data(), int(tensors.size()),
              {float(options_.beta1), float(options_.beta2), float(options_.eps)},
              reinterpret_cast<const cuda::AdamWNumbers*>(numbers_.bytes_data()),
              reinterpret_cast<const double*>(of_gradients.bytes_data()), float(clip));
}

}  // namespace dtensor::nn
