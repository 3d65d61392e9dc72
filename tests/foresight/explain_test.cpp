// Why a collective is there, what else it could have been, and what made each layout.
#include "ops/explain.h"
#include "nn/foresight/walk.h"
#include "nn/json.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;

namespace {

const std::string examples = DTENSOR_SOURCE_DIR "/examples/";

ModelConfig tiny() { return ModelConfig::load(examples + "configs/llama_tiny.json"); }
ParallelPlan shipped(const std::string& name) { return ParallelPlan::load(examples + "plans/" + name + ".json"); }

Forecast explained(const char* mesh, const ParallelPlan& plan) {
  ForecastOptions options{8, 32};
  options.explain = true;
  return forecast(MeshShape::parse(mesh), tiny(), plan, options);
}

// Columns without a row for them: what the last MLP leaves is a sum that nobody brings anywhere.
const char* half_a_plan = R"({"tensor_parallel": {"axis": "tp", "plan": {
  "model.layers.3.mlp.gate_proj": "ColwiseParallel", "model.layers.3.mlp.up_proj": "ColwiseParallel"}}})";

}  // namespace

TEST_CASE(
    "an alternative to a collective that was asked for are other steps to the same layout, and they cost as much") {
  for (const char* name : {"tp", "tp_sp_loss", "fsdp_tp"}) {
    Forecast f = explained("dp=2,tp=2", shipped(name));
    REQUIRE(f.alternatives.size() == f.collectives.size());
    std::set<Phase> phases;
    for (size_t i = 0; i < f.collectives.size(); ++i) {
      INFO(name << ": " << to_string(f.collectives[i]));
      CHECK(f.collectives[i].asked_for);
      CHECK(f.alternatives[i].size() <= Alternatives::most);
      for (const Alternative& a : f.alternatives[i]) CHECK(a.bytes >= f.collectives[i].bytes);
      if (!f.alternatives[i].empty()) phases.insert(f.collectives[i].phase);
    }
    CHECK(phases.contains(Phase::forward));
    CHECK(phases.contains(Phase::backward));
  }
  Forecast f = explained("tp=2", shipped("tp"));
  CHECK(f.alternatives[0][0].what == "reduce_scatter over tp to tp=Shard(0), then all_gather over tp to tp=Replicate");
}

TEST_CASE("an alternative to a collective that the dispatcher found is another way to run the op") {
  Forecast f = explained("tp=2", ParallelPlan::from_json(json(half_a_plan)));
  size_t found = 0;
  for (size_t i = 0; i < f.collectives.size(); ++i) {
    if (f.collectives[i].asked_for) continue;
    ++found;
    INFO(to_string(f.collectives[i]));
    REQUIRE(!f.alternatives[i].empty());
    for (const Alternative& a : f.alternatives[i]) {
      CHECK_THAT(a.what, StartsWith(f.collectives[i].op + " of "));
      CHECK(a.bytes >= f.collectives[i].bytes);
    }
  }
  CHECK(found > 0);
}

TEST_CASE("explain tells each collective of blocks that are alike once, with reason, line and alternatives") {
  std::string text = explanation(explained("tp=2", shipped("tp")));
  CHECK_THAT(text, Contains("forward all_reduce over tp of f32[8,32,128]: 131072 bytes\n"
                            "    tp=Partial(sum) -> tp=Replicate\n"
                            "    in model.layers.*.self_attn.o_proj\n"
                            "    by plan line \"model.layers.*.self_attn.o_proj\": RowwiseParallel\n"
                            "    4 times\n"
                            "    rejected  131072 bytes: reduce_scatter over tp to tp=Shard(0), then all_gather"));
  CHECK_THAT(text, Contains("backward all_reduce over tp") && Contains("because of gradient of "));
  CHECK_THAT(explanation(explained("dp=1", {})), EndsWith("\nnothing is communicated\n"));
  CHECK_THAT(explanation(explained("tp=2", ParallelPlan::from_json(json(half_a_plan)))),
             Contains(" cannot take it as it is; nobody asked for it"));
}

TEST_CASE("alternatives are in the JSON of a dry run where they were asked for") {
  Forecast f = explained("tp=2", shipped("tp"));
  CHECK(to_json(f)["collectives"][0]["alternatives"][0]["bytes"] == f.alternatives[0][0].bytes);
  f.alternatives.clear();
  CHECK(!to_json(f)["collectives"][0].contains("alternatives"));
}

TEST_CASE("a walk has each tensor of a module with the plan line or the rule that made its layout") {
  std::vector<WalkStep> steps =
      walk(MeshShape::parse("dp=2,tp=2"), tiny(), shipped("fsdp_tp"), {2, 32}, "model.layers.1.mlp");
  auto find = [&](const std::string& by, const std::string& module) {
    for (const WalkStep& s : steps)
      if (s.by == by && s.module == "model.layers.1.mlp" + module) return s;
    return WalkStep{};
  };
  for (const WalkStep& s : steps) CHECK_THAT(s.module, StartsWith("model.layers.1.mlp"));
  CHECK(find("input", "").because == "from outside");
  WalkStep gathered = find("redistribute", "");
  CHECK(gathered.spec == "f32[2,32,128] dp=Shard(0) tp=Replicate");
  CHECK(gathered.because == "plan line \"model.layers.*.mlp\": PrepareModuleInput");
  WalkStep up = find("linear", ".up_proj");
  CHECK(up.spec == "f32[2,32,512] dp=Shard(0) tp=Shard(2)");
  CHECK(up.because == "rule ...k,nk,n->...n, A over dp, n over tp");
  CHECK(up.from[0] == gathered.tensor);
  CHECK(find("linear", ".down_proj").spec == "f32[2,32,128] dp=Shard(0) tp=Partial(sum)");
  CHECK(to_json(steps).size() == steps.size());
  CHECK_THAT(to_string(steps), Contains("model.layers.1.mlp.up_proj\n  t"));
}

TEST_CASE("a walk says of parameters which lines place and store them, and names what is no module") {
  auto because = [](const char* plan, const std::string& parameter) {
    for (const WalkStep& s : walk(MeshShape::parse("dp=2,tp=2"), tiny(), shipped(plan), {2, 32}))
      if (s.by == "parameter" && s.tensor == parameter) return s.because;
    return std::string("not seen");
  };
  CHECK(because("fsdp_tp", "model.layers.0.mlp.up_proj.weight") ==
        "\"model.layers.*.mlp.up_proj\": ColwiseParallel over tp; fully_shard of model.layers.0, stored in shards over "
        "dp");
  CHECK(because("fsdp_tp", "model.norm.weight") == "fully_shard of the root, stored in shards over dp");
  CHECK(because("tp", "model.norm.weight") == "no line: alike on all ranks");
  CHECK_THROWS_WITH(walk(MeshShape::parse("dp=1"), tiny(), {}, {1, 32}, "model.layer.0"),
                    Contains("[walk] there is no module \"model.layer.0\"; the nearest is \"model.layers.0\""));
}
