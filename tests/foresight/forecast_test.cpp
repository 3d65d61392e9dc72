// Law 8: what is predicted is what runs.
#include "nn/foresight/forecast.h"

#include "dtensor/creation.h"
#include "nn/models/bert.h"
#include "tests/foresight/logged_allocator.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;

namespace {

const std::string root = DTENSOR_SOURCE_DIR "/examples/";

struct Case {
  std::string plan, config;  // a file, or the config itself
  std::vector<const char*> meshes;
};

ModelConfig model_of(const Case& c) {
  return c.config[0] == '{' ? ModelConfig::from_json(json(c.config))
                            : ModelConfig::load(root + "configs/" + c.config + ".json");
}

const char* gpt2 = R"({"model_type": "gpt2", "vocab_size": 264, "n_positions": 64, "n_embd": 64, "n_layer": 2,
  "n_head": 8, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1})";
const char* gpt = R"({"model_type": "gpt", "vocab_size": 264, "max_position_embeddings": 64, "d_model": 64,
  "n_layers": 2, "n_heads": 8, "dropout": 0.1})";
const char* phi3 = R"({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": 264,
  "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8,
  "num_key_value_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0})";

// Every plan of a causal language model that is shipped, on 2, 4 and 8 ranks.
const std::vector<Case> cases = [] {
  std::vector<Case> list;
  std::vector<const char*> dp{"dp=2", "dp=4", "dp=8"}, tp{"tp=2", "tp=4", "dp=2,tp=4"};
  for (const char* plan : {"ddp", "fsdp", "zero1", "zero2"}) list.push_back({plan, "llama_tiny", dp});
  for (const char* plan : {"tp", "tp_sp_loss", "tutorial_tp", "tutorial_1_feed_forward", "tutorial_2_attention",
                           "tutorial_3_sequence", "tutorial_4_loss", "fla_tp", "fla_tp_loss_parallel"})
    list.push_back({plan, "llama_tiny", tp});
  list.push_back({"tp_few_kv_heads", "llama_tiny", {"tp=2", "tp=4", "tp=8"}});
  list.push_back({"fsdp_tp", "llama_tiny", {"dp=2,tp=1", "dp=2,tp=2", "dp=4,tp=2"}});
  list.push_back(
      {"hsdp_tp",
       "llama_tiny",
       {"dp_replicate=1,dp_shard=2,tp=1", "dp_replicate=2,dp_shard=2,tp=1", "dp_replicate=2,dp_shard=2,tp=2"}});
  list.push_back({"fsdp_cp_tp", "llama_tiny", {"dp=1,cp=2,tp=1", "dp=1,cp=2,tp=2", "dp=2,cp=2,tp=2"}});
  list.push_back({"gla_tp", "gla_tiny", tp});
  list.push_back({"gpt2_tp", gpt2, {"tp=2", "tp=4", "tp=8"}});
  list.push_back({"gpt_tp", gpt, {"tp=2", "tp=4", "tp=8"}});
  list.push_back({"phi3_tp", phi3, {"tp=2", "tp=4", "dp=2,tp=4"}});
  return list;
}();

struct Measured {
  Entries entries;
  int64_t peak, least_peak;  // over ranks
  MemoryUse memory;          // of rank 0
};

constexpr int64_t batch_size = 8, seq_len = 32;

// Ranks meet after each redistribution while it exists. Without, a rank that is ahead of others holds what these still
// read, so that its memory is another with every run.
class InStep : public Observer {
 public:
  explicit InStep(Rank& rank) : rank_(rank) { rank_.add(*this); }
  ~InStep() override { rank_.remove(*this); }
  void on_redistribute(const RedistributeEvent&) override { rank_.communicator().barrier(); }

 private:
  Rank& rank_;
};

