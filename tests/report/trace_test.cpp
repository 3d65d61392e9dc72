#include "nn/report/trace.h"

#include <fmt/format.h>

#include <thread>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;
using Json = nlohmann::ordered_json;

namespace {

struct Traced {
  Json file;                      // of rank 0
  std::vector<TimeSplit> splits;  // of its steps
  std::vector<double> seconds;
  Entries collectives;
  int64_t peak = 0;
};

// Two steps of a small Llama by a shipped plan, of which `late` sleeps in each forward pass.
std::vector<Traced> traced(const std::string& mesh, const std::string& plan_name, int late = -1) {
  const std::string root = DTENSOR_SOURCE_DIR "/examples/";
  ModelConfig config = ModelConfig::load(root + "configs/llama_tiny.json");
  ParallelPlan plan = ParallelPlan::load(root + "plans/" + plan_name + ".json");
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    LlamaTraining training(m, config, plan, {});
    if (rank.rank() == late)
      for (Module* module : training.model.modules())
        if (module->path() == "model.norm")
          module->add_before_hook([](Module&, auto&) { std::this_thread::sleep_for(std::chrono::milliseconds(200)); });
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < 8 * 32; ++i) ids.push_back(i * 7 % 64);
    Batch batch;
    for (int i = 0; i < 2; ++i)
      batch.push_back(
          DistributedTensor::distribute(Tensor::of<int64_t>({8, 32}, ids), m, batch_layout(m.shape(), plan)));
    Traced t;
    StepClock clock(rank);
    Trace trace(m);
    CommLog log(rank);
    rank.allocator()->reset_peak();
    for (int step = 1; step <= 2; ++step) {
      clock.begin();
      clock.loaded();
      training.trainer.step(batch);
      clock.end();
      t.seconds.push_back(std::chrono::duration<double>(clock.ended_at() - clock.began_at()).count());
      trace.add(clock, step);
      t.splits.push_back(clock.split());
    }
    t.peak = rank.allocator()->peak_bytes();
    t.collectives = log.entries();
    std::string text = trace.gather({{"command", "a \"b\""}});
    if (rank.rank() == 0) t.file = Json::parse(text);
    return t;
  });
}

// The whole slices, by rank and row.
std::map<std::pair<int, int>, std::vector<Json>> rows_of(const Json& file) {
  std::map<std::pair<int, int>, std::vector<Json>> rows;
  for (const Json& e : file.at("traceEvents"))
    if (e.at("ph") == "X") rows[{e.at("pid"), e.at("tid")}].push_back(e);
  return rows;
}

std::string join(const std::set<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

}  // namespace

TEST_CASE("a trace has each rank's steps, phases, modules and ops, one inside the other") {
  auto ranks = traced("dp=2,tp=2", "fsdp_tp");
  const Json& file = ranks[0].file;
  CHECK(file.at("otherData").at("command") == "a \"b\"");
  std::set<std::string> row_names;
  for (const Json& e : file.at("traceEvents"))
    if (e.value("name", "") == "thread_name")
      row_names.insert(fmt::format("{} {}", e.at("pid").get<int>(), e.at("args").at("name").get<std::string>()));
  for (int r = 0; r < 4; ++r)
    for (const char* row : {"compute", "communication dp", "communication tp"})
      CHECK(row_names.contains(fmt::format("{} {}", r, row)));
  std::set<std::string> paths;
  std::map<int, std::vector<std::string>> open;  // by rank
  std::map<int, double> last;
  for (const Json& e : file.at("traceEvents")) {
    if (e.value("tid", 0) != 1 || e.at("ph") == "M") continue;
    int rank = e.at("pid");
    double begin = e.at("ts");
    CHECK(begin >= last[rank] - 2e-3);  // microseconds, of which three digits are written
    last[rank] = begin + e.value("dur", 0.0);
    if (e.at("ph") == "B") open[rank].push_back(e.at("name"));
    if (e.at("ph") == "X" && rank == 3)
      paths.insert(fmt::format("/{}/{}", fmt::join(open[rank], "/"), e.at("name").get<std::string>()));
    if (e.at("ph") == "E") {
      REQUIRE(!open[rank].empty());
      open[rank].pop_back();
    }
  }
  for (const auto& [rank, scopes] : open) CHECK(scopes.empty());
  for (const char* path :
       {"/step 1/data", "/step 2/forward/model/layers.3/mlp/down_proj/linear",
        "/step 2/backward/model/layers.0/self_attn/core_attention/attention_backward", "/step 2/optimizer/update"})
    CHECK_THAT(join(paths), Contains(std::string(path) + "\n"));
}

TEST_CASE("a trace's figures are those of the clock, the communication log and the allocator") {
  auto ranks = traced("dp=2", "fsdp");
  auto rows = rows_of(ranks[0].file);
  for (int r = 0; r < 2; ++r) {
    const Traced& t = ranks[size_t(r)];
    double products = 0, waits = 0;
    for (const Json& e : rows.at({r, 1})) {
      double seconds = e.at("dur").get<double>() * 1e-6;
      if (e.at("cat") == "wait") waits += seconds;
      if (e.at("cat") == "product") products += seconds;
    }
    CHECK(products == Approx(t.splits[0].products + t.splits[1].products).epsilon(1e-3));
    CHECK(waits <= t.splits[0].communication + t.splits[1].communication + 1e-6);
    std::set<int> launches;
    int64_t bytes = 0, shown = 0;
    for (const CommLog::Entry& e : t.collectives) launches.insert(e.group), bytes += e.bytes;
    const auto& row = rows.at({r, 2});
    CHECK(row.size() == launches.size());
    for (const Json& e : row) shown += e.at("args").at("bytes").get<int64_t>();
    CHECK(shown == bytes);
    int64_t most = 0;
    for (const Json& e : ranks[0].file.at("traceEvents"))
      if (e.value("name", "") == "memory" && e.at("pid") == r)
        most = std::max(most, e.at("args").at("bytes in use").get<int64_t>());
    CHECK(most <= t.peak);
    CHECK(double(most) > 0.8 * double(t.peak));  // between two looks a kernel may have more
  }
}

TEST_CASE("the parts of a step's time add up to it, and a rank that is late is the others' communication") {
  auto ranks = traced("dp=2", "ddp", 1);
  for (const Traced& t : ranks)
    for (size_t i = 0; i < 2; ++i) {
      CHECK(t.splits[i].sum() == Approx(t.seconds[i]));
      CHECK(t.splits[i].products > 0);
      CHECK(t.splits[i].attention > 0);
      CHECK(t.splits[i].update > 0);
    }
  CHECK(ranks[0].splits[1].communication > 0.02);  // of 0.2, less what rank 0 was late itself
  CHECK(ranks[1].splits[1].kernels > 0.2);
  Json json = to_json(ranks[0].splits[1]);
  double sum = 0;
  for (const auto& [part, seconds] : json.items()) sum += seconds.get<double>();
  CHECK(sum == Approx(ranks[0].splits[1].sum()));
}

TEST_CASE("a step's clock is for ranks that compute, and lets a step throw") {
  auto meta = Rank::recorded(2);
  CHECK_THROWS_WITH(StepClock(*meta),
                    Contains("[StepClock] rank 0 is on meta, where nothing takes time: see Timeline::time()"));
  auto rank = Rank::single();
  {
    StepClock clock(*rank);
    clock.begin();
    CHECK(rank->observers().size() == 2);
  }
  CHECK(rank->observers().empty());
}
