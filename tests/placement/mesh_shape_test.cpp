#include "placement/mesh_shape.h"

#include <catch2/catch.hpp>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

TEST_CASE("ranks are row-major over the axes") {
  for (const std::vector<int>& sizes :
       std::vector<std::vector<int>>{{1}, {5}, {2, 3}, {3, 1, 2}, {2, 2, 2}, {1, 2, 1, 3, 2, 1}}) {
    MeshShape mesh = mesh_of(sizes);
    int world = 1;
    for (int n : sizes) world *= n;
    REQUIRE(mesh.world() == world);
    REQUIRE(mesh.axes() == int(sizes.size()));
    for (int r = 0; r < world; ++r)
      for (int a = 0; a < mesh.axes(); ++a) REQUIRE(mesh.coordinate(r, a) == coordinates(mesh, r)[size_t(a)]);
    for (AxisSet set = 0; set <= mesh.all(); ++set) {
      MeshShape part = mesh.select(set);
      CHECK(part.world() == mesh.product(set));
      for (int r = 0; r < world; ++r) {
        std::vector<int> group = group_of(mesh, r, set);
        REQUIRE(mesh.group(r, set) == group);
        REQUIRE(int(group.size()) == mesh.product(set));
        REQUIRE(mesh.index_in(r, set) == place_of(mesh, r, set));
        REQUIRE(group[size_t(mesh.index_in(r, set))] == r);
      }
    }
  }
}

TEST_CASE("a mesh is written as axes and sizes") {
  for (const char* text : {"dp=2", "dp=2,tp=4", "a=1,b=1,c=1,d=1,e=1,f=7"}) {
    CHECK(to_string(MeshShape::parse(text)) == text);
    CHECK(MeshShape::parse(text) == MeshShape::parse(text));
  }
  MeshShape mesh = MeshShape::parse("dp=2,cp=1,tp=4");
  CHECK(mesh.find("tp") == 2);
  CHECK(mesh.find("pp") == -1);
  CHECK(mesh.axis("dp") == 0);
  CHECK(mesh.wide() == (axis_bit(0) | axis_bit(2)));
  CHECK(mesh.names(mesh.wide()) == "dp,tp");
  CHECK(mesh.names(0).empty());
  CHECK(to_string(mesh.select(axis_bit(2))) == "tp=4");
  CHECK(mesh != MeshShape::parse("dp=2,cp=1,pp=4"));
  CHECK(mesh != MeshShape::parse("dp=2,cp=1,tp=2"));
  CHECK(MeshShape::parse("a=65536,b=32767").world() == 65536 * 32767);
  CHECK(MeshShape().world() == 1);
  CHECK(MeshShape().axes() == 0);
  CHECK(to_string(MeshShape()) == "one rank");
}

TEST_CASE("an axis is inside a node where all its groups of ranks are") {
  struct Case {
    const char* mesh;
    int ranks_per_node;
    const char* across;  // the axes that lead to other nodes
  };
  for (const Case& c : {
           Case{"dp=4,tp=8", 0, ""},         // one node
           Case{"dp=4,tp=8", 8, "dp"},       // a node has one tp group
           Case{"dp=4,tp=8", 16, "dp"},      // and two: some neighbours in dp are on other nodes
           Case{"dp=4,tp=8", 32, ""},        // just one node
           Case{"dp=4,tp=8", 100, ""},       // with room left
           Case{"dp=4,tp=8", 4, "dp,tp"},    // tp groups are cut
           Case{"dp=4,tp=3", 4, "dp,tp"},    // some of them
           Case{"pp=2,dp=2,tp=2", 4, "pp"},  // inner axes first
           Case{"pp=2,dp=1,tp=2", 2, "pp"},  // an axis of one rank leads nowhere
           Case{"dp=2,tp=2", 1, "dp,tp"},
       }) {
    INFO(c.mesh << " with " << c.ranks_per_node << " ranks per node");
    MeshShape mesh = MeshShape::parse(c.mesh).on_nodes(c.ranks_per_node);
    AxisSet across = 0;
    for (int a = 0; a < mesh.axes(); ++a) {
      if (mesh.place(a) == AxisPlace::across_nodes) across |= axis_bit(a);
      CHECK(mesh.select(axis_bit(a)).place(0) == mesh.place(a));  // a part of the mesh keeps its places
      bool cut = false;                                           // by the definition
      for (int r = 0; r < mesh.world() && c.ranks_per_node; ++r)
        for (int other : mesh.group(r, axis_bit(a))) cut |= r / c.ranks_per_node != other / c.ranks_per_node;
      CHECK(cut == (mesh.place(a) == AxisPlace::across_nodes));
    }
    CHECK(mesh.names(across) == c.across);
    CHECK(mesh.on_nodes(0) == MeshShape::parse(c.mesh));
    CHECK((mesh == MeshShape::parse(c.mesh)) == (across == 0));
  }
  CHECK(name(AxisPlace::inside_node) == "inside a node");
  CHECK(name(AxisPlace::across_nodes) == "across nodes");
}
