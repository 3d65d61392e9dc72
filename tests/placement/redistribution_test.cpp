#include "placement/redistribution.h"

#include <catch2/catch.hpp>

#include "tests/placement/cases.h"
#include "tests/placement/plans.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

// The times of all plans, and whether each can come after each other: reductions innermost first.
struct Distances {
  std::vector<Layout> layouts;
  std::vector<Picoseconds> time;
  std::vector<Plan> plans;

  Distances(const MeshShape& mesh, const Shape& shape, std::vector<Layout> all, const CostModel& cost)
      : layouts(std::move(all)) {
    for (const Layout& s : layouts)
      for (const Layout& t : layouts)
        plans.push_back(plan_redistribution(mesh, shape, DType::f32, s, t, cost)),
            time.push_back(time_of(plans.back()));
  }
  size_t at(size_t i, size_t j) const { return i * layouts.size() + j; }
  AxisSet reduced(size_t plan) const {
    AxisSet set = 0;
    for (const Step& s : plans[plan].steps) set |= s.from.partial & ~s.to.partial;
    return set;
  }
};

}  // namespace

// No plan is dearer than going through any other layout: with the direct step always among the candidates that is
// Dijkstra's condition, so plans are the shortest paths over all layouts.
TEST_CASE("without Partial no detour is cheaper than the plan") {
  size_t checked = 0;
  for (const CostModel& cost : {CostModel{}, bytes_only, late_outside}) {
    bool alike = cost.link(0).launch_ns == cost.link(1).launch_ns;  // else on two axes only
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {5}, {2, 2}, {2, 3}, {4, 8}, {2, 2, 2}})
      for (const Shape& shape : {Shape{8}, Shape{5, 3}, Shape{5, 8}, Shape{64, 2048}}) {
        if (sizes.size() == 3 && (shape[0] != 5 || !alike)) continue;
        Distances d(mesh_of(sizes), shape, all_layouts(int(sizes.size()), shape.dims(), false), cost);
        for (size_t i = 0; i < d.layouts.size(); ++i)
          for (size_t j = 0; j < d.layouts.size(); ++j)
            for (size_t k = 0; k < d.layouts.size(); ++k, ++checked)
              if (d.time[d.at(i, j)] > d.time[d.at(i, k)] + d.time[d.at(k, j)])
                FAIL(to_string(shape) << " on " << to_string(mesh_of(sizes)) << ", "
                                      << to_string(d.layouts[i], mesh_of(sizes)) << " to "
                                      << to_string(d.layouts[j], mesh_of(sizes)) << ": cheaper through "
                                      << to_string(d.layouts[k], mesh_of(sizes)));
      }
  }
  CHECK(checked > 100000);
}

// With Partial plans are constructed, not searched: the bounds are what was measured, so that a change for the worse is
// seen. Detours may not reduce out of order, reduce what stays Partial, or make Partial what never was.
TEST_CASE("with Partial detours are hardly cheaper than the plan") {
  constexpr double bounds[][3] = {{1, 1, 1.19}, {1.13, 1, 1}, {1.15, 1, 3.08}};  // by machine and kind of pair
  const char* const kinds[] = {"all Partial is reduced", "some Partial stays", "Partial is made"};
  for (size_t m = 0; m < std::size(machines); ++m) {
    size_t pairs = 0, dearer = 0;
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {4}, {2, 2}, {2, 4}})
      for (const Shape& shape : {Shape{8}, Shape{5, 8}, Shape{64, 4096}}) {
        MeshShape mesh = mesh_of(sizes);
        Distances d(mesh, shape, all_layouts(mesh.axes(), shape.dims()), machines[m].cost);
        for (size_t i = 0; i < d.layouts.size(); ++i)
          for (size_t j = 0; j < d.layouts.size(); ++j) {
            const Layout &s = d.layouts[i], &t = d.layouts[j];
            if (i == j || !(s.partial | t.partial)) continue;
            size_t kind = t.partial & ~s.partial ? 2 : t.partial & s.partial ? 1 : 0, via = i;
            Picoseconds least = d.time[d.at(i, j)];
            for (size_t k = 0; k < d.layouts.size(); ++k) {
              AxisSet first = d.reduced(d.at(i, k)), then = d.reduced(d.at(k, j)), partial = d.layouts[k].partial;
              if (first && then && (first & -first) <= then) continue;
              if ((s.partial & t.partial & ~partial) || (partial & ~(s.partial | t.partial | s.sharded()))) continue;
              if (Picoseconds time = d.time[d.at(i, k)] + d.time[d.at(k, j)]; time < least) least = time, via = k;
            }
            double ratio = double(d.time[d.at(i, j)]) / double(least);
            ++pairs, dearer += ratio > 1.01;
            INFO(machines[m].name << ", " << kinds[kind] << ": " << to_string(shape) << " on " << to_string(mesh)
                                  << ", " << to_string(s, mesh) << " to " << to_string(t, mesh)
                                  << " is cheaper through " << to_string(d.layouts[via], mesh));
            REQUIRE(ratio <= bounds[m][kind]);
          }
      }
    CHECK(pairs > 900);
    CHECK(dearer * 30 < pairs);
  }
}

