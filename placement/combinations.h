// The ways to run an op on a mesh, without what they cost.
#pragma once

#include <memory>

#include "placement/prices.h"

namespace dtensor {

using Strategies = std::array<int16_t, max_axes>;  // by axis: places in the list of strategies

// The combinations there are: strategies jointly over the axes, and the sharding orders of factors that several axes
// split. The propagation must outlive it.
class Combinations {
 public:
  explicit Combinations(const Propagation& p);

  // The choices with a strategy for each of `axes`, in order; their bytes are left to the caller.
  std::vector<Choice> with(const Strategies& chosen) const;

  std::vector<Strategy> strategies;
  std::vector<int> axes;                                 // of more than one rank
  std::vector<std::shared_ptr<Prices>> inputs, outputs;  // null: absent, nothing wanted

 private:
  std::shared_ptr<Prices> known(const TensorSpec& end, bool is_source) const;
  void order_factors(size_t f, const Strategies& chosen, Choice& c, std::vector<Choice>& found) const;
  bool place(const Operand& operand, const Strategies& chosen, const Choice& c, bool input, size_t i,
             Layout& layout) const;
  bool finish(const Strategies& chosen, Choice& c) const;

  const Propagation& p_;
};

}  // namespace dtensor
