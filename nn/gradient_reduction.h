// How the gradients of leaves that are watched together are reduced: brought to their leaves' own layouts.
#pragma once

#include <optional>

#include "placement/dtype.h"

namespace dtensor::nn {

struct GradientReduction {
  // last_pass: while the last backward pass of a step goes on, as soon as it has passed their last use. each_pass: the
  // same with each of them, which needs less memory and communicates more. after: when all passes have ended.
  enum class When : uint8_t { last_pass, each_pass, after };
  When when = When::last_pass;
  std::optional<DType> dtype = {};  // in which they travel and are added over ranks; none: their own
};

}  // namespace dtensor::nn
