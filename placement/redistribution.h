// Planning: the cheapest sequence of collectives between two layouts of one tensor on one mesh.
//
// all_gather, permute and all_to_all are one operation, an exchange: each rank reads the part of its new box that it
// lacks from the group over the axes that moved. Together the group holds the same box before and after, so an
// exchange between any two layouts without Partial is legal, however uneven the pieces, and receives the least
// possible. Where something is reduced, plans have one form,
//     slice or embed -> reduce_scatter, all_reduce -> one exchange -> slice or embed,
// and the planner tries what each moving axis can do meanwhile: stay, go to its target, or become a temporary shard.
#pragma once

#include <memory>
#include <optional>

#include "placement/step.h"

namespace dtensor {

// Law 1: whatever the plan, the logical value stays the same. Empty where nothing has to be done, local where every
// rank already holds its new piece. Under costs that count bytes only, plans receive the least that any steps can:
// always without Partial, and with it on one or two axes that divide the sizes (tests/placement/proof_test.cpp).
// `reduce_dtype`: in which contributions travel to a reduction, and lie in memory where they are bf16; none:
// part_dtype(). Several axes are always reduced innermost first, so that the sum's tree over ranks does not depend on
// the plan.
Plan plan_redistribution(const MeshShape& mesh, const Shape& shape, DType dtype, const Layout& from, const Layout& to,
                         const CostModel& cost = {}, std::optional<DType> reduce_dtype = {});

// The same for many plans of one tensor, which remembers what it found about steps that they share. Mesh, shape and
// costs must outlive it.
class Redistributions {
 public:
  Redistributions(const MeshShape& mesh, const Shape& shape, DType dtype, const CostModel& cost,
                  std::optional<DType> reduce_dtype = {});
  ~Redistributions();
  Plan plan(const Layout& from, const Layout& to);
  // A lower bound, found sooner, of the bytes of a plan from `from` to `to`, between which no Partial axis is reduced.
  int64_t least_without_sums(const Layout& from, const Layout& to) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtensor
