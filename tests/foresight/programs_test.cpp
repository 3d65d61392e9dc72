// dtensor_plan, and what llama_pretrain says of a step that it does not run.
#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

const std::string tiny = source("examples/configs/llama_tiny.json"), plans = source("examples/plans/");
const Words sizes = {"--batch-size", "8", "--seq-len", "32"};

}  // namespace

TEST_CASE("llama_pretrain --dry-run --json has memory that adds up, operations, and with hardware time and MFU") {
  Words arguments =
      Words{"--model", tiny, "--mesh", "dp=2,tp=2", "--plan", plans + "fsdp_tp.json", "--dry-run", "--json"};
  Json plain = Json::parse(run("llama_pretrain", arguments + sizes).out);
  CHECK(plain["ranks"] == 4);
  CHECK(!plain.contains("time"));
  int64_t sum = 0;
  for (const char* kind : {"parameters", "gradients", "optimizer", "activations", "temporary", "communication"})
    sum += plain["memory"][kind].get<int64_t>();
  CHECK(plain["memory"]["peak_bytes"] == sum);
  CHECK(plain["memory"]["at"].get<std::string>() != "");

  Result r = run("llama_pretrain", arguments + sizes + Words{"--hardware", "h100"});
  CHECK(r.err.empty());
  Json j = Json::parse(r.out);
  CHECK(j["collectives"] == plain["collectives"]);
  double step = j["time"]["step_seconds"];
  CHECK(j["tokens_per_second"].get<double>() == Approx(8 * 32 / step));
  CHECK(j["mfu"].get<double>() == Approx(j["flops"]["model"].get<double>() / (step * 4 * 67e12)));
}

TEST_CASE("a 405B model on 2,048 ranks is looked at in seconds, and does not fit without checkpointing") {
  Words arguments = {"--model",   source("examples/configs/llama3_405b.json"),
                     "--mesh",    "dp=128,cp=2,tp=8",
                     "--plan",    plans + "fsdp_cp_tp.json",
                     "--dtype",   "bf16",
                     "--seq-len", "8192"};
  Result cost = run("dtensor_plan", Words{"cost", "--json", "--hardware", "h100"} + arguments);
  REQUIRE(cost.code == 0);
  Json j = Json::parse(cost.out);
  CHECK(j["ranks"] == 2048);
  CHECK(j["parameters"].get<double>() == Approx(405.8e9).epsilon(0.01));
  Result check = run("dtensor_plan", Words{"check", "--hardware", "h100", "--batch-size", "256"} + arguments);
  CHECK(check.code == 2);
  CHECK_THAT(check.err, StartsWith("dtensor_plan: [forecast] a step needs "));
}

TEST_CASE("llama_pretrain --report writes a page of a dry run") {
  Folder folder;
  Words arguments = Words{"--model", tiny, "--dry-run"} + sizes;
  REQUIRE(run("llama_pretrain", arguments + Words{"--report", folder / "page.html"}).code == 0);
  CHECK_THAT(read(folder / "page.html"), StartsWith("<!doctype html>"));
  struct Case {
    Words more;
    const char* error;
  };
  for (const Case& c :
       {Case{{"--dry-run", "--report", folder / "no/page.html"}, "/page.html: does the folder exist?"},
        Case{{"--check", "--report", folder / "page.html"},
             "[llama_pretrain] --report is a page of a run or of --dry-run: --check has none"},
        Case{{"--steps", "1", "--data", tiny, "--hardware", "h100"},
             "[llama_pretrain] --hardware is what --dry-run and --check predict for, and --profile compares "
             "with: give one of them too"},
        Case{{"--dry-run", "--hardware", "h101"}, "[Hardware] \"h101\" is neither a file nor one of"}}) {
    Result r = run("llama_pretrain", Words{"--model", tiny} + sizes + c.more);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, Contains(c.error));
  }
}

TEST_CASE("dtensor_plan check says that a plan fits, or what is wrong, of files, names and flags") {
  Folder folder;
  std::string styles = folder.write("styles.json", R"({"base_model_tp_plan": {"layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise", "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise", "layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise"}})");
  std::string wrong = folder.write("wrong.json", R"({"layers.*.self_attn.q_prj": "colwise"})");
  struct Case {
    Words arguments;
    const char* error;  // null: it fits
  };
  for (const Case& c :
       {Case{{"--mesh", "tp=2", "--plan", styles}, nullptr}, Case{{"--parallelism", "tp=2,dp_shard=4"}, nullptr},
        Case{{"--mesh", "tp=2", "--plan", "auto"}, nullptr}, Case{{"--mesh", "tp=2", "--plan", wrong}, "the nearest"},
        Case{{"--mesh", "tp=2", "--parallelism", "tp=2"},
             "[dtensor_plan] --mesh tp=2 and --parallelism tp=2: give one of them"},
        Case{{"--plan", styles}, "[dtensor_plan] --mesh is missing: give it, or --parallelism"},
        Case{{"--mesh", "dp=4", "--batch-size", "6"},
             "[dtensor_plan] --batch-size 6 does not divide over 4 data ranks of dp=4"},
        Case{{"--mesh", "dp=1", "--seq-len", "4096"},
             "[dtensor_plan] --seq-len 4096 is more than the model's max_position_embeddings 2048"},
        Case{{"--mesh", "dp=2", "--ranks", "first,last,1"}, nullptr},
        Case{{"--mesh", "dp=2", "--ranks", "first,5"},
             "[dtensor_plan] --ranks 5: mesh dp=2 has ranks 0 to 1; give numbers of them, first or last"},
        Case{{"--mesh", "dp=2", "--ranks", "1x"}, "[dtensor_plan] --ranks 1x: mesh dp=2"}}) {
    Result r = run("dtensor_plan", Words{"check", "--model", tiny} + c.arguments);
    INFO(r.out << r.err);
    CHECK(r.code == (c.error ? 2 : 0));
    if (c.error)
      CHECK_THAT(r.err, Contains(c.error));
    else
      CHECK(r.out == "fits\n");
  }
}

