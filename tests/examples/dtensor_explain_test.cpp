// dtensor_explain, as text and as JSON.
#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

std::string text_of(const Words& arguments) {
  Result r = run("dtensor_explain", arguments);
  CAPTURE(arguments, r.err);
  REQUIRE(r.code == 0);
  REQUIRE(r.err.empty());
  return r.out;
}
Json json_of(const Words& arguments) { return Json::parse(text_of(arguments + Words{"--json"})); }

Words keys(const Json& j) {
  Words list;
  for (const auto& [key, value] : j.items()) list.push_back(key);
  return list;
}

}  // namespace

TEST_CASE("explain layout: each rank's shape and offset") {
  Words arguments = {"--mesh", "dp=2,tp=4", "layout", "f32[5,16] dp=Shard(0) tp=Replicate"};
  CHECK(text_of(arguments) ==
        "f32[5,16] dp=Shard(0) tp=Replicate\n"
        "  rank 0   dp=0 tp=0        [3,16]       at [0,0]\n"
        "  rank 1   dp=0 tp=1        [3,16]       at [0,0]\n"
        "  rank 2   dp=0 tp=2        [3,16]       at [0,0]\n"
        "  rank 3   dp=0 tp=3        [3,16]       at [0,0]\n"
        "  rank 4   dp=1 tp=0        [2,16]       at [3,0]\n"
        "  rank 5   dp=1 tp=1        [2,16]       at [3,0]\n"
        "  rank 6   dp=1 tp=2        [2,16]       at [3,0]\n"
        "  rank 7   dp=1 tp=3        [2,16]       at [3,0]\n");
  Json j = json_of(arguments);
  CHECK(keys(j) == Words{"layout", "shape", "placements", "ranks"});
  CHECK(j["layout"] == "f32[5,16] dp=Shard(0) tp=Replicate");
  CHECK(j["shape"] == Json({5, 16}));
  CHECK(j["placements"] == Json({{"dp", "Shard(0)"}, {"tp", "Replicate"}}));
  REQUIRE(j["ranks"].size() == 8);
  CHECK(j["ranks"][6] ==
        Json({{"rank", 6}, {"coordinate", {{"dp", 1}, {"tp", 2}}}, {"shape", {2, 16}}, {"offset", {3, 0}}}));
}

TEST_CASE("explain layout: uneven and empty parts, and the order of axes") {
  auto sizes = [](const std::string& mesh, const std::string& tensor) {
    std::vector<int> list;
    int64_t next = 0;
    Json j = json_of({"--mesh", mesh, "layout", tensor});
    for (const Json& r : j["ranks"]) {
      list.push_back(r["shape"][0]);
      if (!j.contains("order")) CHECK(r["offset"][0] == next);  // in mesh order one part follows the other
      next += list.back();
    }
    return list;
  };
  CHECK(sizes("tp=4", "f32[5] tp=Shard(0)") == std::vector{2, 2, 1, 0});
  CHECK(sizes("dp=4,tp=2", "f32[18] dp=Shard(0) tp=Shard(0)") == std::vector{3, 2, 3, 2, 3, 2, 2, 1});
  // tp outermost: 9 and 9, each split by dp into 3, 3, 3, 0
  CHECK(sizes("dp=4,tp=2", "f32[18] tp=Shard(0) dp=Shard(0)") == std::vector{3, 3, 3, 3, 3, 3, 0, 0});
  Json j = json_of({"--mesh", "dp=4,tp=2", "layout", "f32[18] tp=Shard(0) dp=Shard(0)"});
  CHECK(j["order"] == Json({{"0", {"tp", "dp"}}}));
  CHECK(j["layout"] == "f32[18] tp=Shard(0) dp=Shard(0)");
  CHECK(j["ranks"][1]["offset"] == Json({9}));
  CHECK(json_of({"--mesh", "tp=2", "layout", "bf16[4,6] tp=Shard(-1)"})["layout"] == "bf16[4,6] tp=Shard(1)");
  CHECK_THAT(text_of({"--mesh", "tp=2", "layout", "f32[4] tp=Partial"}),
             Contains("f32[4] tp=Partial(sum)\n") && Contains("(one contribution)"));
}

TEST_CASE("explain visualize: a picture of who holds what") {
  Words arguments = {"--mesh", "dp=2,tp=2", "visualize", "f32[3,4] dp=Shard(0) tp=Shard(1)"};
  const std::string picture =
      "      0:2   2:4\n"
      "    +-----+-----+\n"
      "0:2 |  0  |  1  |\n"
      "    +-----+-----+\n"
      "2:3 |  2  |  3  |\n"
      "    +-----+-----+\n";
  CHECK(text_of(arguments) == "f32[3,4] dp=Shard(0) tp=Shard(1)\n" + picture);
  CHECK(json_of(arguments) == Json({{"layout", "f32[3,4] dp=Shard(0) tp=Shard(1)"}, {"picture", picture}}));
}

