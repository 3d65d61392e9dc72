// Training on CUDA: the same losses as on the CPU, on one rank and on several that share a device.
#include <catch2/catch.hpp>

#include "dtensor/launch.h"
#include "nn/models/gla.h"
#include "nn/report/trace.h"
#include "nn/train/causal_lm.h"
#include "ops/cuda/attention_backend.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

struct Run {
  Device device = Device::cuda;
  std::string mesh = "dp=1", plan = "{}";
  DType dtype = DType::f32;
  bool graph = true;
  int steps = 6;
  int64_t micro_batch_size = 0;
  bool recurrent = false;     // gated linear attention with short convolutions, not a Llama
  int64_t max_documents = 0;  // not 0: rows of four documents
};

struct Outcome {
  std::vector<double> loss, norm;
  std::string graph;
  bool operator==(const Outcome& other) const { return loss == other.loss && norm == other.norm; }
};

nn::LlamaConfig small_model() {
  nn::LlamaConfig c;
  c.vocab_size = 264, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 8, c.max_position_embeddings = 64;
  return c;
}

nn::GlaConfig small_recurrent_model() {
  nn::GlaConfig c;
  c.vocab_size = 264, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = 2;
  c.num_heads = 4, c.num_kv_heads = 2, c.use_short_conv = true;
  return c;
}

std::string text_file() {
  static const Folder folder;  // of this process: tests run side by side
  static const std::string file = folder.write("text.txt", some_text(4000));
  return file;
}

// {inputs, targets, positions, documents}: documents of 1 to 8 tokens, others with each step and row, and one in
// padding.
nn::Batch with_documents(const nn::Batch& batch, int64_t step, const Layout& layout) {
  const DeviceMesh& mesh = batch[0].mesh();
  std::vector<int64_t> positions, documents;
  for (int64_t b = 0; b < batch[0].size(0); ++b) {
    std::vector<int64_t> lengths{5, 1, 8, 2};
    std::rotate(lengths.begin(), lengths.begin() + (step + b) % 4, lengths.end());
    for (size_t d = 0; d < 4; ++d)
      for (int64_t i = 0; i < lengths[d]; ++i)
        positions.push_back(i), documents.push_back(lengths[d] == 2 ? -1 : int64_t(d));
  }
  auto tensor = [&](const std::vector<int64_t>& list) {
    return DistributedTensor::distribute(Tensor::of<int64_t>(batch[0].shape(), list), mesh, layout);
  };
  return {batch[0], batch[1], tensor(positions), tensor(documents)};
}

Outcome train(const Run& run) {
  MeshShape shape = MeshShape::parse(run.mesh);
  nn::PackedText text({text_file()}, 16);
  nn::ParallelPlan plan = nn::ParallelPlan::from_json(json(run.plan));
  const Layout layout = nn::batch_layout(shape, plan);
  nn::LlamaConfig llama = small_model();
  if (run.max_documents) llama.head_dim = 16;
  std::vector<Outcome> outcomes(size_t(shape.world()));
  launch(shape.world(),
         [&](Rank& rank) {
           DeviceMesh mesh(rank, shape);
           nn::ModelConfig model = llama;
           if (run.recurrent) model = small_recurrent_model();
           nn::LlamaTraining training(mesh, model, plan,
                                      {.steps = run.steps,
                                       .lr = 3e-3,
                                       .warmup_steps = 2,
                                       .micro_batch_size = run.micro_batch_size,
                                       .dtype = run.dtype,
                                       .max_documents = run.max_documents,
                                       .graph = run.graph});
           Outcome& o = outcomes[size_t(rank.rank())];
           for (int i = 0; i < run.steps; ++i) {
             nn::Batch batch = text.batch(mesh, layout, i, 4);
             auto s = training.trainer.step(run.max_documents ? with_documents(batch, i, layout) : batch);
             o.loss.push_back(s.loss), o.norm.push_back(s.grad_norm);
           }
           o.graph = training.trainer.graph_status();
         },
         {.deadline = std::chrono::minutes(2), .threads = 1, .device = run.device});
  for (const Outcome& o : outcomes) CHECK(o == outcomes[0]);
  return outcomes[0];
}

double furthest(const Outcome& a, const Outcome& b) {
  double most = 0;
  for (size_t i = 0; i < a.loss.size(); ++i)
    most = std::max(most, std::abs(a.loss[i] - b.loss[i]) / std::abs(b.loss[i]));
  return most;
}

const char* const tensor_parallel = R"({"tensor_parallel": {"axis": "tp", "plan": {
  "model.layers.*.self_attn.q_proj": "ColwiseParallel", "model.layers.*.self_attn.k_proj": "ColwiseParallel",
  "model.layers.*.self_attn.v_proj": "ColwiseParallel", "model.layers.*.self_attn.o_proj": "RowwiseParallel",
  "model.layers.*.mlp.gate_proj": "ColwiseParallel", "model.layers.*.mlp.up_proj": "ColwiseParallel",
  "model.layers.*.mlp.down_proj": "RowwiseParallel"}}})";

}  // namespace

