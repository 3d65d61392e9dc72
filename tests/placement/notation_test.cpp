#include "placement/notation.h"

#include <catch2/catch.hpp>

#include <set>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

TEST_CASE("placements are written and read") {
  for (int d = 0; d < max_dims; ++d) CHECK(parse_placement(to_string(Shard(d))) == Shard(d));
  for (Reduce r : all_reductions) CHECK(parse_placement(to_string(Partial(r))) == Partial(r));
  CHECK(parse_placement(to_string(Replicate())) == Replicate());
  CHECK(to_string(Shard(3)) == "Shard(3)");
  CHECK(to_string(Partial(Reduce::product)) == "Partial(product)");
  CHECK(parse_placement("Shard(-1)") == Shard(-1));
  CHECK(parse_placement("Partial") == Partial());
  CHECK(parse_placement("Partial()") == Partial());
  CHECK(parse_placement("Replicate()") == Replicate());
  for (const char* text : {"", "R", "Shard", "Shard()", "Shard(a)", "Shard(1", "Shard(8)", "Shard(-9)", "Shard(1)x",
                           "Shard(1 )", "Shard(99999999999999999999)", "Shard[1]", "Partial(mean)", "Partial(sum",
                           "partial", "replicate", "Replicate(0)"}) {
    INFO(text);
    CHECK_THROWS_WITH(
        parse_placement(text, "plan"),
        Equals(fmt::format(
            "[plan] \"{}\" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max)", text)));
  }
}

TEST_CASE("law 4: every layout is read as it was written") {
  MeshShape mesh = MeshShape::parse("dp=2,cp=3,tp=4");
  for (Reduce reduce : all_reductions)
    for (int dims = 0; dims <= 3; ++dims) {
      std::set<std::string> texts;
      std::vector<Layout> layouts = all_layouts(3, dims, true, reduce);
      for (const Layout& l : layouts) {
        std::string text = to_string(l, mesh);
        texts.insert(text);
        INFO(text);
        REQUIRE(parse_layout(text, mesh, dims) == l);
        // Axes stand in mesh order wherever sharding order is mesh order.
        size_t dp = text.find("dp="), cp = text.find("cp="), tp = text.find("tp=");
        REQUIRE((dp < cp && cp < tp) == l.in_mesh_order());
        TensorSpec spec{DType::bf16, Shape::filled(dims, 5), l};
        REQUIRE(parse_spec(to_string(spec, mesh), mesh) == spec);
      }
      CHECK(texts.size() == layouts.size());
    }
}

TEST_CASE("the notation by example") {
  MeshShape mesh = MeshShape::parse("dp=2,tp=4"), three = MeshShape::parse("dp=2,cp=3,tp=4");
  auto text = [](const char* in, const MeshShape& m) { return to_string(parse_spec(in, m), m); };
  CHECK(text("f32[8,16] dp=Shard(0) tp=Replicate", mesh) == "f32[8,16] dp=Shard(0) tp=Replicate");
  CHECK(text("f32[8,16]", mesh) == "f32[8,16] dp=Replicate tp=Replicate");
  CHECK(text("  i64[]   tp=Partial", mesh) == "i64[] dp=Replicate tp=Partial(sum)");
  CHECK(text("bool[0,1] tp=Shard(-1)", mesh) == "bool[0,1] dp=Replicate tp=Shard(1)");
  CHECK(text("f64[4] tp=Shard(0) dp=Shard(0)", mesh) == "f64[4] tp=Shard(0) dp=Shard(0)");
  CHECK(text("f64[4] tp=Replicate dp=Shard(0)", mesh) == "f64[4] dp=Shard(0) tp=Replicate");
  CHECK(text("f32[4,4] tp=Shard(0) cp=Shard(1) dp=Shard(0)", three) == "f32[4,4] tp=Shard(0) cp=Shard(1) dp=Shard(0)");
  CHECK(text("f32[4,4] tp=Shard(1) cp=Shard(1) dp=Shard(0)", three) == "f32[4,4] dp=Shard(0) tp=Shard(1) cp=Shard(1)");
  CHECK(to_string(TensorSpec{DType::f32, {3}, {}}, MeshShape()) == "f32[3]");
  CHECK(parse_spec("f32[3]", MeshShape()) == TensorSpec{DType::f32, {3}, {}});
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    CHECK(parse_spec(fmt::format("{}[2]", name(t)), mesh).dtype == t);
}

TEST_CASE("law 9: what is no tensor or layout is an error that shows it") {
  MeshShape mesh = MeshShape::parse("dp=2,tp=4");
  for (const char* text :
       {"", " ", "f32", "f32[", "f32]", "f32[8", "f32[8,]", "f32[,8]", "f32[8,,4]", "f32[-1]", "f32[a]", "f32[8 ,4]",
        "f16[8]", "[8]", "f32[8]x", "f32[99999999999999999999]", "f32[8][4]", "float[2] dp=Shard(0)"}) {
    INFO(text);
    CHECK_THROWS_WITH(
        parse_spec(text, mesh),
        Equals(fmt::format(
            "[parse_spec] \"{}\" is no tensor: write as in f32[8,16] dp=Shard(0) (dtypes f32 f64 bf16 i64 bool)",
            text)));
  }
  CHECK_THROWS_WITH(parse_spec("f32[1,1,1,1,1,1,1,1,1]", mesh), Equals("[Shape] more than 8 dimensions"));
  auto bad = [&](const char* text, const char* message) {
    INFO(text);
    CHECK_THROWS_WITH(parse_layout(text, mesh, 2), Equals(message));
  };
  bad("pp=Shard(0)", "[parse_layout] the mesh has no axis \"pp\": it is dp=2,tp=4");
  bad("=Shard(0)", "[parse_layout] the mesh has no axis \"\": it is dp=2,tp=4");
  bad("Shard(0)", "[parse_layout] \"Shard(0)\" is no axis and placement: write as in tp=Shard(0)");
  bad("dp=Shard(0) dp=Replicate", "[parse_layout] axis \"dp\" is named twice");
  bad("dp=Shard(2)", "[parse_layout] dimension 2 is out of range for 2 dimensions");
  bad("dp=Shard(-3)", "[parse_layout] dimension -3 is out of range for 2 dimensions");
  bad("dp=", "[parse_layout] \"\" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max)");
  bad("dp=Partial(sum) tp=Partial(min)", "[Layout] Partial(sum) and Partial(min) do not mix: reduce one of them first");
}
