// The one step from a layout to another, where there is one, and what it takes. The planner makes plans of them.
#pragma once

#include <array>
#include <bit>
#include <optional>

#include "placement/missing.h"
#include "placement/step.h"

namespace dtensor::planning {

constexpr Picoseconds slice_time = 1000;

// A tensor to be moved, and the machine.
struct Problem {
  const MeshShape& mesh;
  const Shape& shape;
  DType dtype;
  const CostModel& cost;
  std::optional<DType> reduce_dtype;
  // By set of axes, asked for often: ranks that differ on them, and the slowest of their links.
  std::array<int, 1 << max_axes> products{};
  std::array<Link, 1 << max_axes> slowest{};

  Problem(const MeshShape& m, const Shape& s, DType t, const CostModel& c, std::optional<DType> reduce)
      : mesh(m), shape(s), dtype(t), cost(c), reduce_dtype(reduce) {
    products[0] = 1, slowest[0] = {0, 0, INT64_MAX};
    for (AxisSet set = 1; set <= m.all(); ++set) {
      int a = std::countr_zero(set);
      Link link = c.link(a);
      const Link& rest = slowest[set & (set - 1)];
      products[set] = products[set & (set - 1)] * m.size(a);
      slowest[set] = {std::max(link.launch_ns, rest.launch_ns), std::max(link.hop_ns, rest.hop_ns),
                      std::min(link.mb_per_second, rest.mb_per_second)};
    }
  }
  int product(AxisSet set) const { return products[set & mesh.all()]; }
  const Link& link(int axis) const { return slowest[axis_bit(axis)]; }
  // Of one element on its way from a layout.
  int64_t moved(const Layout& from) const {
    return itemsize(part_dtype(dtype, from, reduce_dtype.value_or(DType::f32)));
  }
  int64_t reduced(const Layout& from) const { return reduce_dtype ? itemsize(*reduce_dtype) : moved(from); }
  // The least of these: what bounds are counted in.
  int64_t least() const { return reduce_dtype ? std::min(itemsize(dtype), itemsize(*reduce_dtype)) : itemsize(dtype); }
  int64_t bytes_of(const Layout& l) const { return largest_part(mesh, shape, l) * least(); }
  // Whether every rank holds its new box: of small tensors most ranks hold nothing.
  bool fits(const Layout& from, const Layout& to) const { return most_missing(mesh, shape, from, to, 1) == 0; }
};

struct Node {
  Layout layout;
  int64_t elements;  // of the largest part
};

// What the two orders of all dimensions have in common, and what leaves and joins beyond that.
struct Change {
  AxisSet left = 0, joined = 0, group = 0;
  std::array<int64_t, max_axes> part{}, whole{};  // of a new piece, what a rank surely has on its side of an axis
  int64_t sources = 1;                            // ranks whose old pieces make up one new piece
  double least_sources = 1;                       // the same where fewer axes join, or more leave, beside these

  Change(const Problem& p, const Layout& x, const Layout& y);
};

// The one step between two layouts.
struct Move {
  StepKind kind = StepKind::slice;
  AxisSet axes = 0;
  int64_t bytes = 0, messages = 0;  // received by the busiest rank
  double least_messages = 0;        // of an exchange, also where slices before or after are a step of their own
  Picoseconds time = slice_time;
};

// What turns `from` into `to` in one step, if anything does.
std::optional<Move> move_between(const Problem& p, const Node& from, const Node& to);

}  // namespace dtensor::planning
