#include "ops/pointwise/unary.h"

#include "ops/cards.h"
#include "ops/cpu/elementwise.h"
#include "ops/cpu/rows.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"
#include "ops/pointwise/functors.h"

namespace dtensor::ops {
namespace {

const std::vector<Sample> positive = unary_samples(SampleInput::Kind::positive);

#define DTENSOR_UNARY(name, types, value, ...) \
  struct value_of_##name {                     \
    template <class T>                         \
    auto operator()(T x) const {               \
      return value;                            \
    }                                          \
  };
#define DTENSOR_BACKWARD(name, value, ...) \
  struct value_of_##name {                 \
    template <class T>                     \
    T operator()(T dy, T x) const {        \
      return value;                        \
    }                                      \
  };
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef DTENSOR_BACKWARD
#undef DTENSOR_UNARY

}  // namespace

#define DTENSOR_UNARY(f, types, value, doc, ...)                                           \
  const Op f##_op = unary_card<UnaryTypes::types, value_of_##f{}>(                         \
      {.name = #f, .functions = {function<f>(#f "(x)", doc)} __VA_OPT__(, ) __VA_ARGS__}); \
  DistributedTensor f(const DistributedTensor& x) { return call(f##_op, {&x}); }
#define DTENSOR_BACKWARD(f, value, ...) \
  const Op f##_op = backward_card<value_of_##f{}>({.name = #f __VA_OPT__(, ) __VA_ARGS__});
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef DTENSOR_BACKWARD
#undef DTENSOR_UNARY

namespace {
constexpr const Op* unary_ops[] = {
#define DTENSOR_UNARY(name, ...) &name##_op,
#define DTENSOR_BACKWARD(name, ...) &name##_op,
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef DTENSOR_BACKWARD
#undef DTENSOR_UNARY
};
}  // namespace
const Cards unary_cards = unary_ops;

}  // namespace dtensor::ops
