// How contributions combine: the reductions of Partial placements and of collectives.
#pragma once

#include <cstdint>
#include <string_view>

namespace dtensor {

enum class Reduce : uint8_t { sum, avg, product, min, max };

constexpr std::string_view name(Reduce r) {
  constexpr std::string_view names[] = {"sum", "avg", "product", "min", "max"};
  return names[int(r)];
}

}  // namespace dtensor