TEST_CASE("explain redistribute: the steps and their bytes") {
  Words arguments = {"--mesh", "tp=4", "redistribute", "f32[8,16] tp=Shard(0)", "tp=Replicate"};
  CHECK(text_of(arguments) ==
        "f32[8,16] tp=Shard(0) -> tp=Replicate\n"
        "  1. all_gather over tp, 384 bytes  -> tp=Replicate\n"
        "  384 bytes received by one rank\n");
  Json gather = {
      {"collective", "all_gather"}, {"axes", {"tp"}}, {"from", "tp=Shard(0)"}, {"to", "tp=Replicate"}, {"bytes", 384}};
  CHECK(json_of(arguments) == Json({{"from", "f32[8,16] tp=Shard(0)"},
                                    {"to", "tp=Replicate"},
                                    {"steps", Json::array({gather})},
                                    {"bytes", 384}}));

  auto only = [](const std::string& mesh, const std::string& from, const std::string& to) {
    Json j = json_of({"--mesh", mesh, "redistribute", from, to});
    std::string list;
    for (const Json& s : j["steps"]) list += s["collective"].get<std::string>() + " ";
    return list + std::to_string(j["bytes"].get<int>());
  };
  CHECK(only("tp=4", "f32[8,16] tp=Shard(0)", "tp=Shard(0)") == "0");
  CHECK(only("tp=4", "f32[8,16]", "tp=Shard(1)") == "local 0");
  CHECK(only("tp=4", "f32[8,16] tp=Partial", "tp=Replicate") == "all_reduce 768");     // 2 * 3 parts of 128 bytes
  CHECK(only("tp=4", "f32[8,16] tp=Partial", "tp=Shard(0)") == "reduce_scatter 384");  // 3 of them
  CHECK(only("tp=4", "f32[8,16] tp=Shard(0)", "tp=Shard(1)") == "all_to_all 96");      // 3 of the 4 quarters of a part
  CHECK(only("tp=4", "f32[5] tp=Shard(0)", "tp=Replicate") == "all_gather 20");        // to the rank that has nothing
  // Axes that are not named stay as they are, and * names them.
  CHECK(only("dp=2,tp=4", "f32[8,16] dp=Shard(0) tp=Shard(1)", "tp=Replicate") == "all_gather 192");  // 3 of 64 bytes
  CHECK(only("dp=2,tp=4", "f32[8,16] dp=Shard(0) tp=Shard(1)", "tp=Replicate *=Replicate") == "all_gather 448");
  // The two axes change places: ranks 0 and 3 keep what they have, 1 and 2 swap their quarters.
  CHECK(only("x=2,y=2", "f32[4,4] x=Shard(0) y=Shard(1)", "x=Shard(1) y=Shard(0)") == "permute 16");
}

TEST_CASE("explain redistribute: axes change places, on two dimensions and on one") {
  auto only = [](const std::string& mesh, const std::string& from, const std::string& to) {
    Json j = json_of({"--mesh", mesh, "redistribute", from, to});
    REQUIRE(j["steps"].size() == 1);
    return j["steps"][0]["collective"].get<std::string>() + " over " + j["steps"][0]["axes"].dump() + " " +
           j["bytes"].dump();
  };
  CHECK(only("x=2,y=2", "f32[8,8] x=Shard(0) y=Shard(1)", "x=Shard(1) y=Shard(0)") == R"(permute over ["x","y"] 64)");
  CHECK(only("dp=2,tp=2", "f32[16] tp=Shard(0) dp=Shard(0)", "dp=Shard(0) tp=Shard(0)") ==
        R"(permute over ["dp","tp"] 16)");
}

