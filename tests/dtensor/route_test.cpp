#include "dtensor/route.h"

#include <catch2/catch.hpp>

#include "placement/redistribution.h"
#include "tests/placement/cases.h"
#include "tests/placement/plans.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

bool is_exchange_of_all(StepKind k) { return k == StepKind::permute || k == StepKind::all_to_all; }

// What is wrong with the routes of all ranks in an exchange, if anything; adds up what each rank sends to others.
std::string fault(const MeshShape& mesh, const Shape& shape, const Step& step, std::vector<int64_t>& sent) {
  std::vector<Route> routes;
  for (int r = 0; r < mesh.world(); ++r) routes.push_back(find_route(mesh, shape, step, r));
  sent.assign(routes.size(), 0);
  for (int r = 0; r < mesh.world(); ++r) {
    const Route& mine = routes[size_t(r)];
    std::vector<int> group = mesh.group(r, step.axes);
    size_t me = size_t(mesh.index_in(r, step.axes)), n = group.size();
    if (mine.before != local_box(mesh, shape, step.from, r) || mine.now != local_box(mesh, shape, step.to, r))
      return "another part";
    if (mine.counts.size() != n || mine.out_counts.size() != n) return "not a count for each rank of the group";
    int64_t received = 0;
    for (size_t p = 0; p < n; ++p) {
      const Route& other = routes[size_t(group[p])];
      if (other.out_counts[me] != mine.counts[p]) return "one sends what the other does not expect";
      received += mine.out_counts[p];
      if (p != me) sent[size_t(r)] += mine.counts[p];
    }
    if (received != mine.now.numel()) return "not the whole of the new part";
    if (!mine.unpacks) continue;
    for (size_t i = 0; i < mine.receive.size(); ++i) {
      const auto& [peer, box] = mine.receive[i];
      if (i && mine.receive[i - 1].peer >= peer) return "not in the order of peers";
      if (intersection(box, mine.now) != box) return "more than the new part";
      if (intersection(box, routes[size_t(group[size_t(peer)])].before) != box) return "what the sender has not";
      for (size_t j = 0; j < i; ++j)
        if (intersection(box, mine.receive[j].box).numel()) return "an element twice";
    }
  }
  return "";
}

}  // namespace

TEST_CASE("in an exchange each rank reads every element that it has afterwards from one rank that has it before") {
  size_t exchanges = 0;
  auto run = [&](const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to) {
    for (const Step& step : plan_redistribution(mesh, shape, DType::f32, from, to, bytes_only).steps) {
      if (!is_exchange_of_all(step.kind)) continue;
      ++exchanges;
      std::vector<int64_t> sent;
      if (std::string wrong = fault(mesh, shape, step, sent); !wrong.empty())
        FAIL(show(mesh, shape, from, to) << ": " << wrong);
    }
  };
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {3}, {2, 2}, {2, 3}, {4, 2}})
    for (const Shape& shape : {Shape{5}, Shape{12}, Shape{4, 6}, Shape{5, 3}, Shape{1, 7}}) {
      MeshShape mesh = mesh_of(sizes);
      std::vector<Layout> layouts = all_layouts(mesh.axes(), shape.dims(), false);
      for (const Layout& s : layouts)
        for (const Layout& t : layouts) run(mesh, shape, s, t);
    }
  Random random{2};
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2, 2, 2}, {2, 3, 2}, {2, 2, 2, 2}})
    for (int i = 0; i < 300; ++i) {
      MeshShape mesh = mesh_of(sizes);
      Shape shape{1 + random.below(12), 1 + random.below(12)};
      std::vector<Layout> layouts = all_layouts(mesh.axes(), 2, false);
      run(mesh, shape, layouts[size_t(random.below(int(layouts.size())))],
          layouts[size_t(random.below(int(layouts.size())))]);
    }
  CHECK(exchanges > 1000);
}

TEST_CASE("ranks that hold the same piece share those who ask for it") {
  struct Case {
    const char *mesh, *from, *to;
    int64_t most;  // elements that any rank sends
  };
  for (const Case& c : {
           Case{"a=4", "f32[8,8] a=Shard(0)", "a=Shard(1)", 12},
           Case{"a=4,b=2", "f32[16] a=Shard(0)", "b=Shard(0) a=Shard(0)", 2},  // a quarter each to at most one other
           Case{"a=2,b=4", "f32[64] a=Shard(0)", "b=Shard(0) a=Shard(0)", 8},  // half asked for by 2 of 4 on each side
           Case{"a=2,b=4", "f32[64] a=Shard(0)", "b=Shard(0)", 16},
           Case{"a=2,b=2,c=2", "f32[8,8] a=Shard(0)", "b=Shard(0) a=Shard(1) c=Shard(1)", 8},
       }) {
    MeshShape mesh = MeshShape::parse(c.mesh);
    TensorSpec from = parse_spec(c.from, mesh);
    Plan plan = plan_redistribution(mesh, from.shape, DType::f32, from.layout,
                                    parse_layout(c.to, mesh, from.shape.dims()), bytes_only);
    INFO(c.mesh << " " << c.from << " to " << c.to << ": " << show(plan, mesh));
    REQUIRE(plan.steps.size() == 1);
    std::vector<int64_t> sent;
    REQUIRE(fault(mesh, from.shape, plan.steps[0], sent) == "");
    CHECK(*std::max_element(sent.begin(), sent.end()) == c.most);
  }
}

TEST_CASE("nothing is packed where parts lie in order") {
  struct Case {
    const char *from, *to;
    bool packs, unpacks;
  };
  MeshShape mesh = MeshShape::parse("a=4");
  for (const Case& c : {
           Case{"f32[8,8] a=Shard(0)", "a=Replicate", false, false},
           Case{"f32[8,8] a=Shard(1)", "a=Replicate", false, true},
           Case{"f32[8,8] a=Shard(0)", "a=Shard(1)", true, false},
           Case{"f32[8,8] a=Shard(1)", "a=Shard(0)", false, true},
           Case{"f32[1,8] a=Shard(1)", "a=Replicate", false, false},
           Case{"f32[8,8] a=Partial", "a=Shard(0)", false, false},
           Case{"f32[8,8] a=Partial", "a=Shard(1)", true, false},
           Case{"f32[7,8] a=Partial", "a=Shard(0)", false, false},
       }) {
    INFO(c.from << " to " << c.to);
    TensorSpec from = parse_spec(c.from, mesh);
    Plan plan = plan_redistribution(mesh, from.shape, DType::f32, from.layout, parse_layout(c.to, mesh, 2), bytes_only);
    REQUIRE(plan.steps.size() == 1);
    Route r = find_route(mesh, from.shape, plan.steps[0], 1);
    CHECK(r.packs == c.packs);
    CHECK(r.unpacks == c.unpacks);
    CHECK(r.send.empty() == !r.packs);
    CHECK(r.receive.empty() == !r.unpacks);
  }
}
