#include "nn/foresight/hardware.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "placement/error.h"

using namespace dtensor;
using namespace dtensor::nn;
using Catch::Contains;
using Json = nlohmann::ordered_json;

namespace {

std::string error_of(const Json& j) {
  try {
    Hardware::from_json(j);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("hardware is found by name, with and without .json, and is written as it is read") {
  for (const char* name : {"a100", "h100", "h200", "b200"}) {
    Hardware h = Hardware::load(name);
    CHECK(h.name == Hardware::load(std::string(name) + ".json").name);
    CHECK(Hardware::from_json(h.to_json()).to_json() == h.to_json());
    CHECK(h.node_devices == 8);
  }
  CHECK_THROWS_WITH(Hardware::load("h900"), Contains("[Hardware] \"h900\" is neither a file nor one of a100, b200, "
                                                     "h100, h200; dtensor_calibrate writes this machine's"));
}

TEST_CASE("each field of a hardware file that is wrong is named with its value") {
  const Json good = Hardware::load("h100").to_json();
  struct Case {
    std::string path;
    Json value;
    std::string error;
  };
  const Case cases[] = {
      {"/name", 3, "[Hardware] name is 3, not a text"},
      {"/memory_byte", 3, "[Hardware] there is no field \"memory_byte\"; the nearest is \"memory_bytes\""},
      {"/memory_bytes", 0, "[Hardware] memory_bytes is 0, not a number above 0"},
      {"/bytes_per_second", "fast", "[Hardware] bytes_per_second is \"fast\", not a number above 0"},
      {"/flops_per_second", Json::object(), "[Hardware] flops_per_second is empty: give fp32, bf16 or fp64"},
      {"/flops_per_second/bf16", -1, "[Hardware] flops_per_second.bf16 is -1, not a number above 0"},
      {"/product_shares", Json::object(), "[Hardware] product_shares is {}; give shares by the least size"},
      {"/product_shares", {{"big", 0.5}}, "[Hardware] product_shares.big is 0.5; a size, and a share from 0 to 1"},
      {"/attention_share", 1.5, "[Hardware] attention_share is 1.5, more than all"},
      {"/overlaps", 1, "[Hardware] overlaps is 1, not true or false"},
      {"/host_waits", "no", "[Hardware] host_waits is \"no\", not true or false"},
      {"/slowdowns", 1, "[Hardware] slowdowns is 1, not an object"},
      {"/slowdowns", {{"two", 2}}, "[Hardware] slowdowns.two is 2; a number of ranks, and a factor above 0"},
      {"/slowdowns", {{"2", 0}}, "[Hardware] slowdowns.2 is 0; a number of ranks, and a factor above 0"},
      {"/waits", {{"2", -1}}, "[Hardware] waits.2 is -1; a number of ranks, and seconds from 0 on"},
      {"/ops", 1, "[Hardware] ops is 1, not an object"},
      {"/inside_node", 1, "[Hardware] inside_node is 1, not an object"},
      {"/host_link", 1, "[Hardware] host_link is 1, not an object"},
      {"/host_bytes_per_second", 0, "[Hardware] host_bytes_per_second is 0, not a number above 0"},
      {"/inside_node", Json::object(), "[Hardware] \"inside_node.seconds\" is missing"},
  };
  for (const Case& c : cases) {
    Json j = good;
    j[Json::json_pointer(c.path)] = c.value;
    CHECK_THAT(error_of(j), Contains(c.error));
  }
  CHECK_THROWS_WITH(Hardware::load("h100").peak(DType::i64), Contains("says no flops_per_second of i64: add it"));
}

TEST_CASE("a group's nodes follow from the order of ranks, the last axis fastest") {
  Hardware h = Hardware::load("h100");
  MeshShape mesh = MeshShape::parse("dp=128,cp=2,tp=8");
  auto nodes = [&](AxisSet axes) { return h.peers(mesh, axes).nodes; };
  CHECK(nodes(axis_bit(2)) == 1);    // tp
  CHECK(nodes(axis_bit(1)) == 2);    // cp: 8 apart
  CHECK(nodes(axis_bit(0)) == 128);  // dp
  CHECK(nodes(axis_bit(0) | axis_bit(1)) == 256);
  CHECK(nodes(mesh.all()) == 256);
  MeshShape small = MeshShape::parse("dp=4,tp=2");
  CHECK(h.peers(small, small.all()).nodes == 1);
  CHECK(h.peers(MeshShape::parse("dp=16"), 1).nodes == 2);
  CHECK(h.peers(MeshShape::parse("dp=1,tp=2"), 1).ranks == 1);
}

TEST_CASE("a collective between nodes uses a link of each rank that is there, inside a node the inner links alone") {
  Hardware h = Hardware::load("h100");
  int64_t bytes = 1 << 30;
  CHECK(h.collective(bytes, {1, 1}) == 0);
  CHECK(h.collective(bytes, {8, 1}) == Approx(double(bytes) / h.inside.per_second).epsilon(0.01));
  CHECK(h.collective(bytes, {16, 16}) == Approx(double(bytes) / h.between.per_second).epsilon(0.01));
  CHECK(h.collective(bytes, {16, 2}) == Approx(double(bytes) / h.inside.per_second).epsilon(0.05));  // 8 links
  CHECK(h.collective(bytes, {8, 2}) == Approx(double(bytes) / (4 * h.between.per_second)).epsilon(0.01));
}

TEST_CASE("a product is the slower the less its least size") {
  Hardware h = Hardware::load("h100");
  double before = 1e9;
  for (int64_t least : {1, 16, 64, 100, 256, 1000, 4096, 8192, 100000}) {
    double seconds = h.product("linear", DType::bf16, 1e12, least);
    CHECK(seconds <= before);
    before = seconds;
  }
}

TEST_CASE("attention takes its products' time, and what was measured of its scores besides") {
  Hardware h = Hardware::load("h100");
  double products = 1e12 / (h.peak(DType::bf16) * h.attention_share);
  CHECK(h.attention("attention", DType::bf16, 1e12, 1e9, false) == Approx(products + h.call_seconds));
  h.ops["attention"] = {1e-4, 1e10};
  CHECK(h.attention("attention", DType::bf16, 1e12, 1e9, false) == Approx(products + 1e-4 + 0.1));
  CHECK(h.attention("attention", DType::bf16, 1e12, 2e9, false) == Approx(products + 1e-4 + 0.2));
}

TEST_CASE("ranks that share cores slow each other down, by the cores or as it was measured") {
  Hardware h;
  CHECK(h.slowdown(8) == 1);
  h.cores = 2;
  for (auto [ranks, factor] : {std::pair(1, 1.0), {2, 1.0}, {3, 1.5}, {8, 4.0}}) CHECK(h.slowdown(ranks) == factor);
  h.slowdowns = {{2, 1.2}, {4, 2.2}};  // between two on a line, beyond the last in proportion
  for (auto [ranks, factor] : {std::pair(1, 1.2), {2, 1.2}, {3, 1.7}, {4, 2.2}, {8, 4.4}})
    CHECK(h.slowdown(ranks) == Approx(factor));
  CHECK(h.wait(4) == 0);
  h.waits = {{2, 1e-4}, {4, 3e-4}};
  CHECK(h.wait(3) == Approx(2e-4));
}
