#include "nn/layers.h"

#include "placement/nearest.h"

namespace dtensor::nn {

DistributedTensor Linear::add_to(const DistributedTensor& residual, const DistributedTensor& x) {
  if (!is_plain()) return residual + (*this)(x);
  LabelScope label(mesh().rank_state(), Label::Kind::module, path());
  return ops::linear_add(x, weight(), residual, bias ? (*bias)() : DistributedTensor());
}

Activation::Activation(Module& parent, std::string name, const std::string& function)
    : Callable(parent, std::move(name)) {
  using Function = DistributedTensor (*)(const DistributedTensor&);
  Function gelu = [](const DistributedTensor& x) { return ops::gelu(x); };
  Function gelu_tanh = [](const DistributedTensor& x) { return ops::gelu(x, "tanh"); };
  const std::pair<const char*, Function> list[] = {
      {"silu", [](const DistributedTensor& x) { return ops::silu(x); }},
      {"swish", [](const DistributedTensor& x) { return ops::silu(x); }},
      {"gelu", gelu},
      {"gelu_new", gelu_tanh},
      {"gelu_pytorch_tanh", gelu_tanh},
      {"relu", [](const DistributedTensor& x) { return ops::relu(x); }},
      {"tanh", [](const DistributedTensor& x) { return ops::tanh(x); }},
  };
  std::vector<std::string> names;
  for (const auto& [known, f] : list) {
    names.emplace_back(known);
    if (function != known) continue;
    function_ = f;
    input_names = {"input"};
    return;
  }
  fail("[Activation] there is no activation \"{}\"{}", function, nearest_hint(function, names));
}

DistributedTensor LinearCrossEntropyLoss::forward(const DistributedTensor& x, const DistributedTensor& target,
                                                  Linear& head, int64_t ignored) {
  check(!head.bias, "[{}] the head has a bias, which a loss fused with it does not take", path());
  return ops::linear_cross_entropy(x, head.weight(), target,
                                   {.ignore_index = ignored, .reduction = ops::Reduction::sum});
}

}  // namespace dtensor::nn