TEST_CASE("dtensor_plan diff tells what a second plan changes, and that equal plans do the same") {
  Words two = Words{"diff", "--model", tiny, "--mesh", "dp=4"} + sizes;
  Result same = run("dtensor_plan", two + Words{"--plan", plans + "fsdp.json", plans + "fsdp.json"});
  CHECK(same.out == "the two plans do the same\n");
  Json j =
      Json::parse(run("dtensor_plan", two + Words{"--json", "--plan", plans + "ddp.json", plans + "fsdp.json"}).out);
  CHECK(j["backward all_gather over dp, launches"][0] == 0);
  CHECK(j["backward all_gather over dp, launches"][1] > 0);
  CHECK(j["of it optimizer, bytes"][0] > j["of it optimizer, bytes"][1]);
  Result one = run("dtensor_plan", two + Words{"--plan", plans + "fsdp.json"});
  CHECK(one.code == 2);
  CHECK_THAT(one.err, Contains("[dtensor_plan] diff takes two plans, --plan OLD NEW, and was given 1"));
}

TEST_CASE(
    "llama_pretrain --explain tells why each collective is there, as text and as JSON, and --check refuses what is in "
    "doubt") {
  Words tp = Words{"--model", tiny, "--mesh", "tp=2", "--plan", plans + "tp.json", "--explain"} + sizes;
  Result text = run("llama_pretrain", tp);
  CHECK(text.code == 0);
  CHECK_THAT(text.out,
             Contains("by plan line \"model.layers.*.mlp.down_proj\": RowwiseParallel\n    4 times\n    rejected"));
  Json j = Json::parse(run("llama_pretrain", tp + Words{"--json"}).out);
  for (const Json& c : j["collectives"]) CHECK(c["alternatives"].is_array());

  Folder folder;
  std::string blocks = folder.write("blocks.json", R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*"]}})");
  Words looks = Words{"--model", tiny, "--mesh", "dp=2", "--plan", blocks} + sizes;
  const char* doubt = "[plan] fully_shard.modules: model.embed_tokens.weight and 2 more are in no group";
  for (const char* program : {"llama_pretrain", "dtensor_plan"}) {
    bool trains = std::string(program) == "llama_pretrain";
    Result check = run(program, (trains ? Words{"--check"} : Words{"check"}) + looks);
    CHECK(check.code == 2);
    CHECK_THAT(check.err, StartsWith(std::string(program) + ": " + doubt));
    Result cost = run(program, (trains ? Words{"--dry-run"} : Words{"cost"}) + looks);
    CHECK(cost.code == 0);
    CHECK_THAT(cost.err, StartsWith(std::string(program) + ": note: " + doubt));
  }
  Result both = run("llama_pretrain", tp + Words{"--check"});
  CHECK(both.code == 2);
  CHECK_THAT(both.err, Contains("[llama_pretrain] --explain finds what --check finds: give one of them"));
}

TEST_CASE("dtensor_explain plan walks a module, as text and as JSON, and what it cannot walk is said") {
  Words plan = {"plan",
                "--mesh",
                "dp=2,tp=2",
                "--model",
                tiny,
                "--plan",
                plans + "fsdp_tp.json",
                "--module",
                "model.layers.0.mlp"};
  Result text = run("dtensor_explain", plan);
  CHECK(text.code == 0);
  CHECK_THAT(text.out, StartsWith("model.layers.0.mlp\n"));
  Json steps = Json::parse(run("dtensor_explain", plan + Words{"--json"}).out);
  CHECK(steps[1]["because"] == "plan line \"model.layers.*.mlp\": PrepareModuleInput");
  struct Case {
    Words arguments;
    const char* error;
  };
  for (const Case& c :
       {Case{{"plan", "--mesh", "tp=2"}, "[dtensor_explain] plan needs --model, a Hugging Face config.json"},
        Case{{"plan", "--mesh", "tp=2", "--model", tiny, "layers"},
             "[dtensor_explain] plan takes no \"layers\": give --model, --plan and --module"},
        Case{{"ops", "--model", tiny}, "[dtensor_explain] --model is for plan, not for ops"}}) {
    Result r = run("dtensor_explain", c.arguments);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, Contains(c.error));
  }
}
