#include "nn/foresight/report.h"

#include "nn/foresight/parallelism.h"
#include "nn/json.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;
using Json = nlohmann::ordered_json;

namespace {

const std::string examples = DTENSOR_SOURCE_DIR "/examples/";

Forecast tiny(const std::string& mesh, const std::string& plan, const ForecastOptions& options = {8, 32},
              const char* hardware = "h100") {
  return forecast(MeshShape::parse(mesh), ModelConfig::load(examples + "configs/llama_tiny.json"),
                  ParallelPlan::load(examples + "plans/" + plan + ".json"), options, Hardware::load(hardware));
}

}  // namespace

TEST_CASE(
    "a forecast's time adds up, and its operations are six times parameters and tokens, attention and head apart") {
  Forecast f = tiny("dp=1,tp=2", "fsdp_tp");
  const StepTime& t = f.time;
  CHECK(t.step == Approx(t.compute + t.memory_bound + t.exposed_communication + t.host));
  CHECK(t.exposed_communication <= t.communication);
  // 6 x (parameters without the embedding, which multiplies nothing) x tokens; causal attention: 6 x S x hidden x
  // layers.
  double products = 6.0 * double(f.parameters - 259 * 128 - 9 * 128) * 256, attention = 6.0 * 32 * 128 * 4 * 256;
  CHECK(f.model_flops == Approx(products + attention).epsilon(1e-9));
  CHECK(f.hardware_flops >= f.model_flops);
  for (const Activity& a : f.activities)
    if (a.kind == Activity::Kind::attention) CHECK(a.scores == 8 * 4 * 32 * 32 / 2);  // half of 8 heads, on each rank
  CHECK(f.mfu == Approx(f.model_flops / (t.step * 2 * Hardware::load("h100").peak(DType::f32))));
}

TEST_CASE("checkpointing of activations trades memory for operations") {
  ForecastOptions options{8, 64};
  auto look = [&](const char* mode) {
    ParallelPlan plan = ParallelPlan::from_json(Json::parse(mode));
    return forecast(MeshShape::parse("dp=2"), ModelConfig::load(examples + "configs/llama_tiny.json"), plan, options);
  };
  Forecast kept = look("{}"), full = look(R"({"activation_checkpoint": {"mode": "full"}})");
  CHECK(full.memory.peak_bytes < kept.memory.peak_bytes);
  CHECK(full.memory[MemoryKind::activations] < kept.memory[MemoryKind::activations]);
  CHECK(full.hardware_flops > 1.2 * kept.hardware_flops);
  CHECK(full.model_flops == kept.model_flops);
}

TEST_CASE("the last rank of an uneven mesh holds less than the first, and is looked at where it is asked for") {
  ForecastOptions last{8, 32};
  last.rank = 3;
  CHECK(tiny("dp=4", "fsdp", last).memory.peak_bytes < tiny("dp=4", "fsdp").memory.peak_bytes);  // 259 rows
  last.rank = 4;
  CHECK_THROWS_WITH(tiny("dp=4", "fsdp", last),
                    Contains("[make_recorded_communicator] a world of 4 ranks has no rank 4"));
}

TEST_CASE("what a device cannot hold is said with its kinds and what to do") {
  Forecast f = tiny("dp=2", "ddp");
  CHECK(what_does_not_fit(f).empty());
  f.hardware->memory_bytes = 1000;
  CHECK_THAT(what_does_not_fit(f),
             Contains("[forecast] a step needs 0.0") && Contains("optimizer 0.01") &&
                 Contains("and NVIDIA H100 SXM5, 80 GB has 0.00: shard more (\"fully_shard\", more "
                          "tensor parallelism), keep fewer activations"));
}

