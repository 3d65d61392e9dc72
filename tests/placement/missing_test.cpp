#include "placement/missing.h"

#include <catch2/catch.hpp>

#include "placement/notation.h"
#include "tests/placement/cases.h"
#include "tests/placement/plans.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

// Asking each rank.
int64_t asked(const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to) {
  int64_t most = 0;
  for (int r = 0; r < mesh.world(); ++r) {
    Box now = local_box(mesh, shape, to, r);
    most = std::max(most, now.numel() - intersection(now, local_box(mesh, shape, from, r)).numel());
  }
  return most;
}

void compare(const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to) {
  int64_t most = asked(mesh, shape, from, to), found = most_missing(mesh, shape, from, to);
  if (found != most) FAIL(show(mesh, shape, from, to) << ": " << most << " elements, not " << found);
  if ((most_missing(mesh, shape, from, to, 1) == 0) != (most == 0)) FAIL(show(mesh, shape, from, to) << ": any");
}

}  // namespace

TEST_CASE("the most that a rank lacks is found as by asking each") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{1}, {2}, {3}, {5}, {2, 2}, {2, 3}, {4, 2}})
    for (int dims = 0; dims <= 2; ++dims)
      for (const Shape& shape : all_shapes(dims, {0, 1, 2, 5, 7, 12})) {
        MeshShape mesh = mesh_of(sizes);
        std::vector<Layout> layouts = all_layouts(mesh.axes(), dims, false);
        for (const Layout& s : layouts)
          for (const Layout& t : layouts) compare(mesh, shape, s, t);
      }
  Random random{1};
  for (const std::vector<int>& sizes :
       std::vector<std::vector<int>>{{2, 2, 2}, {3, 2, 4}, {17}, {5, 7}, {2, 1, 2, 3}, {2, 2, 2, 2}, {2, 3, 2, 2, 2}}) {
    MeshShape mesh = mesh_of(sizes);
    for (int i = 0; i < 4; ++i) {
      Shape shape;
      for (int d = 1 + random.below(2); d; --d) shape.push_back((1 + random.below(40)) * (i % 2 ? mesh.world() : 1));
      std::vector<Layout> layouts = all_layouts(mesh.axes(), shape.dims(), false);
      for (int k = 0; k < 400; ++k)
        compare(mesh, shape, layouts[size_t(random.below(int(layouts.size())))],
                layouts[size_t(random.below(int(layouts.size())))]);
    }
  }
}

// Asking each of these ranks would take minutes.
TEST_CASE("what ranks lack is found on meshes of any size") {
  struct Case {
    const char *mesh, *from, *to;
    int64_t most;
  };
  constexpr int64_t n = 1 << 20;
  for (const Case& c : {
           Case{"a=1048576", "f32[1048576,1048576] a=Shard(0)", "a=Replicate", n * n - n},
           Case{"a=1048576", "f32[1048576,1048576] a=Shard(0)", "a=Shard(1)", n - 1},
           Case{"a=1048577", "f32[1048576,1048576] a=Shard(0)", "a=Shard(1)", n - 1},
           Case{"a=65536,b=16384", "f32[1048576,1048576] a=Shard(0) b=Shard(1)", "a=Shard(1) b=Shard(0)", 16 * 64},
           Case{"a=65536,b=16384", "f32[1073741824] a=Shard(0) b=Shard(0)", "b=Shard(0) a=Shard(0)", 1},
           Case{"a=65536,b=16384", "f32[1073741823] a=Shard(0) b=Shard(0)", "b=Shard(0)", 65536},
           Case{"a=32768,b=32768", "f32[3,1000003] a=Shard(0) b=Shard(1)", "b=Replicate a=Shard(0)", 1000003},
       }) {
    INFO(c.mesh << ": " << c.from << " to " << c.to);
    MeshShape mesh = MeshShape::parse(c.mesh);
    TensorSpec from = parse_spec(c.from, mesh);
    CHECK(most_missing(mesh, from.shape, from.layout, parse_layout(c.to, mesh, from.shape.dims())) == c.most);
  }
}