// The second step of a run on thread ranks.
Measured measure(const std::string& mesh, const ModelConfig& config, const ParallelPlan& plan,
                 const LlamaTrainingOptions& options, bool in_step) {
  auto ranks = on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    auto allocator = LoggedAllocator::of(rank);
    MemoryTrace trace(rank, allocator->log);
    LlamaTraining training(m, config, plan, options);
    trace.before(MemoryKind::optimizer);
    (void)training.optimizer.state();  // makes them
    trace.before(MemoryKind::activations);
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < batch_size * seq_len; ++i) ids.push_back((i * 7 + i * i) % 64);
    Tensor rows = Tensor::of<int64_t>({batch_size, seq_len}, ids);
    auto tensor = [&] {
      auto x = DistributedTensor::distribute(rows, m, batch_layout(m.shape(), plan));
      return DistributedTensor::from_local(x.local().to(rank.allocator()), m, x.layout(), x.shape());
    };
    Batch batch{tensor(), tensor()};
    std::optional<InStep> meetings;
    if (in_step) meetings.emplace(rank);
    trace.begin_step();
    training.trainer.step(batch);
    CommLog log(rank);
    rank.communicator().barrier();
    rank.allocator()->reset_peak();
    trace.begin_step();
    training.trainer.step(batch);
    int64_t peak = rank.allocator()->peak_bytes();
    return Measured{log.entries(), peak, peak, trace.use()};
  });
  for (const Measured& m : ranks) {
    ranks[0].peak = std::max(ranks[0].peak, m.peak);
    ranks[0].least_peak = std::min(ranks[0].least_peak, m.least_peak);
  }
  return ranks[0];
}

int64_t sum_of_kinds(const MemoryUse& m) {
  int64_t sum = 0;
  for (int64_t bytes : m.of_kind) sum += bytes;
  return sum;
}

}  // namespace

TEST_CASE("a forecast's collectives are a run's, entry by entry, and so is its memory, for each shipped plan") {
  for (const Case& c : cases)
    for (const char* mesh : c.meshes) {
      INFO(c.plan << " on " << mesh);
      ModelConfig config = model_of(c);
      ParallelPlan plan = ParallelPlan::load(root + "plans/" + c.plan + ".json");
      LlamaTrainingOptions options;
      options.steps = 2;
      Forecast f = forecast(MeshShape::parse(mesh), config, plan,
                            {.batch_size = batch_size, .seq_len = seq_len, .train = options});
      Measured run = measure(mesh, config, plan, options, true);
      REQUIRE(f.collectives.size() == run.entries.size());
      for (size_t i = 0; i < run.entries.size(); ++i) CHECK(to_string(f.collectives[i]) == to_string(run.entries[i]));
      CHECK(double(f.memory.peak_bytes) == Approx(double(run.memory.peak_bytes)).epsilon(0.03));
      CHECK(double(f.memory.peak_bytes) == Approx(double(run.peak)).epsilon(0.03));
      CHECK(sum_of_kinds(f.memory) == f.memory.peak_bytes);
      for (int k = 0; k < memory_kinds; ++k) {
        INFO(name(MemoryKind(k)));
        CHECK(double(f.memory.of_kind[k]) == Approx(double(run.memory.of_kind[k])).epsilon(0.05));
      }
      // Parameters, and two states of each.
      CHECK(f.memory[MemoryKind::optimizer] >= 2 * f.parameters * 4 / MeshShape::parse(mesh).world());
    }
}

TEST_CASE("ranks that wait for each other hold more than is forecast by what others still read, or as much") {
  for (const char* name : {"zero2", "fsdp"}) {
    ModelConfig config = ModelConfig::load(root + "configs/llama_tiny.json");
    ParallelPlan plan = ParallelPlan::load(root + "plans/" + name + ".json");
    LlamaTrainingOptions options;
    options.steps = 2;
    Forecast f = forecast(MeshShape::parse("dp=4"), config, plan,
                          {.batch_size = batch_size, .seq_len = seq_len, .train = options});
    Measured run = measure("dp=4", config, plan, options, false);
    CHECK(double(f.memory.peak_bytes) >= 0.97 * double(run.least_peak));
    CHECK(double(f.memory.peak_bytes) <= 1.03 * double(run.peak));
  }
}

