#include "ops/elementwise.h"

#include "ops/reduce.h"

namespace dtensor {

DType floating_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  for (const TensorSpec* x : in)
    if (x)
      check(is_floating(t), "[{}] element type {} of {}: use cast() to a floating type", op, name(t),
            to_string(x->shape));
  return t;
}

DType number_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  for (const TensorSpec* x : in)
    if (x)
      check(t != DType::boolean, "[{}] element type bool of {}: use cast() to a type of numbers", op,
            to_string(x->shape));
  return t;
}

DType compared_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  same_types(op, in, a, output);
  return DType::boolean;
}

DType bool_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  for (const TensorSpec* x : in)
    if (x)
      check(t == DType::boolean, "[{}] element type {} of {}: use ne(x, 0) or cast() to bool", op, name(t),
            to_string(x->shape));
  return t;
}

Op unary(Op card) {
  if (!card.rule.function()) card.rule = "...->...";
  if (card.types == same_types) card.types = floating_types;
  card.strided = true;
  if (card.sample.empty()) card.sample = unary_samples();
  return card;
}

Op binary(Op card) {
  if (!card.rule.function()) card.rule = "...,...->...";
  if (card.types == same_types) card.types = number_types;
  card.strided = true;
  if (card.sample.empty()) card.sample = binary_samples();
  return card;
}

Op gradient_op(Op card) {
  card.passes = {linear_in({0})};
  card.types = floating_types;
  if (card.sample.empty()) card.sample = {{{{5, 3}, {5, 3}}}, {{{2, 1, 4}, {2, 1, 4}}}};
  return binary(std::move(card));
}

void set_reduced(Gradient& g, int i, const DistributedTensor& gradient) {
  if (g.needs(i)) g.set(i, ops::sum_to(gradient, g.input_spec(i).shape));
}
void zero_gradient(Gradient&) {}

using Kind = SampleInput::Kind;

std::vector<Sample> unary_samples(Kind kind, const Attributes& a) {
  std::vector<Sample> list;
  for (const Shape& s : {Shape{5, 3}, Shape{}, Shape{0, 3}, Shape{1, 7}}) list.push_back({{{kind, s, 9}}, a});
  return list;
}

std::vector<Sample> binary_samples(Kind first, Kind second) {
  using Pair = std::pair<Shape, Shape>;
  std::vector<Sample> list;
  for (const auto& [a, b] : {Pair{{5, 3}, {5, 3}}, Pair{{5, 3}, {3}}, Pair{{5, 1}, {1, 4}}, Pair{{2, 5, 3}, {5, 1}},
                             Pair{{1}, {0}}, Pair{{}, {2, 3}}})
    list.push_back({{{first, a, 9}, {second, b, 9}}});
  return list;
}

std::vector<Sample> joined(std::vector<Sample> a, const std::vector<Sample>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace dtensor
