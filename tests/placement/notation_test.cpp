#include "placement/notation.h"

#include <catch2/catch.hpp>

#include <set>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

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

TEST_CASE("law 4: a target is read as it was written, whatever it changes") {
  MeshShape mesh = MeshShape::parse("dp=2,cp=3,tp=4");
  std::vector<Layout> layouts = all_layouts(3, 2, true, Reduce::sum);
  for (const Layout& from : layouts)
    for (const Layout& to : layouts) {
      INFO(to_string(from, mesh) << " -> " << to_string(to, mesh));
      REQUIRE(parse_target(to_string(to, mesh), mesh, 2, from) == to);  // names all
      for (int a = 0; a < 3; ++a) {  // names one: the others keep their placements and their order
        Layout one =
            parse_target(fmt::format("{}={}", mesh.name(a), to_string(to[a])), mesh, 2, from.with(a, Replicate()));
        REQUIRE(one[a] == to[a]);
        REQUIRE(one.with(a, Replicate()) == from.with(a, Replicate()));
      }
    }
}

TEST_CASE("a target leaves axes alone that it does not name") {
  struct Case {
    const char *from, *target, *to;
  };
  MeshShape mesh = MeshShape::parse("dp=2,cp=3,tp=4");
  for (const Case& c : std::vector<Case>{
           {"dp=Shard(0) tp=Shard(1)", "tp=Replicate", "dp=Shard(0) cp=Replicate tp=Replicate"},
           {"dp=Shard(0) tp=Shard(1)", "tp=Replicate *=Replicate", "dp=Replicate cp=Replicate tp=Replicate"},
           {"dp=Shard(0) tp=Shard(1)", "*=Replicate", "dp=Replicate cp=Replicate tp=Replicate"},
           {"dp=Shard(0) tp=Shard(1)", "*=Partial tp=Shard(-1)", "dp=Partial(sum) cp=Partial(sum) tp=Shard(1)"},
           {"dp=Partial", "tp=Partial", "dp=Partial(sum) cp=Replicate tp=Partial(sum)"},
           {"dp=Partial", "dp=Partial(max) tp=Partial(max)", "dp=Partial(max) cp=Replicate tp=Partial(max)"},
           // Several axes of one dimension. Left alone: their order stays, whichever axis comes or goes.
           {"tp=Shard(0) dp=Shard(0)", "cp=Shard(1)", "tp=Shard(0) cp=Shard(1) dp=Shard(0)"},
           {"tp=Shard(0) cp=Shard(0) dp=Shard(0)", "cp=Replicate", "tp=Shard(0) cp=Replicate dp=Shard(0)"},
           {"tp=Shard(0) cp=Shard(0) dp=Shard(0)", "cp=Shard(0)", "tp=Shard(0) cp=Shard(0) dp=Shard(0)"},
           // One that is new stands where mesh order puts it.
           {"tp=Shard(0)", "dp=Shard(0)", "dp=Shard(0) cp=Replicate tp=Shard(0)"},
           {"dp=Shard(0) tp=Shard(0)", "cp=Shard(0)", "dp=Shard(0) cp=Shard(0) tp=Shard(0)"},
           {"tp=Shard(0) dp=Shard(0)", "cp=Shard(0)", "cp=Shard(0) tp=Shard(0) dp=Shard(0)"},
           // Those named stand in the order of the text.
           {"dp=Shard(0) tp=Shard(0)", "tp=Shard(0) dp=Shard(0)", "tp=Shard(0) cp=Replicate dp=Shard(0)"},
           {"dp=Shard(0) cp=Shard(0) tp=Shard(0)", "tp=Shard(0) dp=Shard(0)", "cp=Shard(0) tp=Shard(0) dp=Shard(0)"},
           {"tp=Shard(0)", "cp=Shard(0) dp=Shard(0)", "cp=Shard(0) dp=Shard(0) tp=Shard(0)"},
           {"", "tp=Shard(0) *=Shard(0)", "tp=Shard(0) dp=Shard(0) cp=Shard(0)"},
           {"tp=Shard(0) dp=Shard(0)", "*=Shard(0) cp=Shard(0)", "dp=Shard(0) tp=Shard(0) cp=Shard(0)"},
       }) {
    INFO(c.from << ", " << c.target);
    CHECK(to_string(parse_target(c.target, mesh, 2, parse_layout(c.from, mesh, 2)), mesh) == c.to);
  }
  CHECK(parse_target("", MeshShape(), 2, {}) == Layout());
  CHECK(parse_layout("*=Shard(1) cp=Replicate", mesh, 2) == Layout{Shard(1), Replicate(), Shard(1)});
  CHECK(parse_layout("dp=Shard(0) cp=Shard(0) tp=Shard(0) *=Replicate", mesh, 2) ==
        Layout{Shard(0), Shard(0), Shard(0)});
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
  for (const char* large : {"f32[281474976710656]", "f32[16777216,0,16777216]"})  // 2^48 elements
    CHECK(text(large, mesh) == fmt::format("{} dp=Replicate tp=Replicate", large));
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    CHECK(parse_spec(fmt::format("{}[2]", name(t)), mesh).dtype == t);
}