namespace {

struct Named {
  const char *mesh, *spec, *target, *plan;
};

void check_named(const Named& n, const CostModel& cost = {}, std::optional<DType> reduce_dtype = {}) {
  MeshShape mesh = MeshShape::parse(n.mesh);
  TensorSpec spec = parse_spec(n.spec, mesh);
  INFO(n.mesh << ": " << n.spec << " to " << n.target);
  CHECK(show(plan_redistribution(mesh, spec.shape, spec.dtype, spec.layout,
                                 parse_layout(n.target, mesh, spec.shape.dims()), cost, reduce_dtype),
             mesh) == n.plan);
}

}  // namespace

TEST_CASE("a plan without sums receives no less than its bound") {
  Random random{3};
  size_t checked = 0;
  for (const std::vector<int>& sizes :
       std::vector<std::vector<int>>{{2, 3}, {4, 2}, {2, 2, 2}, {2, 1, 3}, {2, 2, 2, 2}})
    for (int i = 0; i < 12; ++i) {
      MeshShape mesh = mesh_of(sizes);
      Shape shape;
      for (int d = 1 + random.below(2); d; --d) shape.push_back((1 + random.below(9)) * (i % 2 ? mesh.world() : 1));
      std::vector<Layout> layouts = all_layouts(mesh.axes(), shape.dims());
      for (const Machine& machine : machines) {
        Redistributions plans(mesh, shape, DType::f32, machine.cost);
        for (int k = 0; k < 300; ++k) {
          const Layout &s = layouts[size_t(random.below(int(layouts.size())))],
                       &t = layouts[size_t(random.below(int(layouts.size())))];
          if (s.partial & ~t.partial) continue;
          int64_t bytes = plans.plan(s, t).bytes(), least = plans.least_without_sums(s, t);
          if (bytes < least) FAIL(show(mesh, shape, s, t) << ": " << bytes << " bytes, not " << least);
          ++checked;
        }
      }
    }
  CHECK(checked > 10000);
}

