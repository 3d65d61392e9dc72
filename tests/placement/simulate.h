// Runs plans on arrays, one per rank, element by element: what each step is said to do, whatever the implementation.
#pragma once

#include <cmath>
#include <map>

#include "placement/redistribution.h"
#include "tests/placement/cases.h"

namespace dtensor::testing {

using World = std::vector<std::vector<float>>;  // each rank's part

class Simulator {
 public:
  Simulator(const MeshShape& mesh, const Shape& shape) : mesh_(mesh), shape_(shape), whole_(size_t(numel(shape))) {}

  // The parts after the plan. Throws where a step is not what it says: a rank would read what its group has not, the
  // layouts do not follow each other, the bytes are not those received, sums are not taken innermost first.
  World run(const Plan& plan, int64_t itemsize, const Layout& from, const Layout& to, World world) {
    Layout now = strip_narrow_axes(mesh_, from);
    int outermost = max_axes;
    for (const Step& step : plan.steps) {
      check(step.from == now, "the steps follow each other");
      check(step.from != step.to, "no step does nothing");
      check(step.axes && !(step.axes & ~mesh_.wide()), "a step is over axes of several ranks");
      check(step.time > 0, "time passes");
      if (AxisSet reduced = step.from.partial & ~step.to.partial) {
        check(reduced < axis_bit(outermost), "innermost first");
        for (outermost = 0; !has(reduced, outermost);) ++outermost;
      }
      world = run(step, itemsize, world);
      now = step.to;
    }
    check(now == strip_narrow_axes(mesh_, to) || (whole_ == 0 && plan.steps.empty()), "the plan ends at the target");
    return world;
  }

 private:
  struct Held {
    Part part;
    std::vector<int> where;  // by global element, its place in the part or -1
  };

  const std::vector<Held>& held(const Layout& l) {
    std::vector<Held>& h = held_[l.code()];
    if (h.empty())
      for (Part& p : parts_of(mesh_, shape_, l)) {
        h.push_back({std::move(p), std::vector<int>(whole_, -1)});
        for (size_t i = 0; i < h.back().part.elements.size(); ++i)
          h.back().where[size_t(h.back().part.elements[i])] = int(i);
      }
    return h;
  }

  const std::vector<int>& group(int rank, AxisSet set) {
    std::vector<int>& g = groups_[{rank, set}];
    if (g.empty()) g = group_of(mesh_, rank, set);
    return g;
  }

  World run(const Step& step, int64_t itemsize, const World& in) {
    const std::vector<Held>&before = held(step.from), &after = held(step.to);
    AxisSet reduced = step.from.partial & ~step.to.partial, made = step.to.partial & ~step.from.partial;
    bool reduces = step.kind == StepKind::all_reduce || step.kind == StepKind::reduce_scatter;
    check(bool(reduced) == reduces && bool(made) == (step.kind == StepKind::embed),
          "Partial comes and goes by its own steps");
    check(!reduced || reduced == step.axes, "the group of a reduction are its axes");
    check(!step.from.partial || !step.to.partial || step.from.reduce == step.to.reduce, "one reduction in a step");
    World out(in.size());
    int64_t most = 0, largest = 0;
    for (int r = 0; r < mesh_.world(); ++r) {
      int64_t received = 0;
      const Held& was = before[size_t(r)];
      auto mine = [&](int64_t e) { return in[size_t(r)][size_t(was.where[size_t(e)])]; };
      for (int64_t e : after[size_t(r)].part.elements) {
        float v = 0;
        if (reduces) {
          std::vector<float>& values = values_;
          values.clear();
          for (int q : group(r, step.axes)) {
            check(before[size_t(q)].where[size_t(e)] >= 0, "every rank of the group has a contribution");
            values.push_back(in[size_t(q)][size_t(before[size_t(q)].where[size_t(e)])]);
          }
          v = testing::reduced(step.from.reduce, values);
        } else if (was.where[size_t(e)] >= 0) {
          v = made ? embedded(step, r, mine(e)) : mine(e);
        } else if (made) {
          v = identity(step.to.reduce);
        } else {
          check(is_exchange(step.kind), "a local step reads nothing");
          int holder = -1;
          for (int q : group(r, step.axes))
            if (before[size_t(q)].where[size_t(e)] >= 0) holder = q;
          check(holder >= 0, "the group holds every element of the new part");
          v = in[size_t(holder)][size_t(before[size_t(holder)].where[size_t(e)])];
          ++received;
        }
        out[size_t(r)].push_back(v);
      }
      most = std::max(most, received), largest = std::max(largest, int64_t(out[size_t(r)].size()));
    }
    int64_t n = mesh_.product(step.axes);
    if (step.kind == StepKind::all_reduce) most = 2 * (n - 1) * ((largest + n - 1) / n);
    if (step.kind == StepKind::reduce_scatter) most = (n - 1) * largest;
    if (step.bytes != most * itemsize) fail("{} bytes are not the {} of the busiest rank", step.bytes, most * itemsize);
    return out;
  }

  static float identity(Reduce r) {
    return r == Reduce::product ? 1.f : r == Reduce::min ? INFINITY : r == Reduce::max ? -INFINITY : 0.f;
  }

  // Of a replicated group one rank keeps the value; min, max and avg let all keep it, and avg makes up for padding.
  float embedded(const Step& step, int rank, float v) {
    AxisSet was_shard = step.axes & step.from.sharded(), was_whole = step.axes & ~was_shard;
    Reduce r = step.to.reduce;
    if (r == Reduce::avg) return v * float(mesh_.product(was_shard));
    return r == Reduce::min || r == Reduce::max || place_of(mesh_, rank, was_whole) == 0 ? v : identity(r);
  }

  const MeshShape& mesh_;
  const Shape& shape_;
  size_t whole_;
  std::map<uint64_t, std::vector<Held>> held_;
  std::map<std::pair<int, AxisSet>, std::vector<int>> groups_;
  std::vector<float> values_;
};

}  // namespace dtensor::testing
