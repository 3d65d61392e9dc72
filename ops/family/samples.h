// Samples of cards.
#pragma once

#include "ops/core/op.h"

namespace dtensor::ops {

inline const SampleInput absent(SampleInput::Kind::absent, {});
inline SampleInput ids(Shape shape, int64_t bound = 9) { return {SampleInput::Kind::index, shape, bound}; }
inline SampleInput flags(Shape shape) { return {SampleInput::Kind::boolean, shape}; }

// Of element-wise cards: shapes that broadcast, of size 0 and 1, and without dimensions.
std::vector<Sample> unary_samples(SampleInput::Kind kind = SampleInput::Kind::normal, const Attributes& = {});
std::vector<Sample> binary_samples(SampleInput::Kind first = SampleInput::Kind::normal,
                                   SampleInput::Kind second = SampleInput::Kind::normal);
std::vector<Sample> joined(std::vector<Sample> a, const std::vector<Sample>& b);

}  // namespace dtensor::ops