TEST_CASE("plans by example") {
  for (const Named& n : std::vector<Named>{
           // nothing to do
           {"tp=4", "f32[8] tp=Shard(0)", "tp=Shard(0)", ""},
           {"tp=1", "f32[8] tp=Shard(0)", "tp=Partial", ""},
           {"tp=4", "f32[0,8] tp=Shard(0)", "tp=Partial", ""},
           // one axis, sizes that divide
           {"tp=4", "f32[8,16] tp=Shard(0)", "tp=Replicate", "all_gather(tp) 384"},
           {"tp=4", "f32[8,16] tp=Shard(0)", "tp=Shard(1)", "all_to_all(tp) 96"},
           {"tp=4", "f32[8,16] tp=Partial", "tp=Replicate", "all_reduce(tp) 768"},
           {"tp=4", "f32[8,16] tp=Partial", "tp=Shard(1)", "reduce_scatter(tp) 384"},
           {"tp=4", "f32[8,16] tp=Replicate", "tp=Shard(0)", "local"},
           {"tp=4", "f32[8,16] tp=Replicate", "tp=Partial", "local"},
           {"tp=4", "f32[8,16] tp=Shard(0)", "tp=Partial", "local"},
           {"tp=4", "f32[8,16] tp=Partial(max)", "tp=Replicate", "all_reduce(tp) 768"},
           {"tp=4", "f32[8,16] tp=Partial(max)", "tp=Partial(sum)", "all_reduce(tp) 768, local"},
           // other element types
           {"tp=4", "i64[8,16] tp=Shard(0)", "tp=Replicate", "all_gather(tp) 768"},
           {"tp=4", "bool[8,16] tp=Shard(0)", "tp=Replicate", "all_gather(tp) 96"},
           // sizes that do not divide: what the busiest rank lacks; reductions count the largest piece
           {"tp=4", "f32[5] tp=Shard(0)", "tp=Replicate", "all_gather(tp) 20"},
           {"tp=4", "f32[5] tp=Partial", "tp=Replicate", "all_reduce(tp) 48"},
           {"tp=4", "f32[5] tp=Partial", "tp=Shard(0)", "reduce_scatter(tp) 24"},
           {"tp=4", "f32[1] tp=Partial", "tp=Replicate", "all_reduce(tp) 24"},
           {"tp=4", "f32[] tp=Partial", "tp=Replicate", "all_reduce(tp) 24"},
           {"tp=3", "f32[5,7] tp=Shard(0)", "tp=Shard(1)", "all_to_all(tp) 36"},
           // two axes
           {"dp=2,tp=2", "f32[8,8] dp=Shard(0) tp=Shard(1)", "dp=Shard(1) tp=Shard(0)", "permute(dp,tp) 64"},
           {"dp=2,tp=4", "f32[8] dp=Shard(0) tp=Shard(0)", "tp=Shard(0) dp=Shard(0)", "permute(dp,tp) 4"},
           {"dp=2,tp=4", "f32[8] tp=Shard(0) dp=Shard(0)", "dp=Shard(0) tp=Shard(0)", "permute(dp,tp) 4"},
           {"dp=2,tp=4", "f32[16,3] tp=Shard(0) dp=Shard(0)", "tp=Shard(0)", "all_gather(dp) 24"},
           {"dp=2,tp=4", "f32[16,3] tp=Shard(0)", "tp=Shard(0) dp=Shard(0)", "local"},
           {"dp=2,tp=4", "f32[16,8] dp=Shard(0) tp=Shard(0)", "", "all_gather(dp,tp) 448"},
           {"dp=2,tp=4", "f32[16,8] dp=Shard(0) tp=Shard(1)", "", "all_gather(dp,tp) 448"},
           {"dp=2,tp=4", "f32[16,8] dp=Shard(0) tp=Shard(1)", "dp=Shard(0)", "all_gather(tp) 192"},
           {"dp=2,tp=4", "f32[16,8] dp=Partial tp=Shard(1)", "tp=Shard(1)", "all_reduce(dp) 128"},
           {"dp=2,tp=4", "f32[16,8] dp=Partial tp=Shard(0)", "tp=Shard(0) dp=Shard(0)", "reduce_scatter(dp) 64"},
           {"dp=2,tp=4", "f32[16,8] dp=Partial tp=Partial", "dp=Partial", "all_reduce(tp) 768"},
           {"dp=2,tp=2", "f32[8,8] dp=Partial tp=Partial", "", "all_reduce(dp,tp) 384"},
           {"dp=2,tp=2", "f32[8,8] dp=Partial tp=Partial", "dp=Shard(0) tp=Shard(0)", "reduce_scatter(dp,tp) 192"},
           {"dp=2,tp=2", "f32[8,8] dp=Shard(0)", "tp=Shard(1)", "all_gather(dp) 64"},
       })
    check_named(n);
}