TEST_CASE("cuda: training in float32 gives the losses of the CPU") {
  Outcome cpu = train({.device = Device::cpu});
  Outcome cuda = train({});
  CAPTURE(cpu.loss, cuda.loss, cuda.graph);
  CHECK(furthest(cuda, cpu) < 1e-4);
  CHECK(cuda.loss.back() < cuda.loss.front());
  CHECK_THAT(cuda.graph, StartsWith("captured, "));
  CHECK(train({}) == cuda);  // law 6: on any device the same program on the same mesh gives the same bits every time
  Outcome eager = train({.graph = false});
  CHECK(eager == cuda);
  CHECK(eager.graph == "not captured: switched off");
}

TEST_CASE("cuda: context parallelism gives the losses of one rank") {
  Outcome one = train({.device = Device::cpu});
  for (const char* method : {R"("all_gather")", R"("all_to_all")", R"("ring")", R"("ring", "balanced": true)"}) {
    INFO(method);
    std::string plan = fmt::format(R"({{"context_parallel": {{"axis": "cp", "method": {}}}}})", method);
    CHECK(furthest(train({.mesh = "cp=2", .plan = plan}), one) < 1e-4);
  }
}

TEST_CASE("cuda: a step in micro-batches is one of the whole batch, captured too") {
  Outcome whole = train({});
  for (bool graph : {true, false}) {
    Outcome micro = train({.graph = graph, .micro_batch_size = 2});
    INFO(micro.graph);
    CHECK(StartsWith(graph ? "captured" : "not captured").match(micro.graph));
    for (size_t i = 0; i < whole.loss.size(); ++i) CHECK(micro.loss[i] == Approx(whole.loss[i]).epsilon(1e-4));
  }
  CHECK(furthest(train({.dtype = DType::bf16, .micro_batch_size = 2}), whole) < 1e-2);
}

TEST_CASE("cuda: a step's clock and trace are of the device's time") {
  nn::PackedText text({text_file()}, 16);
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "dp=1");
  nn::LlamaTraining training(mesh, small_model(), {}, {.steps = 4, .graph = false});
  nn::StepClock clock(*rank);
  nn::Trace trace(mesh);
  for (int i = 0; i < 2; ++i) {  // the second step finds events of the first
    clock.begin();
    nn::PackedText::Batch batch = text.batch(mesh, {}, i, 4);
    clock.loaded();
    training.trainer.step(batch);
    clock.end();
    trace.add(clock, i);
  }
  auto last = clock.loaded_at();
  for (const nn::StepClock::Moment& m : clock.moments()) {
    CHECK(m.end >= last);
    last = m.end;
  }
  CHECK(last > clock.loaded_at());
  CHECK(last <= clock.ended_at());
  std::chrono::duration<double> whole = clock.ended_at() - clock.began_at();
  CHECK(clock.split().sum() == Approx(whole.count()));
  nlohmann::json file = nlohmann::json::parse(trace.gather({}));
  size_t slices = 0;
  for (const auto& e : file["traceEvents"]) slices += e["ph"] == "X";
  CHECK(slices > clock.moments().size());  // of two steps, without collectives' beginnings
  CHECK(clock.moments().size() == clock.timeline().activities().size());
}

TEST_CASE("cuda: the first value that is not finite is found") {
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "dp=1");
  nn::PackedText text({text_file()}, 16);
  nn::LlamaTraining training(mesh, small_model(), {}, {});
  fill(dynamic_cast<nn::LlamaForCausalLM&>(training.model)
           .model.layers[1]
           .mlp.up_proj.weight.stored()
           .local_for_writing(),
       NAN);
  CHECK_THAT(error_of([&] { training.trainer.step(text.batch(mesh, Layout(), 0, 4)); }),
             Contains("the first value that is not finite is the output of linear in model.layers.1.mlp.up_proj"));
}

TEST_CASE("cuda: a captured step is of one batch size") {
  nn::PackedText text({text_file()}, 16);
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "dp=1");
  nn::LlamaTraining training(mesh, small_model(), {}, {.steps = 4});
  for (int i = 0; i < 2; ++i) training.trainer.step(text.batch(mesh, {}, i, 4));
  CHECK_THAT(
      error_of([&] { training.trainer.step(text.batch(mesh, {}, 2, 8)); }),
      Contains("[Trainer] the batch is i64[8,16] dp=Replicate, but the step was captured of i64[4,16] dp=Replicate"));
  CHECK(error_of([&] { training.trainer.step({text.batch(mesh, {}, 2, 4).inputs}); }) ==
        "[Trainer] the batch has 1 tensors, but the step was captured of 2");
}

TEST_CASE("cuda: training in bf16 stays near float32, with the same bits every time") {
  Outcome wide = train({.device = Device::cpu}), narrow = train({.dtype = DType::bf16});
  CAPTURE(wide.loss, narrow.loss);
  CHECK(furthest(narrow, wide) < 1e-2);
  CHECK(train({.dtype = DType::bf16}) == narrow);
}

