#include "ops/family/elementwise.h"

#include "ops/functions.h"

namespace dtensor {

using Kind = SampleInput::Kind;

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
  if (card.sample.empty()) card.sample = ops::unary_samples();
  return card;
}

Op unary_card(UnaryTypes types, Op card) {
  bool numbers = types == UnaryTypes::numbers, tests = types == UnaryTypes::tests, logic = types == UnaryTypes::logic;
  card.types = numbers ? number_types : tests ? compared_types : logic ? bool_types : floating_types;
  if (card.sample.empty()) card.sample = ops::unary_samples(logic ? Kind::boolean : Kind::normal);
  if (numbers || tests) card.sample = ops::joined(std::move(card.sample), ops::unary_samples(Kind::index));
  return unary(std::move(card));
}

Op binary(Op card) {
  if (!card.rule.function()) card.rule = "...,...->...";
  if (card.types == same_types) card.types = number_types;
  card.strided = true;
  if (card.sample.empty()) card.sample = ops::binary_samples();
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

}  // namespace dtensor