TEST_CASE("contributions of bf16 to a sum travel as f32 or what is asked for, and all else as bf16") {
  struct Case {
    const char *mesh, *spec, *target, *plan, *in_bf16;
  };
  for (const Case& c : std::vector<Case>{
           {"tp=4", "bf16[8,16] tp=Partial", "tp=Replicate", "all_reduce(tp) 768", "all_reduce(tp) 384"},
           {"tp=4", "bf16[8,16] tp=Partial(avg)", "tp=Replicate", "all_reduce(tp) 768", "all_reduce(tp) 384"},
           {"tp=4", "bf16[8,16] tp=Partial(max)", "tp=Replicate", "all_reduce(tp) 384", "all_reduce(tp) 384"},
           {"tp=4", "bf16[8,16] tp=Partial", "tp=Shard(0)", "reduce_scatter(tp) 384", "reduce_scatter(tp) 192"},
           {"tp=4", "bf16[8,16] tp=Shard(0)", "", "all_gather(tp) 192", "all_gather(tp) 192"},
           {"dp=2,tp=4", "bf16[8,16] dp=Shard(0) tp=Partial", "tp=Partial", "all_gather(dp) 256", "all_gather(dp) 128"},
           {"dp=2,tp=4", "bf16[800,1600] dp=Shard(0) tp=Partial", "tp=Shard(1)",
            "reduce_scatter(tp) 1920000, all_gather(dp) 320000", "reduce_scatter(tp) 960000, all_gather(dp) 320000"},
           {"dp=2,tp=4", "bf16[8,16] dp=Partial tp=Partial", "dp=Partial", "all_reduce(tp) 768", "all_reduce(tp) 384"},
       }) {
    check_named({c.mesh, c.spec, c.target, c.plan});
    check_named({c.mesh, c.spec, c.target, c.in_bf16}, {}, DType::bf16);
  }
}

TEST_CASE("what a rank already holds never moves") {
  size_t pairs = 0;
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {4}, {2, 2}, {2, 3}, {3, 2}})
    for (const Shape& shape : {Shape{1}, Shape{5}, Shape{12}, Shape{1, 1}, Shape{1, 5}, Shape{5, 2}, Shape{6, 12}})
      for (const Layout& s : all_layouts(int(sizes.size()), shape.dims()))
        for (const Layout& t : all_layouts(int(sizes.size()), shape.dims())) {
          MeshShape mesh = mesh_of(sizes);
          bool inside = s.partial == t.partial;
          for (int r = 0; r < mesh.world(); ++r) {
            Box before = local_box(mesh, shape, s, r), now = local_box(mesh, shape, t, r);
            inside &= intersection(before, now).numel() == now.numel();
          }
          if (!inside) continue;
          ++pairs;
          for (const Machine& machine : machines) {
            Plan plan = plan_redistribution(mesh, shape, DType::f32, s, t, machine.cost);
            INFO(show(mesh, shape, s, t) << ": " << show(plan, mesh));
            REQUIRE((plan.bytes() == 0 && plan.collectives() == 0 && plan.steps.size() <= 1));
          }
        }
  CHECK(pairs > 500);
}

// An exchange after an exchange is one exchange; a reduction after one of its kind is one over the flattened axes.
TEST_CASE("neighbouring collectives over several axes are one") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2, 2}, {2, 3}, {3, 2}, {2, 2, 2}})
    for (const Shape& shape : {Shape{8}, Shape{5, 8}, Shape{12, 12}})
      for (const Layout& s : all_layouts(int(sizes.size()), shape.dims()))
        for (const Layout& t : all_layouts(int(sizes.size()), shape.dims())) {
          MeshShape mesh = mesh_of(sizes);
          Plan plan = plan_redistribution(mesh, shape, DType::f32, s, t);
          INFO(show(mesh, shape, s, t) << ": " << show(plan, mesh));
          for (size_t i = 1; i < plan.steps.size(); ++i) {
            StepKind a = plan.steps[i - 1].kind, b = plan.steps[i].kind;
            REQUIRE_FALSE((a == b || (is_exchange(a) && is_exchange(b))));
          }
        }
}

TEST_CASE("one axis needs one collective") {
  for (int n : {2, 3, 4, 8}) {
    MeshShape mesh = mesh_of({n});
    for (const Shape& shape : all_shapes(3, {2, 5, 8}))
      for (int a = 0; a < 3; ++a) {
        for (int b = 0; b < 3; ++b) {
          if (a == b) continue;
          Plan plan = plan_redistribution(mesh, shape, DType::f32, {Shard(a)}, {Shard(b)});
          REQUIRE(plan.steps.size() == 1);
          REQUIRE(plan.steps[0].kind == StepKind::all_to_all);
        }
        for (Reduce r : all_reductions) {
          for (const Layout& whole : {Layout{}, Layout{Shard(a)}}) {
            Plan plan = plan_redistribution(mesh, shape, DType::f32, whole, {Partial(r)});
            REQUIRE(plan.steps.size() == 1);
            REQUIRE(plan.steps[0].kind == StepKind::embed);
          }
          for (Reduce other : all_reductions) {  // a maximum of contributions is no sum of them: all are reduced first
            if (other == r) continue;
            Plan plan = plan_redistribution(mesh, shape, DType::f32, {Partial(r)}, {Partial(other)});
            REQUIRE(plan.steps.size() == 2);
            REQUIRE(plan.steps[0].kind == StepKind::all_reduce);
            REQUIRE(plan.steps[0].to.is_replicated());
            REQUIRE(plan.steps[1].kind == StepKind::embed);
          }
        }
      }
  }
}