// A step of BERT, which is no causal language model, by a trainer of its own.
Entries bert_step(const DeviceMesh& mesh) {
  BertConfig config;
  config.vocab_size = 64, config.hidden_size = 64, config.intermediate_size = 128, config.num_hidden_layers = 2;
  config.num_attention_heads = 8, config.max_position_embeddings = seq_len;
  BertForMaskedLM model(mesh, config);
  ParallelPlan::load(root + "plans/bert_tp.json").apply(model);
  materialize(model, 1);
  AdamW optimizer(model.parameters(), {});
  Trainer trainer(model, Loss([&](const Batch& b) {
                    return ops::cross_entropy(model(b[0]), b[1], {.reduction = ops::Reduction::none});
                  }),
                  optimizer, {.lr = 1e-3, .clip = 1.0});
  DistributedTensor ids = zeros(mesh, TensorSpec{DType::i64, {batch_size, seq_len}, batch_layout(mesh.shape())});
  CommLog log(mesh.rank_state());
  trainer.step({ids, ids});
  return log.entries();
}

TEST_CASE("the collectives of a step of BERT by its shipped plan are the same in a dry run, entry by entry") {
  for (const char* axes : {"tp=2", "tp=4", "dp=2,tp=4"}) {
    INFO(axes);
    MeshShape shape = MeshShape::parse(axes);
    auto recorded = Rank::recorded(shape.world());
    Entries said = bert_step(DeviceMesh(*recorded, shape)), ran = on_mesh(axes, bert_step)[0];
    REQUIRE(said.size() == ran.size());
    CHECK(!said.empty());
    for (size_t i = 0; i < ran.size(); ++i) CHECK(to_string(said[i]) == to_string(ran[i]));
  }
}

TEST_CASE("a forecast tells what is offloaded apart, and counts copies and the host's step") {
  ModelConfig config = ModelConfig::load(root + "configs/llama_tiny.json");
  Hardware hardware = Hardware::load("h100");
  auto of = [&](bool offload, int64_t micro_batch_size = 0) {
    ParallelPlan plan = ParallelPlan::load(root + "plans/fsdp.json");
    plan.fully_shard->offload = offload, plan.fully_shard->sync_each_batch = micro_batch_size > 0;
    ForecastOptions options{.batch_size = batch_size, .seq_len = seq_len};
    options.train.micro_batch_size = micro_batch_size;
    return forecast(MeshShape::parse("dp=2"), config, plan, options, hardware);
  };
  Forecast without = of(false), with = of(true);
  REQUIRE(with.collectives.size() == without.collectives.size());
  for (size_t i = 0; i < with.collectives.size(); ++i)
    CHECK(to_string(with.collectives[i]) == to_string(without.collectives[i]));

  // Of two tables with an odd number of rows, rank 0 has half a row more.
  const int64_t shards = with.parameters * 4 / 2 + 2 * 128 * 4 / 2;
  CHECK(without.host_memory.peak_bytes == 0);
  CHECK_THAT(to_string(without), !Contains("host memory"));
  for (const Forecast& f : {with, of(true, 4)}) {
    for (auto [kind, bytes] : {std::pair(MemoryKind::parameters, shards), {MemoryKind::optimizer, 2 * shards}}) {
      CHECK(f.memory[kind] < shards / 100);
      CHECK(f.host_memory[kind] == bytes);
    }
    // Those that a pass has brought are temporary until it has ended well.
    CHECK(f.host_memory[MemoryKind::gradients] + f.host_memory[MemoryKind::temporary] >= shards);
    CHECK(sum_of_kinds(f.host_memory) == f.host_memory.peak_bytes);
    CHECK_THAT(to_string(f), Contains("host memory at its peak"));
    CHECK(to_json(f)["host_memory"]["peak_bytes"] == f.host_memory.peak_bytes);
  }
  CHECK(with.memory.peak_bytes < without.memory.peak_bytes - 2 * shards);

  // Shards go to the device twice and gradients come back once, each at the link's rate.
  double copies = 0;
  for (const Activity& a : with.activities)
    if (a.kind == Activity::Kind::collective && !a.axes) copies += double(a.bytes);
  CHECK(copies == 3 * double(shards) + 8);  // and the norm's sum
  CHECK(with.time.communication > without.time.communication);
  CHECK(with.time.host > without.time.host);
  double fast = with.time.step;
  hardware.host_link.per_second /= 1e3;
  double slow = of(true).time.step;
  CHECK(slow > fast + 0.9 * 2 * double(shards) / hardware.host_link.per_second);
  hardware.host_bytes_per_second /= 1e3;
  CHECK(of(true).time.step > slow + 0.9 * 7 * double(shards) / hardware.host_bytes_per_second);
  CHECK(of(false).time.step == without.time.step);
}
