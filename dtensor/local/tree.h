// The balanced tree in which every sum is taken (docs/architecture.md, the same bits).
#pragma once

#include <bit>
#include <cstdint>

namespace dtensor {

// Terms come one after the other, and a stack has the sums of complete subtrees, as a binary counter has digits. Term
// number `i` is added to so many of them, the latest first, and their sum is pushed. Of 2^k terms the halves are then
// the first 2^(k-1) and the rest, all the way down.
constexpr int joins(int64_t i) { return std::countr_one(uint64_t(i)); }

}  // namespace dtensor