TEST_CASE("explain op: matmul keeps a sharded inner dimension Partial") {
  Words arguments = {"--mesh", "tp=4", "op", "matmul", "f32[8,16] tp=Shard(1)", "f32[16,4] tp=Shard(0)"};
  CHECK(text_of(arguments) ==
        "matmul\n"
        "  input 0   f32[8,16] tp=Shard(1)\n"
        "  input 1   f32[16,4] tp=Shard(0)\n"
        "  output    f32[8,4] tp=Partial(sum)\n"
        "  0 bytes received by one rank: the fewest of 4 ways\n"
        "  rejected  288 bytes: tp=Shard(0), tp=Replicate -> tp=Shard(0)\n"
        "            432 bytes: tp=Replicate, tp=Shard(1) -> tp=Shard(1)\n"
        "            576 bytes: tp=Replicate, tp=Replicate -> tp=Replicate\n");
  Json j = json_of(arguments);
  CHECK(keys(j) == Words{"op", "inputs", "outputs", "bytes", "alternatives"});
  CHECK(j["op"] == "matmul");
  REQUIRE(j["inputs"].size() == 2);
  CHECK(j["inputs"][1] ==
        Json({{"from", "f32[16,4] tp=Shard(0)"}, {"to", "f32[16,4] tp=Shard(0)"}, {"steps", Json::array()}}));
  CHECK(j["outputs"] ==
        Json::array(
            {{{"layout", "f32[8,4] tp=Partial(sum)"}, {"shape", {8, 4}}, {"placements", {{"tp", "Partial(sum)"}}}}}));
  CHECK(j["bytes"] == 0);
  REQUIRE(j["alternatives"].size() == 3);
  CHECK(j["alternatives"][0]["bytes"] == 288);
}

