// Sums of products by an equation over named dimensions.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "ops/core/call.h"

namespace dtensor::ops {

// Letters a to z for the dimensions of both and of the output, which
// each has once, e.g. "bij,bjk->bik". The equation is the rule: a letter that is only on inputs is on both, and where
// it is sharded it leaves Partial(sum).
struct Einsum {
  std::string equation;
  static constexpr auto fields() { return std::tuple(field("equation", &Einsum::equation)); }
};

// The product of two operands.
extern const Op einsum_op;

// As torch.einsum: "bij,bjk->bik", any number of operands, letters a-z and A-Z, spaces ignored. "..." is any
// dimensions, aligned from the right; dimensions of size 1 broadcast. Without "->" the output is "..." and then the
// letters that stand once, in alphabetical order (capitals first). More than two operands are multiplied from left to
// right. Errors, which name the letter and the operand: a malformed equation, a wrong number of operands or dimensions,
// sizes that differ, an output letter that is on no operand, and a letter twice in one operand (a diagonal).
DistributedTensor einsum(std::string_view equation, std::span<const DistributedTensor* const> operands);
DistributedTensor einsum(std::string_view equation, std::initializer_list<const DistributedTensor*> operands);

}  // namespace dtensor::ops
