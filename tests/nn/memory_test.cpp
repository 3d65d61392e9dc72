// Peak memory of a step beside a formula anyone can compute: the table of docs/parallel-plans.md. On meta, whose
// counted memory is a run's.
#include <fmt/format.h>

#include "tests/nn/plan_run.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

constexpr int64_t layers = 12, heads = 4;

LlamaConfig config(int64_t hidden, int64_t vocabulary) {
  LlamaConfig c;
  c.vocab_size = vocabulary, c.hidden_size = hidden, c.intermediate_size = 2 * hidden, c.num_hidden_layers = layers;
  c.num_attention_heads = c.num_key_value_heads = heads, c.head_dim = hidden / heads;
  return c;
}

struct Peaks {
  int64_t device, host;
};

Peaks peaks(const std::string& mesh, const std::string& plan_text, const LlamaConfig& c, int64_t rows, int64_t seq,
            int64_t micro_batch_size = 0) {
  MeshShape shape = MeshShape::parse(mesh);
  auto rank = Rank::recorded(shape.world());
  DeviceMesh m(*rank, shape);
  ParallelPlan plan = plan_of(plan_text);
  LlamaTrainingOptions options;
  options.micro_batch_size = micro_batch_size;
  LlamaTraining training(m, c, plan, options);
  for (int step = 0; step < 2; ++step) {
    if (step == 1) rank->allocator()->reset_peak(), rank->host_allocator()->reset_peak();
    training.trainer.step(meta_batch(m, batch_layout(m.shape(), plan), rows, seq));
  }
  return {rank->allocator()->peak_bytes(), rank->host_allocator()->peak_bytes()};
}

int64_t peak(const std::string& mesh, const std::string& plan_text, const LlamaConfig& c, int64_t rows, int64_t seq,
             int64_t micro_batch_size = 0) {
  return peaks(mesh, plan_text, c, rows, seq, micro_batch_size).device;
}

struct Row {
  const char *name, *mesh, *plan;
  double formula;  // bytes
};

void check_rows(const std::vector<Row>& rows, const LlamaConfig& c, int64_t batch, int64_t seq) {
  for (const Row& r : rows) {
    double measured = double(peak(r.mesh, r.plan, c, batch, seq));
    INFO(fmt::format("{} on {}: {:.2f} MB, the formula says {:.2f}", r.name, r.mesh, measured / 1e6, r.formula / 1e6));
    CHECK(std::abs(measured / r.formula - 1) < 0.05);
  }
}

}  // namespace

TEST_CASE("peak memory of parameters, gradients and states is the literature's, with the groups on their way") {
  LlamaConfig c = config(256, 512);
  // Bytes of all parameters P, of a block B, and of the embedding and the head E.
  const double B = 4. * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256), E = 4. * (2 * 512 * 256 + 256), P = layers * B + E;
  check_rows({{"parameters, gradients, two moments, a bucket of all", "dp=4", "ddp.json", 5 * P},
              {"the same in a quarter, and whole parameters and gradients", "dp=4", "zero1.json", 2 * P + 4 * P / 4},
              {"gradients in quarters, but of three blocks", "dp=4", "zero2.json", P + 4 * P / 4 + 3 * B},
              {"and parameters, but of two", "dp=4", "fsdp.json", 4 * P / 4 + 5 * B},
              {"in halves, on two replicas", "dp_replicate=2,dp_shard=2,tp=1", "hsdp_tp.json", 4 * P / 2 + 5 * B}},
             c, 4, 1);
}

TEST_CASE("offloaded, parameters, gradients and states are in host memory, and the groups on their way on the device") {
  LlamaConfig c = config(256, 512);
  const double B = 4. * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256), P = layers * B + 4. * (2 * 512 * 256 + 256);
  const char* plan = R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "offload": "cpu"}})";
  for (int ranks : {2, 4, 8}) {
    Peaks p = peaks(fmt::format("dp={}", ranks), plan, c, 8, 1);
    double device = 5 * B + 5 * B / ranks;  // shards: two come, two are reduced, one goes
    INFO(fmt::format("{} ranks: {:.2f} MB on the device, the formula says {:.2f}; {:.2f} and {:.2f} on the host", ranks,
                     double(p.device) / 1e6, device / 1e6, double(p.host) / 1e6, 4 * P / ranks / 1e6));
    CHECK(std::abs(double(p.device) / device - 1) < 0.05);
    CHECK(std::abs(double(p.host) / (4 * P / ranks) - 1) < 0.01);
  }
}