TEST_CASE("explain op: layouts of other ops") {
  auto output = [](const Words& arguments) {
    Json j = json_of(Words{"op"} + arguments);
    return j["outputs"][0]["layout"].get<std::string>() + ", " + std::to_string(j["bytes"].get<int>()) + " bytes";
  };
  // Rank 0 keeps the replicated operand and the others take zeros: it counts once.
  CHECK(output({"--mesh", "tp=2", "add", "f32[4] tp=Partial", "f32[4]"}) == "f32[4] tp=Partial(sum), 0 bytes");
  // A product is linear in each but not in both: one of them is reduced.
  CHECK(output({"--mesh", "tp=2", "mul", "f32[4] tp=Partial", "f32[4] tp=Partial"}) ==
        "f32[4] tp=Partial(sum), 16 bytes");
  CHECK(output({"--mesh", "tp=4", "view", "f32[8,16] tp=Shard(1)", "shape=8,4,4"}) ==
        "f32[8,4,4] tp=Shard(1), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "reshape", "f32[8,6] tp=Shard(1)", "shape=8,3,2"}) ==
        "f32[8,3,2] tp=Shard(0), 48 bytes");
  CHECK(output({"--mesh", "tp=3", "embedding", "i64[4]", "f32[10,6] tp=Shard(0)"}) ==
        "f32[4,6] tp=Partial(sum), 0 bytes");
  CHECK(output({"--mesh", "tp=3", "embedding", "i64[5] tp=Shard(0)", "f32[10,6]"}) == "f32[5,6] tp=Shard(0), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "linear", "f32[4,6] tp=Shard(-1)", "f32[8,6] tp=Shard(1)"}) ==
        "f32[4,8] tp=Partial(sum), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "linear", "f32[4,6]", "f32[8,6] tp=Shard(0)", "f32[8] tp=Shard(0)"}) ==
        "f32[4,8] tp=Shard(1), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "transpose", "f32[4,6] tp=Shard(1)", "dim0=0", "dim1=1"}) ==
        "f32[6,4] tp=Shard(0), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "permute", "f32[4,6,8] tp=Shard(1)", "dims=2,0,1"}) ==
        "f32[8,4,6] tp=Shard(2), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "sum", "f32[4,6] tp=Shard(1)", "dim=-1"}) == "f32[4] tp=Partial(sum), 0 bytes");
  CHECK(output({"--mesh", "tp=2", "amax", "f32[4,6] tp=Shard(1)", "dim=1"}) == "f32[4] tp=Partial(max), 0 bytes");
}

TEST_CASE("explain op: of a function of several ops, each op and each collective") {
  Words arguments = {
      "--mesh", "dp=2,tp=4", "op", "cross_entropy", "f32[8,100] dp=Shard(0) tp=Shard(1)", "i64[8] dp=Shard(0)"};
  CHECK_THAT(text_of(arguments),
             Contains("  amax                   f32[8] dp=Shard(0) tp=Partial(max)\n"
                      "            all_reduce over tp, 24 bytes  -> dp=Shard(0) tp=Replicate, for cross_entropy\n") &&
                 Contains("collectives in 3 launches\n"));
  Json j = json_of(arguments);
  CHECK(keys(j) == Words{"op", "inputs", "outputs", "bytes", "alternatives", "calls"});
  CHECK(j["inputs"][0]["steps"].empty());
  CHECK(j["outputs"][0]["layout"] == "f32[] dp=Replicate tp=Replicate");
  int64_t bytes = 0;
  for (const Json& c : j["calls"]) bytes += c["bytes"].get<int64_t>();
  CHECK(j["bytes"] == bytes);
  CHECK(j["calls"][0]["op"] == "amax");
  CHECK(j["calls"][0]["alternatives"].size() == 5);
  CHECK(j["calls"][1]["op"] == "redistribute");
  CHECK(j["calls"][1]["reason"] == "cross_entropy");
  CHECK(j["calls"][1]["inputs"][0]["steps"][0]["collective"] == "all_reduce");
  // A reduction and a view: the alternatives are those of the reduction.
  CHECK(json_of({"--mesh", "tp=2", "op", "sum", "f32[4,6] tp=Shard(1)", "dim=1", "keepdim=true"})["alternatives"]
            .size() == 2);
  // An absent operand is `none`.
  CHECK(json_of({"--mesh", "tp=2", "op", "linear", "f32[4,6]", "f32[8,6]", "none"})["outputs"][0]["layout"] ==
        "f32[4,8] tp=Replicate");
}

TEST_CASE("explain op: norms, softmax, losses and searches over a sharded dimension take small collectives") {
  struct Case {
    Words arguments;
    std::string output, collectives;
  };
  const Case cases[] = {
      {{"layer_norm", "f32[8,16] tp=Shard(1)", "f32[16] tp=Shard(0)", "f32[16] tp=Shard(0)", "normalized_shape=16"},
       "f32[8,16] tp=Shard(1)",
       "all_reduce 48 all_reduce 48"},
      {{"rms_norm", "f32[8,16] tp=Shard(1)", "f32[16] tp=Shard(0)"}, "f32[8,16] tp=Shard(1)", "all_reduce 48"},
      {{"softmax", "f32[8,16] tp=Shard(1)", "dim=-1"}, "f32[8,16] tp=Shard(1)", "all_reduce 48 all_reduce 48"},
      {{"cross_entropy", "f32[8,16] tp=Shard(1)", "i64[8]"},
       "f32[] tp=Replicate",
       "all_reduce 48 all_reduce 48 all_reduce 48"},
      {{"argmax", "f32[8,16] tp=Shard(1)", "dim=1"}, "i64[8] tp=Replicate", "all_reduce 48 all_reduce 96"},
      {{"var", "f32[8,16] tp=Shard(1)", "dim=1"}, "f32[8] tp=Replicate", "all_reduce 48 all_reduce 48"},
      {{"einsum", "f32[8,16] tp=Shard(1)", "f32[16,3] tp=Shard(0)", "equation=ij,jk->ik"},
       "f32[8,3] tp=Partial(sum)",
       ""},
      {{"neg", "f32[8] tp=Partial(max)"}, "f32[8] tp=Partial(min)", ""},
      {{"cat", "f32[8] tp=Partial", "f32[4]", "dim=0"}, "f32[12] tp=Partial(sum)", ""},
      {{"gather", "f32[10,6] tp=Shard(0)", "i64[4,6]", "dim=0"}, "f32[4,6] tp=Partial(sum)", ""},
  };
  for (const Case& c : cases) {
    Json j = json_of(Words{"--mesh", "tp=4", "op"} + c.arguments);
    std::string collectives;
    auto add = [&](const Json& inputs) {
      for (const Json& in : inputs)
        for (const Json& s : in["steps"])
          if (s["collective"] != "local")
            collectives +=
                (collectives.empty() ? "" : " ") + s["collective"].get<std::string>() + " " + s["bytes"].dump();
    };
    if (j.contains("calls"))
      for (const Json& call : j["calls"]) add(call["inputs"]);
    else
      add(j["inputs"]);
    INFO(c.arguments[0]);
    CHECK(j["outputs"][0]["layout"] == c.output);
    CHECK(collectives == c.collectives);
  }
}

TEST_CASE("explain ops: every function with its arguments") {
  CHECK_THAT(text_of({"ops"}), Contains("matmul(x, y)\n"));
  Json j = json_of({"ops"});
  CHECK(j.size() > 100);
  CHECK(keys(j[0]) == Words{"name", "signature"});
}

TEST_CASE("explain: options may stand anywhere") {
  std::string expected = text_of({"--mesh", "tp=2", "op", "sum", "f32[4,6] tp=Shard(1)", "dim=-1"});
  CHECK(text_of({"op", "sum", "f32[4,6] tp=Shard(1)", "dim=-1", "--mesh", "tp=2"}) == expected);
  CHECK(text_of({"op", "--mesh=tp=2", "sum", "f32[4,6] tp=Shard(1)", "dim=-1"}) == expected);
  std::string json = text_of({"--json", "--mesh", "tp=2", "layout", "f32[4] tp=Shard(0)"});
  CHECK(text_of({"layout", "--json", "f32[4] tp=Shard(0)", "--mesh", "tp=2"}) == json);
  Result help = run("dtensor_explain", {"--help"});
  CHECK(help.code == 0);
  CHECK_THAT(help.out, Contains("--mesh") && Contains("--json"));
}

TEST_CASE("explain: bad input is one line on standard error and exit code 2") {
  struct Case {
    Words arguments;
    std::string error;
  };
  const Case cases[] = {
      {{"layout", "f32[4]"}, "[dtensor_explain] --mesh is required, as in --mesh dp=2,tp=4"},
      {{"--mesh", "tp=2"}, "command is required; see --help"},
      {{"--mesh", "tp=2", "lay", "f32[4]"},
       "command: lay not in {layout,visualize,redistribute,op,ops,plan}; see --help"},
      {{"--mesh", "tp=2", "layout", "f32[4]", "--jsn"},
       "there is no option --jsn; the nearest is \"--json\"; see --help"},
      {{"--mesh", "tp", "layout", "f32[4]"}, R"([mesh] "tp" is no mesh: write axes and sizes as in dp=2,tp=4)"},
      {{"--mesh", "tp=2", "layout"},
       R"_([dtensor_explain] layout takes one tensor, as in layout "f32[5,16] tp=Shard(0)")_"},
      {{"--mesh", "tp=2", "visualize"},
       R"_([dtensor_explain] visualize takes one tensor, as in visualize "f32[5,16] tp=Shard(0)")_"},
      {{"--mesh", "tp=2", "redistribute", "f32[4]"},
       R"_([dtensor_explain] redistribute takes a tensor and a layout, as in redistribute "f32[8,16] tp=Shard(0)" "tp=Replicate")_"},
      {{"--mesh", "tp=2", "op"},
       R"([dtensor_explain] op takes a name and its operands, as in op matmul "f32[8,16]" "f32[16,4]"; `dtensor_explain ops` lists the names)"},
      {{"--mesh", "tp=2", "layout", "f32[4,6] tpp=Shard(1)"},
       R"([parse_layout] the mesh has no axis "tpp": it is tp=2)"},
      {{"--mesh", "tp=2", "layout", "f32[4,6] tp=Shard(2)"},
       "[parse_layout] dimension 2 is out of range for 2 dimensions"},
      {{"--mesh", "tp=2", "layout", "f32[4,6] tp=Shrd(1)"},
       R"_([parse_layout] "Shrd(1)" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max))_"},
      {{"--mesh", "tp=2", "layout", "f31[4,6]"},
       R"([parse_spec] "f31[4,6]" is no tensor: write as in f32[8,16] dp=Shard(0) (dtypes f32 f64 bf16 i64 bool))"},
      {{"--mesh", "tp=2", "op", "matmull", "f32[4,6]", "f32[6,4]"},
       R"([call_function] there is no function "matmull"; the nearest is "matmul")"},
      {{"--mesh", "tp=2", "op", "matmul", "f32[4,6]", "f32[7,6]"},
       "[matmul] inner sizes 6 and 7 differ: f32[4,6] tp=Replicate and f32[7,6] tp=Replicate"},
      {{"--mesh", "tp=2", "op", "view", "f32[8,6] tp=Shard(1)", "shape=8,3,2"},
       "[view] f32[8,6] tp=Shard(1) (shape=8,3,2) cannot keep its sharding on mesh tp=2: "},
      {{"--mesh", "tp=2", "op", "view", "f32[8,6]", "shape=8,7"}, "[view] 48 elements of [8,6] do not fit [8,7]"},
      {{"--mesh", "tp=2", "op", "sum", "f32[8,6]", "dim=x"}, R"([sum] "dim=x" is no list of integers)"},
      {{"--mesh", "tp=2", "op", "sum", "f32[8,6]", "keepdm=true"}, R"([sum] takes no "keepdm"; it takes )"},
      {{"--mesh", "tp=2", "op", "sum", "f32[8,6]", "dim=0,,1"},
       R"([dtensor_explain] "dim=0,,1": a list is numbers with commas)"},
      {{"--mesh", "tp=2", "op", "relu", "f32[8,6]", "f32[8,6]"}, "[relu] takes 1 tensors, not 2"},
      {{"--mesh", "tp=2", "op", "add", "f32[8,6]"}, "[add] tensor 1 is missing; 1 are given"},
  };
  for (const Case& c : cases) {
    Result r = run("dtensor_explain", c.arguments);
    CAPTURE(c.arguments, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, StartsWith("dtensor_explain: " + c.error));
    CHECK(lines_of(r.err).size() == 1);
  }
}
