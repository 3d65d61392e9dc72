// How a tensor lies along one mesh axis.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "placement/error.h"
#include "placement/reduce.h"

namespace dtensor {

// Along one mesh axis every rank holds the whole value (Replicate), one piece of dimension `dim` (Shard), or one
// contribution to it (Partial): the contributions combine by `reduce`.
struct Placement {
  enum class Kind : uint8_t { replicate, shard, partial };
  Kind kind = Kind::replicate;
  int dim = -1;  // of a Shard; negative ones count from the back until a tensor's dimensions are known
  Reduce reduce = Reduce::sum;

  bool is_replicate() const { return kind == Kind::replicate; }
  bool is_shard() const { return kind == Kind::shard; }
  bool is_partial() const { return kind == Kind::partial; }
  friend bool operator==(const Placement&, const Placement&) = default;
};

constexpr Placement Replicate() { return {}; }
// Whether a tensor has the dimension is checked where one is known. Errors: a number that no int holds.
constexpr Placement Shard(int64_t dim) {
  if (dim != int(dim)) fail("[Shard] a tensor has no dimension {}", dim);
  return {Placement::Kind::shard, int(dim), Reduce::sum};
}
constexpr Placement Partial(Reduce reduce = Reduce::sum) { return {Placement::Kind::partial, -1, reduce}; }

// "Replicate", "Shard(0)", "Partial(sum)".
std::string to_string(Placement p);

// The inverse; "Partial" alone is Partial(sum). `who` is the public function for the error.
Placement parse_placement(std::string_view text, const char* who = "parse_placement");

}  // namespace dtensor

template <>
struct fmt::formatter<dtensor::Placement> : dtensor::Formatter<dtensor::Placement> {};