TEST_CASE("the stages of fully sharding need less and less memory") {
  auto of = [](const std::string& plan, int64_t micro_batch_size = 0) {
    return peak("dp=4", plan, small_llama(4, 64), 8, 1, micro_batch_size);
  };
  int64_t ddp = of("ddp.json"), one = of("zero1.json"), two = of("zero2.json"), three = of("fsdp.json");
  INFO(ddp << ", " << one << ", " << two << ", " << three);
  CHECK(one < ddp);
  CHECK(two < one);
  CHECK(three < two);
  // Micro-batches add up in whole gradients, or in shards.
  for (int stage : {2, 3}) {
    auto synced = [&](bool each) {
      return of(fmt::format(R"({{"fully_shard": {{"axis": "dp", "stage": {}, "modules": ["model.layers.*", ""], )"
                            R"("sync_each_batch": {}}}}})",
                            stage, each),
                4);
    };
    CHECK(synced(true) < synced(false));
  }
}

TEST_CASE("peak memory of activations is that of what a block keeps") {
  const double h = 64, f = 128, V = 512, L = layers, T = 8 * 1024;
  LlamaConfig c = config(64, 512);
  const double states = 4 * 4 * (L * (4 * h * h + 3 * h * f) + 2 * V * h);
  // Floats of a token in a block: both norms' inputs and outputs, q, the attention's output and logarithms, k, v; gate,
  // up and their product; two statistics. At the end the logits and their gradient, with two more of hidden size.
  const double a = 6 * h + 2 * h + 3 * f + heads + 2, end = 2 * V + 2 * h;
  // Per block every second product (of k, o and up), attention with its logarithms, and its input.
  const double op = 4 * h + f + heads;
  auto bytes = [&](double floats, double parts = 1) { return states + 4 * T / parts * floats; };
  check_rows(
      {{"all", "dp=1", "{}", bytes(L * a + end)},
       {"inputs of blocks", "dp=1", R"({"activation_checkpoint": {"mode": "full"}})", bytes(L * h + end)},
       {"every second block", "dp=1", R"({"activation_checkpoint": {"mode": "selective", "option": 2}})",
        bytes(L / 2 * (a + h) + end)},
       {"every second product", "dp=1", R"({"activation_checkpoint": {"mode": "selective", "option": "op"}})",
        bytes(L * op + end)},
       {"gathered inputs of the projections whole, all else halved", "tp=2", "tp_sp_loss.json",
        states / 2 + 4 * T * (L * (h + 2 * h + (a - 4 * h) / 2) + V + h)},
       {"all keys", "cp=4", R"({"context_parallel": {"axis": "cp", "method": "all_gather"}})",
        bytes(L * (a + 3 * 2 * h) + end, 4)},
       {"by heads", "cp=4", R"({"context_parallel": {"axis": "cp", "method": "all_to_all"}})", bytes(L * a + end, 4)},
       {"own keys", "cp=4", R"({"context_parallel": {"axis": "cp", "method": "ring"}})", bytes(L * a + end, 4)}},
      c, 8, 1024);
}

TEST_CASE("peak memory of the loss: all logits, a part of each, or those of some rows") {
  const double h = 32, f = 64, V = 8192, L = layers, T = 16 * 1024;
  LlamaConfig c = config(32, 8192);
  const double states = 4 * 4 * (L * (4 * h * h + 3 * h * f) + 2 * V * h), block = 8 * h + 3 * f + heads + 2;
  const char* linear_loss =
      R"({"tensor_parallel": {"axis": "tp", "plan": {"criterion": {"style": "LinearLossParallel"}}}})";
  check_rows(
      {{"all", "dp=1", "{}", states + 4 * T * (L * block + 2 * V)},
       {"half of the classes", "tp=2", "tp_sp_loss.json", states / 2 + 4 * T * (L * (3 * h + (block - 4 * h) / 2) + V)},
       {"4,096 rows of each rank", "tp=2", linear_loss, states + 4 * T * L * block + 4 * 4096 * 2 * V}},
      c, 16, 1024);
}
