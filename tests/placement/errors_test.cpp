// Law 9: every error of layouts, meshes, notation and pictures, by its text.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <regex>

#include "placement/visualize.h"

using namespace dtensor;

namespace {

struct Case {
  std::function<void()> call;
  std::string message;
};

std::vector<Case> all_errors() {
  const MeshShape mesh = MeshShape::parse("dp=2,tp=4");
  std::vector<Case> all;
  auto add = [&](std::function<void()> call, std::string message) { all.push_back({std::move(call), message}); };

  auto shape = [&](std::initializer_list<int64_t> sizes, const char* message) {
    add([sizes = std::vector(sizes)] { Shape(sizes.begin(), sizes.end()); }, message);
  };
  shape({1, 1, 1, 1, 1, 1, 1, 1, 1}, "[Shape] more than 8 dimensions");

  auto mesh_text = [&](std::string text, std::string message) { add([=] { MeshShape::parse(text); }, message); };
  for (const char* text :
       {"", "dp", "dp=", "dp=2,", ",dp=2", "dp=two", "dp=2x", "dp=2,,tp=2", "dp=99999999999", "=", "dp=2,tp"})
    mesh_text(text, fmt::format("[mesh] \"{}\" is no mesh: write axes and sizes as in dp=2,tp=4", text));
  mesh_text("dp=0", "[MeshShape] axis \"dp\" has size 0; a size is at least 1");
  mesh_text("dp=2,tp=-4", "[MeshShape] axis \"tp\" has size -4; a size is at least 1");
  mesh_text("dp=2,dp=2", "[MeshShape] axis \"dp\" is named twice");
  for (const char* name : {"", " tp", "d(p", "d\tp", "d-p", "d\"p", "d\u00e9"})
    mesh_text(fmt::format("{}=2", name),
              fmt::format("[MeshShape] \"{}\" is no axis name: use letters, digits and _", name));
  mesh_text("a=1,b=1,c=1,d=1,e=1,f=1,g=1", "[MeshShape] 7 axes; at most 6 are supported");
  mesh_text("a=65536,b=32768", "[MeshShape] a mesh of more than 2^31 ranks");
  mesh_text("a=65536,b=65536,c=65536,d=65536,e=65536", "[MeshShape] a mesh of more than 2^31 ranks");
  add([] { MeshShape({2, 2}, {"dp"}); }, "[MeshShape] 2 sizes and 1 names");
  add([] { MeshShape({}, {}); }, "[MeshShape] a mesh without axes: one rank is an axis of size 1, as in dp=1");
  add([=] { mesh.axis("pp"); }, "[MeshShape] the mesh has no axis \"pp\": it is dp=2,tp=4");
  add([=] { mesh.axis("", "plan"); }, "[plan] the mesh has no axis \"\": it is dp=2,tp=4");

  add(
      [] {
        Layout{Partial(), Partial(Reduce::max)};
      },
      "[Layout] Partial(sum) and Partial(max) do not mix: reduce one of them first");
  add(
      [] {
        Layout{Partial(), Replicate()}.with(1, Partial(Reduce::avg));
      },
      "[Layout] Partial(sum) and Partial(avg) do not mix: reduce one of them first");
  for (int dim : {-1, -257, 8, 256, 257}) {
    std::string message = dim < 0 ? fmt::format("[Layout] Shard({}) needs a tensor's dimensions: use normalize()", dim)
                                  : fmt::format("[Layout] Shard({}): a tensor has at most 8 dimensions, 0 to 7", dim);
    add([=] { Layout{Shard(dim)}; }, message);
    add([=] { Layout{}.with(0, Shard(dim)); }, message);
    add([=] { Layout{}.with_innermost(0, dim); }, message);
  }
  add([] { Layout(std::span<const Placement>(std::vector<Placement>(7))); },
      "[Layout] 7 placements; a mesh has at most 6 axes");
  for (const Layout& l : {Layout{Replicate(), Replicate(), Shard(0)}, Layout{Replicate(), Replicate(), Partial()}})
    add([=] { strip_narrow_axes(mesh, l); },
        "[Layout] the layout has placements on more axes than the mesh has (dp=2,tp=4)");
  auto normal = [&](int dims, std::vector<Placement> p, const char* message) {
    add([=] { normalize("f", mesh, dims, p); }, message);
  };
  for (int dim : {256, 258, -257, -258})
    add([=] { normalize("f", mesh, 2, std::vector{Shard(dim)}); },
        fmt::format("[f] dimension {} is out of range for 2 dimensions", dim));
  for (int64_t dim : {int64_t(1) << 32, -(int64_t(1) << 33)})
    add([=] { Shard(dim); }, fmt::format("[Shard] a tensor has no dimension {}", dim));
  add([=] { mesh.on_nodes(-1); }, "[MeshShape::on_nodes] -1 ranks per node; write 0 where one node has all ranks");
  normal(2, {Shard(2)}, "[f] dimension 2 is out of range for 2 dimensions");
  normal(2, {Replicate(), Shard(-3)}, "[f] dimension -3 is out of range for 2 dimensions");
  normal(0, {Shard(0)}, "[f] dimension 0 is out of range for 0 dimensions");
  normal(2, {Replicate(), Replicate(), Shard(0)}, "[f] 3 placements on a mesh of 2 axes (dp=2,tp=4)");

  for (const char* text : {"", "R", "Shard", "Shard()", "Shard(a)", "Shard(1", "Shard(8)", "Shard(-9)", "Shard(1)x",
                           "Shard(1 )", "Shard(99999999999999999999)", "Shard[1]", "Partial(mean)", "Partial(sum",
                           "partial", "replicate", "Replicate(0)"})
    add([=] { parse_placement(text, "plan"); },
        fmt::format("[plan] \"{}\" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max)",
                    text));
  auto layout = [&](const char* text, const char* message) { add([=] { parse_layout(text, mesh, 2); }, message); };
  layout("pp=Shard(0)", "[parse_layout] the mesh has no axis \"pp\": it is dp=2,tp=4");
  layout("=Shard(0)", "[parse_layout] the mesh has no axis \"\": it is dp=2,tp=4");
  layout("Shard(0)", "[parse_layout] \"Shard(0)\" is no axis and placement: write as in tp=Shard(0)");
  layout("dp=Shard(0) dp=Replicate", "[parse_layout] axis \"dp\" is named twice");
  layout("*=Replicate tp=Replicate *=Shard(0)", "[parse_layout] axis \"*\" is named twice");
  layout("t*=Replicate", "[parse_layout] the mesh has no axis \"t*\": it is dp=2,tp=4");
  layout("dp=Shard(2)", "[parse_layout] dimension 2 is out of range for 2 dimensions");
  layout("dp=Shard(-3)", "[parse_layout] dimension -3 is out of range for 2 dimensions");
  layout("dp=",
         "[parse_layout] \"\" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max)");
  layout("dp=Partial(sum) tp=Partial(min)",
         "[Layout] Partial(sum) and Partial(min) do not mix: reduce one of them first");
  Layout from{Partial(), Shard(0)};
  auto target = [&](const char* text, const char* message) {
    add([=] { parse_target(text, mesh, 2, from); }, message);
  };
  for (const char* text : {"", "  "})
    add([=] { parse_target(text, mesh, 2, from); },
        fmt::format("[redistribute] \"{}\" names no axis of dp=2,tp=4: write as in dp=Replicate", text));
  target("pp=Shard(0)", "[redistribute] the mesh has no axis \"pp\": it is dp=2,tp=4");
  target("Replicate", "[redistribute] \"Replicate\" is no axis and placement: write as in tp=Shard(0)");
  target("tp=Shard(0) tp=Replicate", "[redistribute] axis \"tp\" is named twice");
  target("*=Shard(2)", "[redistribute] dimension 2 is out of range for 2 dimensions");
  target(
      "*=Shrd(0)",
      "[redistribute] \"Shrd(0)\" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max)");
  target("tp=Partial(max)", "[Layout] Partial(sum) and Partial(max) do not mix: reduce one of them first");
  add([=] { from.with(mesh, "pp", Replicate()); }, "[Layout::with] the mesh has no axis \"pp\": it is dp=2,tp=4");
  const MeshShape named = MeshShape::parse("data=2,tensor=4");
  add([=] { from.with(named, "tensro", Replicate()); },
      "[Layout::with] the mesh has no axis \"tensro\": it is data=2,tensor=4; the nearest is \"tensor\"");
  auto spec = [&](std::string text, std::string message) { add([=] { parse_spec(text, mesh); }, message); };
  for (const char* text :
       {"", " ", "f32", "f32[", "f32]", "f32[8", "f32[8,]", "f32[,8]", "f32[8,,4]", "f32[-1]", "f32[a]", "f32[8 ,4]",
        "f16[8]", "[8]", "f32[8]x", "f32[99999999999999999999]", "f32[8][4]", "float[2] dp=Shard(0)"})
    spec(text, fmt::format("[parse_spec] \"{}\" is no tensor: write as in f32[8,16] dp=Shard(0) "
                           "(dtypes f32 f64 bf16 i64 bool)",
                           text));
  spec("f32[1,1,1,1,1,1,1,1,1]", "[parse_spec] \"f32[1,1,1,1,1,1,1,1,1]\" has more than 8 dimensions");
  for (const char* text : {"f32[281474976710657]", "f32[16777216,16777217]", "f32[0,281474976710657]"})
    spec(text, fmt::format("[parse_spec] \"{}\" has more than 2^48 elements", text));

  add(
      [=] {
        visualize({DType::f32, {5, 8}, {Replicate(), Shard(2)}}, mesh);
      },
      "[visualize] f32[5,8] dp=Replicate tp=Shard(2) has no dimension 2");
  return all;
}

}  // namespace

TEST_CASE("law 9: bad input is an error that shows it") {
  for (const Case& c : all_errors()) {
    INFO(c.message);
    CHECK_THROWS_WITH(c.call(), Catch::Matchers::Equals(c.message));
  }
}
