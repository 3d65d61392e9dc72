#include "ops/core/decision.h"

#include <algorithm>
#include <array>

#include "ops/cuda/kernels.h"
#include "placement/propagate.h"

namespace dtensor {
namespace {

// Where there is none, a call of it is an error; not already the decision, which is also made on meta.
Kernel kernel_of(const Op& op, Device device) {
  if (device != Device::cuda || op.view) return op.cpu;
  return op.cuda ? op.cuda : cuda::find_kernel(op);
}

constexpr uint64_t nothing_wanted = ~uint64_t(0);

// The best of the choices that leave what is written in place where it is.
Choice choose_in_place(const Op& op, Propagation p) {
  p.in_place = op.writes;
  if (std::vector<Choice> best = best_choices(p, 1); !best.empty()) return std::move(best[0]);
  p.in_place = {};
  auto i = size_t(op.writes[0]);
  fail("[{}] operand {} is written in place, which {} cannot be; redistribute it to {} first", op.name, i,
       to_string(*p.inputs[i], p.mesh), to_string(choose(p).inputs[i], p.mesh));
}

// Whether the kernel sees f32 in place of all that is bf16, as some of it, contributions to a sum, is f32 in memory.
// Some kernels of CUDA's can themselves leave such sums of bf16 operands in f32.
bool in_f32(const Op& op, std::span<const TensorSpec* const> in, const Decision& d) {
  auto is_wide = [&](size_t i) {
    return in[i] && part_dtype(in[i]->dtype, d.inputs[i], d.reduce_dtype) != in[i]->dtype;
  };
  bool wide = false, factors = false;
  for (size_t i = 0; i < in.size(); ++i) wide |= is_wide(i), factors |= i < 2 && is_wide(i);
  for (const SpecHandle& out : d.outputs) wide |= out->local_dtype != out->dtype;
  return wide && !(op.f32_sums && !factors);
}

std::unique_ptr<Decision> decide(const Op& op, const DeviceMesh& mesh, std::span<const DistributedTensor* const> inputs,
                                 const Attributes& attributes, const CallOptions& options) {
  std::array<const Shape*, max_operands> shapes{};
  std::array<const TensorSpec*, max_operands> specs{};
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i]) specs[i] = &inputs[i]->spec(), shapes[i] = &specs[i]->shape;
  auto first = std::find_if(inputs.begin(), inputs.end(), [](const DistributedTensor* x) { return x != nullptr; });
  BoundRule rule = bind_rule(op, std::span(shapes.data(), inputs.size()), attributes, (*first)->dtype());
  std::span<const TensorSpec* const> in(specs.data(), inputs.size());
  Layout wanted = options.wanted ? strip_narrow_axes(mesh.shape(), *options.wanted) : Layout();
  const Layout* wanted_list[] = {options.wanted ? &wanted : nullptr};
  Propagation propagation{rule, mesh.shape(), in, wanted_list, {}, mesh.rank_state().reduce_dtype};
  Choice choice = op.writes.empty() ? choose(propagation) : choose_in_place(op, propagation);
  if (op.stays && choice.bytes) {
    std::string need;
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i] && inputs[i]->layout() != choice.inputs[i]) need = to_string(choice.inputs[i], mesh.shape());
    fail(
        "[{}] {} ({}) cannot keep its sharding on mesh {}: the sharded dimension is not the leading one of its group, "
        "or "
        "the ranks do not divide it; redistribute to {} first",
        op.name, *inputs[0], attributes.to_string(), mesh.shape(), need);
  }
  auto d = std::make_unique<Decision>();
  d->card = lasting(op);
  d->identity = op.identity.key();
  d->kernel = kernel_of(op, mesh.rank_state().device());
  d->key = attributes.key();
  d->wanted = options.wanted ? options.wanted->code() : nothing_wanted;
  d->reduce_dtype = mesh.rank_state().reduce_dtype;
  d->inputs = choice.inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    d->ids.push_back(inputs[i] ? inputs[i]->spec().id : 0);
    if (inputs[i] && inputs[i]->layout() != choice.inputs[i]) d->moves |= uint64_t(1) << i;
  }
  check(rule.outputs().size() <= max_outputs, "[{}] more than {} outputs", op.name, max_outputs);
  for (size_t o = 0; o < rule.outputs().size(); ++o)
    d->outputs.push_back(
        mesh.intern({op.types(op.name, in, d->key, int(o)), rule.outputs()[o].shape, choice.outputs[o]}));
  d->in_f32 = in_f32(op, in, *d);
  for (const Operand& operand : rule.inputs()) {
    if (!operand.present) continue;
    if (operand.shape.dims() && operand.leading[0] >= 0)
      d->batch_factor = rule.factors()[size_t(operand.leading[0])].name;
    break;
  }
  for (size_t f = 0; f < rule.factors().size(); ++f) {
    const Factor& factor = rule.factors()[f];
    d->factors.push_back(
        {factor.name, local_range(mesh.shape(), factor.size, choice.factors[f], mesh.rank()), factor.size});
  }
  return d;
}

}  // namespace

// The half used least recently goes, but for what is running.
void Decisions::forget_half() {
  std::vector<uint64_t> uses;
  for (const auto& [hash, d] : decisions_) uses.push_back(d->last_use);
  auto middle = uses.begin() + long(uses.size() / 2);
  std::nth_element(uses.begin(), middle, uses.end());
  std::erase_if(decisions_, [&](const auto& entry) {
    const Decision& d = *entry.second;
    return d.last_use < *middle && !d.running;
  });
}

Decision& Decisions::find(const Op& op, const DeviceMesh& mesh, std::span<const DistributedTensor* const> inputs,
                          const Attributes& attributes, const CallOptions& options) {
  uint64_t wanted = options.wanted ? options.wanted->code() : nothing_wanted;
  uint64_t h = reinterpret_cast<uintptr_t>(op.identity.key()) ^ attributes.key_hash() ^ wanted * 0x9e3779b97f4a7c15u;
  for (const DistributedTensor* in : inputs) h = (h ^ (in ? in->spec().id : 0)) * 0x9e3779b97f4a7c15u, h ^= h >> 32;
  auto [it, end] = decisions_.equal_range(h);
  for (; it != end; ++it) {
    Decision& d = *it->second;
    bool same = d.identity == op.identity.key() && d.wanted == wanted &&
                d.reduce_dtype == mesh.rank_state().reduce_dtype && d.ids.size() == inputs.size();
    for (size_t i = 0; same && i < inputs.size(); ++i) same = d.ids[i] == (inputs[i] ? inputs[i]->spec().id : 0);
    if (!same || !same_key(attributes, d.key)) continue;
    d.last_use = ++calls_;
    return d;
  }
  auto made = decide(op, mesh, inputs, attributes, options);
  if (decisions_.size() >= max_cached_calls) forget_half();
  made->last_use = ++calls_;
  return *decisions_.emplace(h, std::move(made))->second;
}

}  // namespace dtensor
