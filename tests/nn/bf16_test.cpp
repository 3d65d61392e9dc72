// bfloat16 on the CPU: parameters are computed with in bf16 and stay float32.
#include "tests/nn/plan_run.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

TEST_CASE("training in bf16 follows float32") {
  Run f32 = train("dp=1", {}, 200, 0, 16, DType::f32, 1e-3), bf16 = train("dp=1", {}, 200, 0, 16, DType::bf16, 1e-3);
  CHECK(bf16.losses != f32.losses);
  CHECK(bf16.losses.back() < 0.99 * bf16.losses.front());
  for (size_t i = 0; i < f32.losses.size(); ++i) CHECK(bf16.losses[i] == Approx(f32.losses[i]).epsilon(0.01));
}

TEST_CASE("training in bf16 is the same by every plan, but for rounding") {
  Run one = train("dp=1", {}, 20, 0, 16, DType::bf16);
  const std::string types =
      R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "param_dtype": "bf16", "reduce_dtype": "bf16", "output_dtype": "fp32"}})";
  for (auto [plan, mesh] : {std::pair<std::string, const char*>("ddp.json", "dp=4"),
                            {"zero2.json", "dp=2"},
                            {"fsdp.json", "dp=4"},
                            {types, "dp=2"},
                            {"hsdp_tp.json", "dp_replicate=2,dp_shard=2,tp=2"},
                            {"fsdp_cp_tp.json", "dp=2,cp=2,tp=2"}}) {
    INFO(plan);
    Run r = train(mesh, plan_of(plan), 20, 0, 16, DType::bf16);
    for (size_t i = 0; i < 20; ++i) CHECK(r.losses[i] == Approx(one.losses[i]).epsilon(0.01));
  }
}

// Backward passes differ by roundings: where a value is used several times, its gradients are added before the sum over
// ranks is rounded.
TEST_CASE("a forward pass in bf16 has the same bits by every plan that adds in float32") {
  double one = train("dp=1", {}, 1, 0, 16, DType::bf16).losses[0];
  for (auto [plan, mesh] : {std::pair<const char*, const char*>("ddp.json", "dp=4"),
                            {"fsdp.json", "dp=4"},
                            {"tp.json", "tp=2"},
                            {"tp_sp_loss.json", "tp=4"},
                            {"hsdp_tp.json", "dp_replicate=2,dp_shard=2,tp=2"}}) {
    INFO(plan);
    ParallelPlan p = plan_of(plan);
    CHECK(train(mesh, p, 1, 0, 16, DType::bf16).losses[0] == one);
    p.reduce_dtype = DType::bf16;
    if (!p.tensor_parallel.empty()) CHECK(train(mesh, p, 1, 0, 16, DType::bf16).losses[0] != one);
  }
}

TEST_CASE("gathers are of bf16, and gradients of float32 or what reduce_dtype says") {
  auto bytes = [](const Run& r, const char* kind) {
    int64_t sum = 0;
    for (const auto& e : r.entries)
      if (e.phase == Phase::backward && e.collective == kind && e.axes == "dp") sum += e.bytes;
    return sum;
  };
  auto run = [](const std::string& types) {
    return train("dp=2", plan_of(R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""])" + types + "}}"),
                 2);
  };
  Run f32 = run(""), half = run(R"(, "param_dtype": "bf16")"),
      all = run(R"(, "param_dtype": "bf16", "reduce_dtype": "bf16")");
  CHECK(bytes(half, "all_gather") * 2 == bytes(f32, "all_gather"));
  CHECK(bytes(half, "reduce_scatter") == bytes(f32, "reduce_scatter"));
  CHECK(bytes(all, "reduce_scatter") * 2 == bytes(f32, "reduce_scatter"));
}