TEST_CASE("cuda: training on packed documents, by cuDNN in bf16, gives the losses of the CPU") {
  Outcome cpu = train({.device = Device::cpu, .max_documents = 4}), wide = train({.max_documents = 4}),
          narrow = train({.dtype = DType::bf16, .max_documents = 4});
  CAPTURE(cpu.loss, wide.loss, narrow.loss);
  CHECK(furthest(wide, cpu) < 1e-4);
  CHECK(furthest(narrow, cpu) < 1e-2);
  CHECK_THAT(narrow.graph, StartsWith("captured, "));  // whose steps have other documents
  CHECK(train({.dtype = DType::bf16, .graph = false, .max_documents = 4}) == narrow);
  for (const char* mesh : {"dp=2", "dp=2,tp=2"}) {
    INFO(mesh);
    const char* plan = mesh == std::string("dp=2") ? "{}" : tensor_parallel;
    CHECK(furthest(train({.mesh = mesh, .plan = plan, .dtype = DType::bf16, .max_documents = 4}), cpu) < 1e-2);
  }
  for (const char* method : {"all_gather", "ring"}) {
    INFO(method);
    std::string plan = fmt::format(R"({{"context_parallel": {{"axis": "cp", "method": "{}"}}}})", method);
    CHECK(furthest(train({.mesh = "cp=2", .plan = plan, .dtype = DType::bf16, .max_documents = 4}), cpu) < 1e-2);
  }
}

TEST_CASE("cuda: more documents in a row than max_documents end a step by cuDNN, loudly") {
  if (!cuda::missing_cudnn(*Rank::single(Device::cuda)).empty()) return;
  CHECK_THAT(error_of([] { train({.dtype = DType::bf16, .max_documents = 2}); }),
             Contains("the first value that is not finite is the output of attention in model.layers.0.self_attn"));
  CHECK_THAT(error_of([] { train({.device = Device::cpu, .max_documents = 2}); }),
             Contains("[scaled_dot_product_attention] row 0 has more documents than max_documents = 2"));
}

TEST_CASE("cuda: ranks that share a device train as one rank does") {
  Outcome one = train({});
  const std::string sharded = R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""]}})";
  for (const Run& run : {Run{.mesh = "tp=2", .plan = tensor_parallel}, Run{.mesh = "dp=2"},
                         Run{.mesh = "dp=2", .plan = sharded}, Run{.mesh = "dp=2,tp=2", .plan = tensor_parallel}}) {
    Outcome several = train(run);
    CAPTURE(run.mesh, run.plan, one.loss, several.loss);
    CHECK(furthest(several, one) < 1e-4);
    CHECK_THAT(several.graph, Contains("ranks, whose collectives need the host"));
  }
}

TEST_CASE("cuda: gated linear attention trains as on the CPU, as one graph, in bf16, over parts of the sequence") {
  Outcome cpu = train({.device = Device::cpu, .recurrent = true}), cuda = train({.recurrent = true}),
          bf16 = train({.dtype = DType::bf16, .recurrent = true});
  CAPTURE(cpu.loss, cuda.loss, bf16.loss, cuda.graph);
  CHECK(furthest(cuda, cpu) < 1e-4);
  CHECK(furthest(bf16, cpu) < 1e-2);
  CHECK_THAT(cuda.graph, StartsWith("captured, "));
  CHECK(train({.graph = false, .recurrent = true}) == cuda);
  CHECK(furthest(train({.mesh = "cp=2", .recurrent = true}), cpu) < 1e-4);
}

TEST_CASE("cuda: the global norm is of the gradients' sums, not of each rank's contribution") {
  const std::vector<std::string> layouts = {"dp=Partial", "dp=Shard(0)", "dp=Replicate", "dp=Partial"};
  auto norm_on = [&](Device device, int ranks) {
    double norm = 0;
    launch(ranks,
           [&](Rank& rank) {
             DeviceMesh mesh(rank, fmt::format("dp={}", ranks));
             std::vector<DistributedTensor> g;
             for (size_t i = 0; i < layouts.size(); ++i)
               g.push_back(DistributedTensor::distribute(f32({6, 5}, int(i)), mesh, Layout())
                               .redistribute(parse_layout(layouts[i], mesh.shape(), 2)));
             if (ranks > 1) {  // both have a part of each sum
               g[0] = ops::add(g[0], ops::mul(g[0], -0.25).redistribute("dp=Replicate").redistribute("dp=Partial"));
               double value = nn::global_norm(g).item();
               if (rank.rank() == 0) norm = value;
             } else {
               g[0] = ops::mul(g[0], 0.75);
               norm = nn::global_norm(g).item();
             }
           },
           {.threads = 1, .device = device});
    return norm;
  };
  double expected = norm_on(Device::cpu, 1);
  CHECK(norm_on(Device::cpu, 2) == Approx(expected).epsilon(1e-6));
  CHECK(norm_on(Device::cuda, 2) == Approx(expected).epsilon(1e-6));
}
