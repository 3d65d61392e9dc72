#include "placement/mesh_shape.h"

#include <catch2/catch.hpp>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

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
  CHECK(MeshShape().world() == 1);
  CHECK(MeshShape().axes() == 0);
  CHECK(to_string(MeshShape()) == "one rank");
}

TEST_CASE("law 9: a mesh that does not exist is an error that shows it") {
  auto bad = [](const char* text, const char* message) {
    INFO(text);
    CHECK_THROWS_WITH(MeshShape::parse(text), Equals(message));
  };
  for (const char* text :
       {"", "dp", "dp=", "dp=2,", ",dp=2", "dp=two", "dp=2x", "dp=2,,tp=2", "dp=99999999999", "=", "dp=2,tp"})
    bad(text, fmt::format("[mesh] \"{}\" is no mesh: write axes and sizes as in dp=2,tp=4", text).c_str());
  bad("dp=0", "[MeshShape] axis \"dp\" has size 0; a size is at least 1");
  bad("dp=2,tp=-4", "[MeshShape] axis \"tp\" has size -4; a size is at least 1");
  bad("dp=2,dp=2", "[MeshShape] axis \"dp\" is named twice");
  bad("=2", "[MeshShape] \"\" is no axis name: use letters, digits and _");
  bad("dp=2, tp=2", "[MeshShape] \" tp\" is no axis name: use letters, digits and _");
  bad("d(p=2", "[MeshShape] \"d(p\" is no axis name: use letters, digits and _");
  bad("a=1,b=1,c=1,d=1,e=1,f=1,g=1", "[MeshShape] 7 axes; at most 6 are supported");
  bad("a=65536,b=32768", "[MeshShape] a mesh of more than 2^31 ranks");
  bad("a=65536,b=65536,c=65536,d=65536,e=65536", "[MeshShape] a mesh of more than 2^31 ranks");
  CHECK(MeshShape::parse("a=65536,b=32767").world() == 65536 * 32767);
  CHECK_THROWS_WITH(MeshShape({2, 2}, {"dp"}), Equals("[MeshShape] 2 sizes and 1 names"));
  CHECK_THROWS_WITH(MeshShape::parse("dp=2,tp=4").axis("pp"),
                    Equals("[MeshShape] the mesh has no axis \"pp\": it is dp=2,tp=4"));
  CHECK_THROWS_WITH(MeshShape::parse("dp=2").axis("", "plan"), Equals("[plan] the mesh has no axis \"\": it is dp=2"));
}
