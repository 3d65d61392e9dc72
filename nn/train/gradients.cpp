#include "nn/train/gradients.h"

#include <set>

#include "dtensor/redistribute.h"
#include "ops/all.h"
#include "ops/cuda/optim.h"
#include "ops/family/dims.h"

namespace dtensor::nn {

void watch_parameters(GradientStore& store, const std::vector<Parameter*>& parameters) {
  const std::set<const Parameter*> wanted(parameters.begin(), parameters.end());
  std::set<const ParameterGroup*> seen;
  for (const Parameter* p : parameters) {
    if (!p->group()) store.watch(p->value(), p->stored().dtype(), p->path());
    if (!p->group() || !seen.insert(p->group().get()).second) continue;
    std::vector<DistributedTensor> leaves;
    std::vector<std::string> names;
    for (const Parameter* q : p->group()->parameters())
      if (wanted.contains(q)) leaves.push_back(q->value()), names.push_back(q->path());
    store.watch_together(leaves, names, p->stored().dtype(), p->group()->reduction());
  }
}

std::vector<DistributedTensor> reduce_gradients(GradientStore& store, const std::vector<Parameter*>& parameters) {
  std::vector<DistributedTensor> leaves;
  for (const Parameter* p : parameters) leaves.push_back(p->value());
  return store.reduce(leaves);
}

Tensor aligned(const Tensor& t) {
  Tensor whole = t.contiguous();
  return reinterpret_cast<uintptr_t>(whole.bytes_data()) % 16 ? whole.clone() : whole;
}

namespace {

// The sum of the squares of tensors that are sharded along the same axes, none of them Partial: f64, Partial there. All
// are on the device, or all in host memory, and so is the sum.
DistributedTensor sum_squares(const std::vector<DistributedTensor>& list) {
  const DistributedTensor& first = list[0];
  Rank& rank = first.mesh().rank_state();
  if (rank.device() != Device::cuda || first.is_meta() || first.is_on_host()) {
    DistributedTensor sum = ops::sum_squares(first);
    for (size_t i = 1; i < list.size(); ++i) sum = ops::add(sum, ops::sum_squares(list[i]));
    return sum;
  }
  std::vector<Tensor> parts;
  std::vector<cuda::ConstTensor> tensors;
  for (const DistributedTensor& x : list) {
    parts.push_back(aligned(x.local()));
    tensors.push_back({parts.back().bytes_data(), parts.back().numel()});
  }
  int count = int(tensors.size());
  Tensor scratch(rank.allocator(), DType::f64, {cuda::sum_squares_scratch(tensors.data(), count)}),
      out(rank.allocator(), DType::f64, {});
  cuda::sum_squares(rank.allocator()->stream(), first.dtype(), tensors.data(), count,
                    reinterpret_cast<double*>(scratch.bytes_data()), reinterpret_cast<double*>(out.bytes_data()));
  Layout layout;
  layout.partial = first.layout().sharded();
  return DistributedTensor::from_local(out, first.mesh(), layout, {});
}

}  // namespace

DistributedTensor global_norm(const std::vector<DistributedTensor>& gradients) {
  check(!gradients.empty(), "[global_norm] no gradients");
  for (size_t i = 0; i < gradients.size(); ++i)
    check(gradients[i].defined(),
          "[global_norm] gradient {} of {} is undefined: nothing led to it; leave it out, or give zeros", i,
          gradients.size());
  Rank& rank = gradients[0].mesh().rank_state();
  NoGrad scope(rank);
  LabelScope reason(rank, Label::Kind::reason, "gradient norm");
  std::vector<std::vector<DistributedTensor>> alike;  // those whose sums are Partial on the same axes
  for (const DistributedTensor& g : ops::reduced(gradients)) {
    auto same = std::find_if(alike.begin(), alike.end(), [&](const auto& list) {
      return list[0].layout().sharded() == g.layout().sharded() && list[0].dtype() == g.dtype() &&
             list[0].is_on_host() == g.is_on_host();
    });
    if (same == alike.end()) same = alike.insert(alike.end(), std::vector<DistributedTensor>());
    same->push_back(g);
  }
  std::vector<DistributedTensor> sums;
  for (const auto& list : alike) sums.push_back(sum_squares(list));
  sums = redistribute(sums, std::vector<Layout>(sums.size()));
  DistributedTensor total = sums[0];
  for (size_t i = 1; i < sums.size(); ++i) total = ops::add(total, sums[i]);
  return ops::sqrt(total);
}

}  // namespace dtensor::nn
