#include "nn/optim.h"

#include <cmath>
#include <numbers>

#include "dtensor/redistribute.h"
#include "ops/all.h"
#include "ops/cpu/fused.h"
#include "ops/kernel.h"

namespace dtensor::nn {

void watch_parameters(Tape& tape, const std::vector<Parameter*>& parameters) {
  for (Parameter* p : parameters) {
    if (!p->group()) tape.watch(p->stored());
    if (!p->group() || p->group()->parameters.front() != p) continue;
    std::vector<DistributedTensor> leaves;
    std::vector<std::string> names;
    for (const Parameter* q : p->group()->parameters) leaves.push_back(q->stored()), names.push_back(q->path());
    tape.watch_together(leaves, names);
  }
}

std::vector<DistributedTensor> reduce_gradients(const Tape& tape, const std::vector<Parameter*>& parameters) {
  if (parameters.empty()) return {};
  std::vector<DistributedTensor> gradients;
  std::vector<Layout> layouts;
  std::vector<std::string> reasons;
  for (Parameter* p : parameters) {
    DistributedTensor g = tape.gradient(p->stored());
    if (!g.defined()) {
      g = DistributedTensor::empty(p->stored().mesh(), &p->stored().spec(),
                                   Tensor::zeros(p->stored().local().allocator(), p->stored().dtype(),
                                                 p->stored().spec().local_shape, p->stored().local().device()));
    }
    gradients.push_back(g);
    layouts.push_back(p->stored().layout());
    reasons.push_back("gradient of " + p->path());
  }
  NoGrad scope(gradients[0].mesh().rank_state());
  return redistribute(gradients, layouts, {.reasons = reasons});
}

DistributedTensor global_norm(const std::vector<DistributedTensor>& gradients) {
  check(!gradients.empty(), "[global_norm] no gradients");
  Rank& rank = gradients[0].mesh().rank_state();
  NoGrad scope(rank);
  std::vector<DistributedTensor> sums;  // one per layout
  for (const DistributedTensor& g : gradients) {
    DistributedTensor s = ops::sum_squares(g);
    auto same =
        std::find_if(sums.begin(), sums.end(), [&](const DistributedTensor& t) { return t.layout() == s.layout(); });
    if (same == sums.end())
      sums.push_back(s);
    else
      *same = ops::add(*same, s);
  }
  LabelScope reason(rank, Label::Kind::reason, "gradient norm");
  sums = redistribute(sums, std::vector<Layout>(sums.size()));
  DistributedTensor total = sums[0];
  for (size_t i = 1; i < sums.size(); ++i) total = ops::add(total, sums[i]);
  return ops::sqrt(total);
}

AdamW::AdamW(std::vector<Parameter*> parameters, const AdamWOptions& options)
    : parameters_(std::move(parameters)), options_(options) {}

void AdamW::step(const std::vector<DistributedTensor>& gradients, double lr, double scale) {
  check(gradients.size() == parameters_.size(), "[AdamW] {} gradients for {} parameters", gradients.size(),
        parameters_.size());
  ++steps_;
  if (parameters_.empty() || parameters_[0]->stored().is_meta()) return;
  if (exp_avg_.empty())
    for (Parameter* p : parameters_)
      for (auto* state : {&exp_avg_, &exp_avg_sq_})
        state->push_back(
            Tensor::zeros(p->stored().local().allocator(), p->stored().dtype(), p->stored().spec().local_shape));
  cpu::AdamW numbers{lr,
                     options_.beta1,
                     options_.beta2,
                     options_.eps,
                     options_.weight_decay,
                     1 - std::pow(options_.beta1, double(steps_)),
                     1 - std::pow(options_.beta2, double(steps_)),
                     scale};
  // All tensors in one launch: the elements of one follow those of another.
  struct Piece {
    float *value, *m, *v;
    Tensor gradient;
    int64_t begin;
  };
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    DistributedTensor& p = parameters_[i]->stored();
    if (gradients[i].layout() != p.layout() || gradients[i].shape() != p.shape())
      fail("[AdamW] the gradient of {} is {}, not {}", parameters_[i]->path(), to_string(gradients[i]), to_string(p));
    pieces.push_back({p.local_for_writing().data<float>(), exp_avg_[i].data<float>(), exp_avg_sq_[i].data<float>(),
                      gradients[i].local().contiguous(), total});
    total += pieces.back().gradient.numel();
  }
  parameters_[0]->stored().mesh().rank_state().pool().parallel_for(
      total, pointwise_grain, [&](int64_t begin, int64_t end, int) {
        for (const Piece& p : pieces) {
          int64_t b = std::max(begin - p.begin, int64_t(0)), e = std::min(end - p.begin, p.gradient.numel());
          if (b < e) cpu::adamw(e - b, numbers, p.value + b, p.gradient.data<float>() + b, p.m + b, p.v + b);
        }
      });
}

double warmup_cosine(int64_t step, double peak, int64_t warmup, int64_t total) {
  if (step < warmup) return peak * (0.1 + 0.9 * double(step) / double(warmup));
  if (total <= warmup) return peak;
  double done = std::min(1.0, double(step - warmup) / double(total - warmup));
  return peak * 0.5 * (1 + std::cos(std::numbers::pi * done));
}

}  // namespace dtensor::nn
