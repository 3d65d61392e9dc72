// Context parallelism: each method trains as one rank does, alone and with all other parallelism.
#include "nn/parallel/context_parallel.h"

#include <fmt/format.h>

#include "tests/nn/plan_run.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

std::string cp(const std::string& method) {
  return fmt::format(R"({{"context_parallel": {{"axis": "cp", "method": "{}"}}}})", method);
}

// fsdp_cp_tp.json with another method, and another checkpointing.
ParallelPlan everything(const char* method, const char* checkpointing) {
  ParallelPlan plan = ParallelPlan::load(plan_file("fsdp_cp_tp.json"));
  plan.context_parallel = ParallelPlan::from_json(json(cp(method))).context_parallel;
  plan.activation_checkpoint =
      ParallelPlan::from_json(json(fmt::format(R"({{"activation_checkpoint": {}}})", checkpointing)))
          .activation_checkpoint;
  return plan;
}

}  // namespace

TEST_CASE("context parallelism trains as one rank does") {
  struct Case {
    const char *method, *mesh;
    int64_t seq;
  };
  const Case cases[] = {{"all_gather", "cp=2", 16}, {"all_gather", "cp=4", 16},     {"all_gather", "cp=3", 16},
                        {"all_to_all", "cp=2", 16}, {"all_to_all", "cp=4", 16},     {"all_to_all", "cp=4", 13},
                        {"all_gather", "cp=4", 2},  {"all_to_all", "dp=2,cp=2", 16}};
  for (const Case& c : cases) {
    INFO(c.method << " on " << c.mesh << ", " << c.seq << " tokens");
    Run one = train("dp=1", {}, 8, 0, c.seq), r = train(c.mesh, plan_of(cp(c.method)), 8, 0, c.seq);
    for (size_t i = 0; i < 8; ++i) {
      CHECK(r.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
      CHECK(r.norms[i] == Approx(one.norms[i]).epsilon(1e-4));
    }
  }
}

TEST_CASE("data, context and tensor parallelism together train as one rank does") {
  for (int64_t micro : {0, 4}) {
    Run one = train("dp=1", {}, 20, micro);
    for (const char* method : {"all_gather", "all_to_all"})
      for (const char* mode : {R"({"mode": "none"})", R"({"mode": "full"})", R"({"mode": "selective", "option": 2})",
                               R"({"mode": "selective", "option": "op"})", R"({"budget": "20KiB"})"}) {
        INFO(method << ", " << mode << ", micro-batches of " << micro);
        Run r = train("dp=2,cp=2,tp=2", everything(method, mode), 20, micro);
        for (size_t i = 0; i < 20; ++i) CHECK(r.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
        for (size_t i = 0; i < 8; ++i) CHECK(r.norms[i] == Approx(one.norms[i]).epsilon(1e-4));
      }
  }
}

// Per block: keys and values in one launch, and their gradients; or three tensors there and one back, each way.
TEST_CASE("collectives of context parallelism are those of the literature") {
  auto launches = [](const Run& r, Phase phase, const char* kind) {
    std::set<int> groups;
    for (const auto& e : r.entries)
      if (e.phase == phase && e.axes == "cp" && e.collective == kind && below(e.module, "model.layers.1"))
        groups.insert(e.group);
    return groups.size();
  };
  Run gather = train("cp=2", plan_of(cp("all_gather")), 2);
  INFO(listing(gather.entries));
  CHECK(launches(gather, Phase::forward, "all_gather") == 1);
  // A reduce-scatter would do, but the gathered keys are viewed before they are used, and a view's value is whole.
  CHECK(launches(gather, Phase::backward, "all_reduce") == 2);
  CHECK(launches(gather, Phase::backward, "all_gather") == 0);
  Run heads = train("cp=2", plan_of(cp("all_to_all")), 2);
  INFO(listing(heads.entries));
  CHECK(launches(heads, Phase::forward, "all_to_all") == 2);
  CHECK(launches(heads, Phase::backward, "all_to_all") == 4);  // of the output, queries, keys and values
}

TEST_CASE("law 8: a dry run of fsdp_cp_tp lists what a run communicates") {
  ParallelPlan plan = ParallelPlan::load(plan_file("fsdp_cp_tp.json"));
  auto rank = Rank::recorded(8);
  rank->strict = true;
  DeviceMesh m(*rank, "dp=2,cp=2,tp=2");
  LlamaTraining training(m, small_llama(4, 64), plan, {});
  CommLog log(*rank);
  for (int i = 0; i < 2; ++i) {
    log.clear();
    training.trainer.step(meta_batch(m, batch_layout(m.shape(), plan), 8, 16));
  }
  CHECK(log.entries() == train("dp=2,cp=2,tp=2", plan, 2).entries);
}

TEST_CASE("positions and documents go with the sequence") {
  auto logits = [](const char* mesh, const char* plan) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      LlamaForCausalLM model(m, small_llama());
      ParallelPlan p = ParallelPlan::from_json(json(plan));
      p.apply(model);
      materialize(model, 1);
      m.rank_state().strict = true;
      Layout layout = batch_layout(m.shape(), p);
      std::vector<int64_t> ids, positions, documents;
      for (int64_t i = 0; i < 2 * 12; ++i)
        ids.push_back(i * i % 50), positions.push_back(i % 12 % 5), documents.push_back(i % 12 / 5);
      auto of = [&](const std::vector<int64_t>& v) {
        return DistributedTensor::distribute(Tensor::of<int64_t>({2, 12}, v), m, layout);
      };
      return values(model(of(ids), SequenceInputs{of(positions), of(documents)}).full_tensor());
    })[0];
  };
  std::vector<double> one = logits("dp=1", "{}");
  for (const char* method : {"all_gather", "all_to_all"})
    for (const char* mesh : {"cp=2", "dp=2,cp=2"}) {
      INFO(method << " on " << mesh);
      CHECK(difference(logits(mesh, cp(method).c_str()), one) < 1e-6);
    }
}

