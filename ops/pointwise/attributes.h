// Attributes of element-wise cards.
#pragma once

#include <optional>

#include "ops/core/attributes.h"

namespace dtensor::ops {

struct Lerp {
  double weight;
  static constexpr auto fields() { return std::tuple(field("weight", &Lerp::weight)); }
};
struct Clamp {
  std::optional<double> min, max;
  static constexpr auto fields() { return std::tuple(field("min", &Clamp::min), field("max", &Clamp::max)); }
};
struct Gelu {
  std::string approximate;
  static constexpr auto fields() { return std::tuple(field("approximate", &Gelu::approximate)); }
};
struct Softplus {
  double beta, threshold;
  static constexpr auto fields() {
    return std::tuple(field("beta", &Softplus::beta), field("threshold", &Softplus::threshold));
  }
};
// `widening`: to a floating type that holds all values of the one before.
struct Cast {
  DType dtype;
  bool widening;
  static constexpr auto fields() {
    return std::tuple(field("dtype", &Cast::dtype), field("widening", &Cast::widening));
  }
};

}  // namespace dtensor::ops