TEST_CASE("the report has the forecast's figures, and is one page that asks for nothing else") {
  ForecastOptions options{8, 32};
  options.explain = true;
  Forecast f = tiny("dp=2,tp=2", "fsdp_tp", options);
  std::string html = html_report(f, "a < b");
  CHECK_THAT(html, Contains("<title>a &lt; b</title>"));
  CHECK_THAT(html, Contains(fmt::format("The peak is {} bytes", f.memory.peak_bytes)));
  for (int k = 0; k < memory_kinds; ++k)
    CHECK_THAT(html, Contains(fmt::format("<title>{} {}</title>", name(MemoryKind(k)), f.memory.of_kind[k])));
  CHECK_THAT(html, Contains(fmt::format("<b>{:.3f} ms</b>a step on NVIDIA H100", f.time.step * 1e3)));
  CHECK_THAT(html, Contains("<tr><td>dp<td class=n>2<td>0, 2<td class=n>1<td class=n>") &&
                       Contains("<tr><td>tp<td class=n>2<td>0, 1<td class=n>1<td class=n>"));
  CHECK_THAT(html,
             Contains("<tr><td style=\"padding-left:4.2em\"><code>mlp</code><td><td>"
                      "<tr><td style=\"padding-left:5.6em\"><code>gate_proj.weight</code><td class=n>4<td><code>f32["));
  CHECK_THAT(html, Contains("prefers-color-scheme: dark"));
  auto explained = std::ranges::find_if(f.alternatives, [](const auto& list) { return !list.empty(); });
  REQUIRE(explained != f.alternatives.end());
  CHECK_THAT(html, Contains(fmt::format("<summary>{0} bytes</summary><pre>{0} bytes: {1}\n", (*explained)[0].bytes,
                                        (*explained)[0].what)));
  for (const char* outside : {"http", "src=", "@import", "<script"}) CHECK(html.find(outside) == html.npos);
  int64_t bytes = 0, shown = 0;
  for (const CommLog::Entry& e : f.collectives) bytes += e.bytes;
  for (size_t at = html.find("<h2>Collectives"), row; (row = html.find("<tr><td>", at)) != html.npos; at = row + 1) {
    size_t times = html.find("<td class=n>", row), of_row = html.find("<td class=n>", times + 1);
    shown += std::stoll(html.substr(of_row + std::string_view("<td class=n>").size()));
  }
  CHECK(shown == bytes);
}

TEST_CASE("Hugging Face's base_model_tp_plan is a plan over tp, below model") {
  Json styles{{"layers.*.self_attn.q_proj", "colwise"}, {"layers.*.mlp.down_proj", "rowwise"}};
  ParallelPlan plan = read_plan(styles);
  CHECK(read_plan(Json{{"base_model_tp_plan", styles}, {"hidden_size", 3}}) == plan);
  REQUIRE(plan.tensor_parallel.size() == 1);
  CHECK(plan.tensor_parallel[0].axis == "tp");
  CHECK(plan.tensor_parallel[0].lines[0].first == "model.layers.*.self_attn.q_proj");
}

TEST_CASE("parallelism in flags is a mesh in a fixed order and a plan, and each wrong flag is named") {
  ModelConfig model = ModelConfig::load(examples + "configs/llama_tiny.json");
  Parallelism p = read_parallelism("tp=2,dp_shard=4,cp=2,dp_replicate=3", model);
  CHECK(to_string(p.mesh) == "dp_replicate=3,dp_shard=4,cp=2,tp=2");
  CHECK(p.plan.fully_shard->axes == std::vector<std::string>{"dp_shard", "cp"});
  CHECK(p.plan.fully_shard->replicate_axis == "dp_replicate");
  CHECK(p.plan.tensor_parallel.size() == 1);
  CHECK(forecast(p.mesh, model, p.plan, {12, 32}).collectives.size() > 0);
  auto error = [&](const char* text) { return error_of([&] { read_parallelism(text, model); }); };
  CHECK_THAT(error("tp=2,pp=4"),
             Contains("[parallelism] \"pp\" in \"tp=2,pp=4\" is none of dp_replicate, dp_shard, cp, tp") &&
                 Contains("pipeline and expert parallelism are not there yet"));
  for (const char* wrong : {"tp", "tp=", "tp=0", "tp=x", "tp=2x"})
    CHECK_THAT(error(wrong), Contains("is no size: write tp=8"));
  CHECK_THAT(error("tp=2,tp=4"), Contains("[parallelism] tp is named twice in \"tp=2,tp=4\""));
}

