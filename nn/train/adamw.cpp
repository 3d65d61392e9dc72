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
  double decay;
};

namespace {

// Whether `text` is `pattern`, in which * stands for any text without a point.
bool matches(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] != '*') return !text.empty() && pattern[0] == text[0] && matches(pattern.substr(1), text.substr(1));
  for (size_t n = 0; n <= text.size(); ++n) {
    if (matches(pattern.substr(1), text.substr(n))) return true;
    if (n < text.size() && text[n] == '.') break;
  }
  return false;
}

// Whether the last parts of a path are the pattern's.
bool ends_as(std::string_view path, std::string_view pattern) {
  for (size_t begin = 0;; ++begin) {
    if (matches(pattern, path.substr(begin))) return true;
    begin = path.find('.', begin);
    if (begin == path.npos) return false;
  }
}

}  // namespace

AdamW::AdamW(std::vector<Parameter*> parameters, const AdamWOptions& options)
    : Optimizer(std::move(parameters)), options_(options), decay_(parameters_.size(), options.weight_decay) {
  for (const std::string& pattern : options_.no_decay) {
    bool found = false;
    for (size_t i = 0; i < parameters_.size(); ++i)
      if (ends_as(parameters_[i]->path(), pattern)) decay_[i] = 0, found = true;
    check(found, "[AdamW] no parameter's path ends in \"{}\", which is not to decay", pattern);
  }
}

void AdamW::make_states() {
  if (!exp_avg_.empty()) return;
  for (const Parameter* p : parameters_) {
    const DistributedTensor& stored = p->stored();
    check(stored.is_meta() == (stored.mesh().rank_state().device() == Device::meta),
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
  if (!numbers_.defined()) numbers_ = Tensor(rank.allocator(), DType::f32, {2, 3});
  double correction1 = 1 - std::pow(options_.beta1, double(steps_)),
         correction2 = 1 - std::pow(options_.beta2, double(steps_));
  float step_size = float(lr / correction1), root = float(std::sqrt(correction2));
  copy(Tensor::of<float>({2, 3}, {step_size, float(1 - lr * options_.weight_decay), root, step_size, 1, root}),
       numbers_);
}

void AdamW::apply(const std::vector<DistributedTensor>& gradients, const DistributedTensor& norm, double clip) {
  check(gradients.size() == parameters_.size(), "[AdamW] {} gradients for {} parameters", gradients.size(),
        parameters_.size());
  if (parameters_.empty()) return;
  bool on_cuda = parameters_[0]->stored().mesh().rank_state().device() == Device::cuda;
  std::vector<Piece> on_device, on_host;
  std::vector<Parameter*> to_renew;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = *parameters_[i];
    DistributedTensor& stored = p.stored();
    if (gradients[i].layout() != stored.layout() || gradients[i].shape() != stored.shape() ||
        gradients[i].dtype() != stored.dtype())
      fail("[AdamW] the gradient of {} is {}, not {}", p.path(), to_string(gradients[i]), to_string(stored));
    bool device = on_cuda && !stored.is_on_host(), writes_copy = device && p.is_cast();
    (device ? on_device : on_host)
        .push_back({stored.local_for_writing(), writes_copy ? p.value().local_for_writing() : Tensor(),
                    exp_avg_[i].local_for_writing(), exp_avg_sq_[i].local_for_writing(), gradients[i].local(),
                    decay_[i]});
    if (!writes_copy) to_renew.push_back(&p);
  }
  if (!parameters_[0]->stored().is_meta()) {
    if (!on_device.empty()) apply_on_device(on_device, norm, clip);
    if (!on_host.empty()) apply_on_host(on_host, norm, clip);
  }
  for (Parameter* p : to_renew) p->renew();
}

void AdamW::apply_on_host(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip) {
  double value = norm.defined() ? norm.item() : 0;
  if (!std::isfinite(value)) return;
  auto numbers = [&, correction1 = 1 - std::pow(options_.beta1, double(steps_)),
                  correction2 = 1 - std::pow(options_.beta2, double(steps_)),
                  factor = clip > 0 && value > clip ? clip / (value + 1e-6) : 1](double decay) {
    return cpu::AdamW{lr_, options_.beta1, options_.beta2, options_.eps, decay, correction1, correction2, factor};
  };
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
            cpu::adamw(e - b, numbers(p.decay), p.value.data<float>() + b, gradient.data<float>() + b,
                       p.exp_avg.data<float>() + b, p.exp_avg_sq.data<float>() + b);
        }
      });
}

void AdamW::apply_on_device(const std::vector<Piece>& pieces, const DistributedTensor& norm, double clip) {
  Rank& rank = parameters_[0]->stored().mesh().rank_state();
  std::vector<Tensor> gradients;
  std::vector<cuda::AdamWTensor> tensors[2];  // those that decay, and those that do not
  auto floats = [](const Tensor& t) { return reinterpret_cast<float*>(t.bytes_data()); };
  for (const Piece& p : pieces) {
    gradients.push_back(aligned(p.gradient));
    tensors[p.decay == options_.weight_decay ? 0 : 1].push_back({floats(p.value), floats(gradients.back()),
                                                                 floats(p.exp_avg), floats(p.exp_avg_sq),
                                                                 p.copy.bytes_data(), p.value.numel()});
  }
  Tensor no_norm = norm.defined() ? Tensor() : Tensor::zeros(rank.allocator(), DType::f64, {});
  const Tensor& of_gradients = norm.defined() ? norm.local() : no_norm;
  const auto* numbers = reinterpret_cast<const cuda::AdamWNumbers*>(numbers_.bytes_data());
  for (int k : {0, 1})
    if (!tensors[k].empty())
      cuda::adamw(rank.allocator()->stream(), tensors[k].data(), int(tensors[k].size()),
                  {float(options_.beta1), float(options_.beta2), float(options_.eps)}, numbers + k,
                  reinterpret_cast<const double*>(of_gradients.bytes_data()), float(clip));
}

}  // namespace dtensor::nn
