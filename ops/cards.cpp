#include "ops/cards.h"

#include "placement/nearest.h"

namespace dtensor::ops {

Cards cards() {
  static const std::vector<const Op*> all = [] {
    std::vector<const Op*> list;
    for (Cards family : {binary_cards,         unary_cards,     activation_cards, compare_cards,
                         cast_cards,           reduce_cards,    statistics_cards, scan_cards,
                         order_cards,          softmax_cards,   view_cards,       slice_cards,
                         join_cards,           rearrange_cards, gather_cards,     matmul_cards,
                         einsum_cards,         norm_cards,      layer_norm_cards, embedding_cards,
                         rotary_cards,         attention_cards, gla_cards,        convolution_cards,
                         ring_attention_cards, dropout_cards,   loss_cards,       linear_cross_entropy_cards})
      list.insert(list.end(), family.begin(), family.end());
    return list;
  }();
  return all;
}

const Op& find(std::string_view name, const char* who) {
  std::vector<std::string> names;
  for (const Op* op : cards()) {
    if (op->name == name) return *op;
    names.emplace_back(op->name);
  }
  fail("[{}] there is no op \"{}\"{}", who, name, nearest_hint(name, names));
}

std::span<const Function> functions() {
  static const std::vector<Function> all = [] {
    std::vector<Function> list;
    for (const Op* op : cards()) list.insert(list.end(), op->functions.begin(), op->functions.end());
    return list;
  }();
  return all;
}

std::vector<DistributedTensor> call_function(std::string_view name, std::span<const DistributedTensor* const> inputs,
                                             const NamedValues& values) {
  std::vector<std::string> names;
  for (const Function& f : functions()) {
    names.emplace_back(f.name);
    if (f.name != name) continue;
    Arguments arguments(f.signature, inputs, values);
    std::vector<DistributedTensor> outputs = f.run(arguments);
    arguments.check_all_used();
    return outputs;
  }
  fail("[call_function] there is no function \"{}\"{}", name, nearest_hint(name, names));
}

}  // namespace dtensor::ops