TEST_CASE("memory is traced on meta, by one log") {
  auto rank = Rank::recorded(2);
  MemoryTrace trace(*rank);
  CHECK_THROWS_WITH(MemoryTrace(*rank), Contains("[MemoryTrace] rank 0 is on meta and has a log; it is for one log"));
  auto cpu = Rank::single();
  CHECK_THROWS_WITH(MemoryTrace(*cpu), Contains("[MemoryTrace] rank 0 is on cpu; it is for one log of a dry run"));
}

TEST_CASE("what is reserved are segments as a GPU's allocator cuts them, for as long as the step") {
  auto rank = Rank::recorded(1);
  MemoryTrace trace(*rank);
  auto reserved = [&](const std::vector<int64_t>& sizes) {
    std::vector<Tensor> held;
    for (int64_t bytes : sizes) held.emplace_back(rank->allocator(), DType::boolean, Shape{bytes});
    return trace.use().reserved_bytes;
  };
  const int64_t mib = 1 << 20;
  trace.begin_step();
  CHECK(reserved({}) == 0);
  CHECK(reserved({1, 600}) == 2 * mib);                     // one segment of small ones
  CHECK(reserved({3 * mib}) == 6 * mib);                    // a segment of 4 MiB
  CHECK(reserved({2 * mib, 2 * mib, mib / 2}) == 6 * mib);  // all have room where others were
  CHECK(reserved({2 * mib, 2 * mib + 1}) == 10 * mib);      // the second has not
  CHECK(tiny("dp=2", "ddp").memory.reserved_bytes >= tiny("dp=2", "ddp").memory.peak_bytes);
}

TEST_CASE("each word of a shipped plan, mistyped, is refused with what was written") {
  int mutations = 0;
  for (const char* name : {"ddp", "fsdp", "zero1", "tp", "fsdp_tp", "hsdp_tp", "fsdp_cp_tp"}) {
    const Json plan = load_json(examples + "plans/" + name + ".json", "plan");
    const char* mesh = std::string(name) == "hsdp_tp"      ? "dp_replicate=2,dp_shard=2,tp=2"
                       : std::string(name) == "fsdp_cp_tp" ? "dp=2,cp=2,tp=2"
                       : std::string(name) == "tp"         ? "tp=2"
                                                           : "dp=2,tp=2";
    if (std::string(name).find("tp") == std::string::npos) mesh = "dp=2";
    const Json words = plan.flatten();
    for (const auto& [path, value] : words.items()) {
      if (!value.is_string() || value == "") continue;  // "" is the root, "x" would be a module
      Json wrong = plan;
      std::string word = value.get<std::string>() + "x";
      wrong[Json::json_pointer(path)] = word;
      std::string error = error_of([&] {
        forecast(MeshShape::parse(mesh), ModelConfig::load(examples + "configs/llama_tiny.json"),
                 ParallelPlan::from_json(wrong), {8, 32});
      });
      INFO(name << " " << path << ": " << error);
      // An axis by another name leaves that of the mesh without a use.
      CHECK_THAT(error, (StartsWith("[plan] ") && Contains(word)) || StartsWith("[mesh] nothing uses axis"));
      ++mutations;
    }
  }
  CHECK(mutations >= 60);
}

TEST_CASE(
    "a host that waits for the device before each micro-batch takes longer by what it could have given meanwhile") {
  Hardware h = Hardware::load("h100");
  h.host_seconds = 2e-5;
  auto step = [&](bool waits, int64_t micro_batch_size) {
    h.host_waits = waits;
    ForecastOptions options{8, 32};
    options.train.micro_batch_size = micro_batch_size;
    return forecast(MeshShape::parse("dp=1"), ModelConfig::load(examples + "configs/llama_tiny.json"), {}, options, h)
        .time.step;
  };
  CHECK(step(true, 8) == Approx(step(false, 8)).epsilon(0.01));  // one micro-batch
  h.call_seconds = 3e-5;                                         // the device is behind
  CHECK(step(true, 2) > step(false, 2));
}