TEST_CASE("law 1: a tensor without elements needs no steps") {
  MeshShape mesh = mesh_of({2, 3});
  for (const Shape& shape : {Shape{0}, Shape{0, 5}, Shape{5, 0}})
    for (const Layout& s : all_layouts(2, shape.dims()))
      for (const Layout& t : all_layouts(2, shape.dims(), true, Reduce::max))
        REQUIRE(plan_redistribution(mesh, shape, DType::f32, s, t).steps.empty());
}

TEST_CASE("a plan does not depend on those of the same tensor made before") {
  size_t split = 0;
  for (const Machine& machine : machines)
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2, 3}, {4, 8}})
      for (const Shape& shape : {Shape{8}, Shape{5, 8}, Shape{64, 2048}}) {
        MeshShape mesh = mesh_of(sizes);
        Redistributions together(mesh, shape, DType::f32, machine.cost);
        for (const Layout& s : all_layouts(mesh.axes(), shape.dims()))
          for (const Layout& t : all_layouts(mesh.axes(), shape.dims())) {
            Plan a = together.plan(s, t), b = plan_redistribution(mesh, shape, DType::f32, s, t, machine.cost);
            INFO(machine.name << ": " << show(mesh, shape, s, t));
            REQUIRE(show(a, mesh) == show(b, mesh));
            REQUIRE(time_of(a) == time_of(b));
            split += b.collectives() > 1;
          }
      }
  CHECK(split > 100);
}

TEST_CASE("axes of one rank do not change a plan") {
  MeshShape narrow = mesh_of({1, 2, 1, 3}), wide = mesh_of({2, 3});
  for (const Layout& s : all_layouts(2, 2))
    for (const Layout& t : all_layouts(2, 2)) {
      auto widen = [](const Layout& l) {
        Layout w;
        w.partial = (l.partial & 1) << 1 | (l.partial & 2) << 2, w.reduce = l.reduce;
        for (size_t d = 0; d < max_dims; ++d)
          for (int a : l.split[d]) w.split[d].push_back(a ? 3 : 1);
        return w.with(0, Shard(1)).with(2, l.partial ? Partial(l.reduce) : Replicate());
      };
      Plan a = plan_redistribution(wide, {5, 8}, DType::f32, s, t),
           b = plan_redistribution(narrow, {5, 8}, DType::f32, widen(s), widen(t));
      REQUIRE(a.steps.size() == b.steps.size());
      REQUIRE(a.bytes() == b.bytes());
      REQUIRE(time_of(a) == time_of(b));
      for (size_t i = 0; i < a.steps.size(); ++i) REQUIRE(a.steps[i].kind == b.steps[i].kind);
    }
}

TEST_CASE("sizes of real models do not overflow a plan") {
  MeshShape mesh = MeshShape::parse("pp=16,dp=64,tp=8");
  Shape shape{1 << 20, 1 << 20};  // 4 TiB
  for (const Layout& s : all_layouts(3, 2))
    for (const Layout& t : {Layout{}, Layout{Shard(0), Shard(1), Shard(0)}, Layout{Partial(), Shard(0), Replicate()}})
      for (const Machine& machine : machines)
        for (const Step& step :
             plan_redistribution(MeshShape::parse("a=2,b=4,c=2"), shape, DType::f32, s, t, machine.cost).steps) {
          REQUIRE(step.bytes >= 0);
          REQUIRE(step.time > 0);
        }
  Plan p = plan_redistribution(mesh, shape, DType::f32, {Shard(0), Shard(0), Shard(1)}, {});
  CHECK(p.bytes() == (int64_t(1) << 42) - (int64_t(1) << 29));
}