TEST_CASE("errors of context_parallel") {
  struct Case {
    const char *section, *error;
  };
  const Case cases[] = {
      {R"({})", "[plan] context_parallel: \"axis\" is missing"},
      {R"({"axis": "cp", "method": "ring"})",
       "[plan] context_parallel.method: ring attention is not supported yet; use \"all_gather\" or \"all_to_all\""},
      {R"({"axis": "cp", "method": "star"})",
       "[plan] context_parallel.method: there is no method \"star\"; use \"all_gather\" or \"all_to_all\""},
      {R"({"axis": "cp", "balanced": true})",
       "[plan] context_parallel.balanced: balanced parts of the sequence are not supported yet; use false"},
  };
  for (const Case& c : cases) {
    INFO(c.section);
    CHECK_THAT(
        error_of([&] { ParallelPlan::from_json(json(fmt::format(R"({{"context_parallel": {}}})", c.section))); }),
        StartsWith(c.error));
  }
  auto rank = Rank::recorded(8);
  Mlp mlp(DeviceMesh(*rank, "cp=8"));
  CHECK_THAT(
      error_of([&] { plan_of(cp("all_gather")).apply(mlp); }),
      Contains("[plan] context_parallel: the model has no CoreAttention, whose queries meet keys of other ranks"));
  CHECK_THAT(error_of([] { train("cp=8", plan_of(cp("all_to_all")), 1); }),
             Contains("context_parallel: 4 heads do not divide over 8 ranks (cp): use fewer ranks on that axis, or"));
  CHECK_THAT(error_of([&] {
               LlamaForCausalLM model(DeviceMesh(*rank, "cp=8"), small_llama());
               plan_of(cp("all_gather")).apply(model);
               model(DistributedTensor::distribute(Tensor::of<int64_t>({1, 2}, {1, 2}), model.mesh(), Layout()));
             }),
             Contains(", not divided over cp along the sequence: give a batch that is"));
  CHECK(plan_of(cp("all_to_all")).to_json().dump() == R"({"context_parallel":{"axis":"cp","method":"all_to_all"}})");
}
