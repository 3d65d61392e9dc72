// Context parallelism: each method trains as one rank does, alone and with all other parallelism.
#include "nn/parallel/context_parallel.h"

#include <fmt/format.h>

#include "dtensor/creation.h"
#include "nn/models/bert.h"
#include "nn/models/gpt.h"
#include "tests/nn/plan_run.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// "ring balanced" is the method "ring" with balanced parts.
std::string cp(const std::string& method) {
  size_t space = method.find(' ');
  return fmt::format(R"({{"context_parallel": {{"axis": "cp", "method": "{}", "balanced": {}}}}})",
                     method.substr(0, space), space != std::string::npos);
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
  const Case cases[] = {{"all_gather", "cp=2", 16},
                        {"all_gather", "cp=4", 16},
                        {"all_gather", "cp=3", 16},
                        {"all_to_all", "cp=2", 16},
                        {"all_to_all", "cp=4", 16},
                        {"all_to_all", "cp=4", 13},
                        {"all_gather", "cp=4", 2},
                        {"all_to_all", "dp=2,cp=2", 16},
                        {"ring", "cp=2", 16},
                        {"ring", "cp=3", 15},
                        {"ring", "cp=4", 4},
                        {"ring", "dp=2,cp=2", 16},
                        {"ring balanced", "cp=2", 16},
                        {"ring balanced", "cp=4", 16},
                        {"ring balanced", "dp=2,cp=2", 12},
                        {"all_gather balanced", "cp=4", 8}};
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
    for (const char* method : {"all_gather", "all_to_all", "ring", "ring balanced"})
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
  Run ring = train("cp=4", plan_of(cp("ring")), 2);
  INFO(listing(ring.entries));
  CHECK(launches(ring, Phase::forward, "shift") == 3);       // to all others
  CHECK(launches(ring, Phase::backward, "shift") == 3 + 4);  // again, and gradients until they are home
}

TEST_CASE("law 8: a dry run with context parallelism lists what a run communicates") {
  auto method = GENERATE(as<std::string>(), "all_gather", "all_to_all", "ring", "ring balanced");
  ParallelPlan plan = everything(method.c_str(), R"({"mode": "none"})");
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
      return values(model(of(ids), SequenceInputs{of(positions), of(documents), 3}).full_tensor());
    })[0];
  };
  std::vector<double> one = logits("dp=1", "{}");
  for (const char* method : {"all_gather", "all_to_all", "ring"})
    for (const char* mesh : {"cp=2", "dp=2,cp=2"}) {
      INFO(method << " on " << mesh);
      CHECK(difference(logits(mesh, cp(method).c_str()), one) < 1e-6);
    }
}

namespace {

// What attention gives and the gradients of q, k and v, for outputs weighted by numbers.
using Attend = std::function<DistributedTensor(const DistributedTensor&, const DistributedTensor&,
                                               const DistributedTensor&, const DeviceMesh&)>;
std::vector<std::vector<double>> attended(const std::string& mesh, DType dtype, int64_t seq, int64_t kv_heads,
                                          const Attend& attend) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    Layout layout;
    for (int a = 0; a < m.shape().axes(); ++a)
      if (m.shape().name(a) == "cp")
        layout = layout.with(a, Shard(2));
      else if (m.shape().name(a) == "dp")
        layout = layout.with(a, Shard(0));
    Layout of_kv = layout;
    if (int tp = m.shape().find("tp"); tp >= 0) {
      layout = layout.with(tp, Shard(1));
      if (kv_heads % m.shape().size(tp) == 0) of_kv = of_kv.with(tp, Shard(1));
    }
    auto of = [&](int64_t heads, int seed, const Layout& l) {
      return ops::cast(DistributedTensor::distribute(f64({2, heads, seq, 6}, seed), m, l), dtype);
    };
    DistributedTensor q = of(4, 1, layout), k = of(kv_heads, 2, of_kv), v = of(kv_heads, 3, of_kv),
                      weights = of(4, 4, layout);
    Autograd grad(rank);
    for (const DistributedTensor* x : {&q, &k, &v}) grad.watch(*x);
    DistributedTensor out = attend(q, k, v, m);
    grad.backward(ops::sum(out * weights).redistribute(Layout()));
    std::vector<DistributedTensor> all{out, grad.gradient(q), grad.gradient(k), grad.gradient(v)};
    std::vector<std::vector<double>> found;
    for (DistributedTensor& x : all) found.push_back(values(ops::cast(x, DType::f64).full_tensor()));
    return found;
  })[0];
}

}  // namespace

TEST_CASE("ring attention is attention: windows, documents, dropout, any positions, shared key heads") {
  struct Case {
    const char* mesh;
    int64_t seq, kv_heads;
    ops::AttentionOptions options;
    bool documents = false, reordered = false;
    DType dtype = DType::f64;
  };
  const Case cases[] = {
      {"cp=2", 8, 4, {}},
      {"cp=3", 9, 2, {.causal = true}},
      {"cp=4", 4, 1, {.causal = true}},
      {"cp=4", 12, 2, {.causal = true, .window = 2}},
      {"dp=2,cp=2", 8, 2, {.causal = true}, true},
      {"cp=2,tp=2", 8, 2, {.causal = true}, true, true},
      {"cp=2,tp=4", 8, 2, {.causal = true, .scale = -0.3}},
      {"dp=2,cp=2,tp=2", 8, 4, {.causal = true, .dropout_p = 0.3, .stream = RandomStream{.seed = 5}}, false, true},
      {"cp=4", 0, 2, {.causal = true}},
      {"cp=2", 256, 2, {.causal = true}, false, true, DType::f32},
      {"cp=4", 64, 2, {.causal = true}, false, false, DType::bf16},
  };
  for (const Case& c : cases) {
    auto with = [&](bool ring) -> Attend {
      return [&c, ring](const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                        const DeviceMesh& m) {
        ops::AttentionOptions options = c.options;
        int axis = m.shape().find("cp");
        auto sequence = [&](auto f) {
          std::vector<int64_t> list;
          for (int64_t i = 0; i < c.seq; ++i) list.push_back(f(i));
          Layout l = ring ? Layout().with(axis, Shard(0)) : Layout();
          return DistributedTensor::distribute(Tensor::of<int64_t>({c.seq}, list), m, l);
        };
        if (c.reordered)
          options.q_positions = options.k_positions = sequence([&](int64_t i) { return (i * 3 + 1) % c.seq; });
        // One is padding; the queries of another see no key, for none is theirs.
        if (c.documents)
          options.q_documents = sequence([](int64_t i) { return i == 2   ? -1
                                                                : i == 5 ? 7
                                                                         : i / 3; }),
          options.k_documents = sequence([](int64_t i) { return i == 2 ? -1 : i / 3; });
        return ring ? ops::ring_attention(q, k, v, axis, options) : ops::scaled_dot_product_attention(q, k, v, options);
      };
    };
    INFO(c.mesh << ", " << c.seq << " tokens of " << name(c.dtype));
    auto one = attended("x=1", c.dtype, c.seq, c.kv_heads, with(false)),
         ring = attended(c.mesh, c.dtype, c.seq, c.kv_heads, with(true));
    double limit = c.dtype == DType::f64 ? 1e-12 : c.dtype == DType::f32 ? 1e-5 : 2e-2;
    for (size_t i = 0; i < one.size(); ++i) CHECK(difference(ring[i], one[i]) < limit);
  }
}

TEST_CASE("a balanced sequence has as many keys to see on each rank") {
  for (const char* mesh : {"cp=2", "cp=3", "dp=2,cp=3"}) {
    INFO(mesh);
    auto sums = on_mesh(mesh, [&](const DeviceMesh& m) {
      int axis = m.shape().find("cp");
      std::vector<int64_t> list(24);
      for (size_t i = 0; i < 24; ++i) list[i] = int64_t(i % 12);
      Layout rows = m.shape().axes() > 1 ? Layout().with(0, Shard(0)) : Layout();
      auto in_order = balanced_order(
          {DistributedTensor::distribute(Tensor::of<int64_t>({2, 12}, list), m, rows.with(axis, Shard(1))),
           DistributedTensor::distribute(Tensor::of<int64_t>({12}, {list.begin(), list.begin() + 12}), m,
                                         Layout().with(axis, Shard(0)))},
          axis);
      check(in_order[0].layout()[axis] == Shard(1) && in_order[1].layout()[axis] == Shard(0), "elsewhere");
      double sum = 0;
      for (double position : values(in_order[1].local())) sum += position;
      std::vector<double> all = values(in_order[0].full_tensor()), one = values(in_order[1].full_tensor());
      check(std::equal(one.begin(), one.end(), all.begin() + 12), "rows differ");
      std::sort(one.begin(), one.end());
      check(one[11] == 11, "some are lost");
      return sum;
    });
    for (double sum : sums) CHECK(sum == sums[0]);
  }
}

TEST_CASE("dropout draws the same numbers whichever way the sequence is divided") {
  auto losses = [](const char* mesh, const std::string& plan) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      GptConfig config{
          .vocab_size = 32, .max_position_embeddings = 16, .n_layers = 1, .n_heads = 2, .d_model = 16, .d_ff = 32};
      config.dropout = 0.3;
      LlamaTraining training(m, ModelConfig(config), plan_of(plan), {.steps = 10});
      std::vector<double> list;
      std::vector<int64_t> ids;
      for (int64_t i = 0; i < 4 * 16; ++i) ids.push_back(i * i % 31);
      for (int step = 0; step < 3; ++step) {
        DistributedTensor batch =
            DistributedTensor::distribute(Tensor::of<int64_t>({4, 16}, ids), m, batch_layout(m.shape(), plan_of(plan)));
        list.push_back(training.trainer.step({batch, batch}).loss);
      }
      return list;
    })[0];
  };
  std::vector<double> one = losses("dp=1", "{}");
  for (const char* method : {"all_gather", "ring", "ring balanced", "all_gather balanced"}) {
    INFO(method);
    CHECK(difference(losses("cp=2", cp(method)), one) < 1e-6);
  }
}

TEST_CASE("errors of context_parallel") {
  struct Case {
    const char *section, *error;
  };
  const Case cases[] = {
      {R"({})", "[plan] context_parallel: \"axis\" is missing"},
      {R"({"axis": "cp", "method": "star"})",
       "[plan] context_parallel.method: there is no method \"star\"; use all_gather, all_to_all, ring"},
      {R"({"axis": "cp", "method": "all_to_all", "balanced": true})",
       "[plan] context_parallel.balanced: with all_to_all each rank has all of the sequence, and nothing is to be "
       "balanced; use false"},
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
  CHECK_THAT(error_of([] { train("cp=4", plan_of(cp("ring")), 1, 0, 13); }),
             Contains("a sequence of 13 tokens does not divide over the 4 ranks of cp: pad it, or gather the keys"));
  CHECK_THAT(
      error_of([] { train("cp=4", plan_of(cp("ring balanced")), 1, 0, 12); }),
      Contains("is not cut into 8 chunks, two for each of the 4 ranks of cp: give [sequence] or [batch, sequen"));
  CHECK_THAT(
      error_of([&] {
        LlamaForCausalLM model(DeviceMesh(*rank, "cp=8"), small_llama());
        plan_of(cp("all_gather balanced")).apply(model);
        Layout divided = Layout().with(0, Shard(1));
        model(DistributedTensor::distribute(Tensor::of<int64_t>({1, 16}, std::vector<int64_t>(16)), model.mesh(),
                                            divided));
      }),
      Contains("] context_parallel: balanced parts of the sequence are in another order, and nothing says which tokens "
               "they are: give SequenceInputs::positions, and bring all of the batch into balanced_order()"));
  CHECK_THAT(
      error_of([&] {
        BertForMaskedLM bert(DeviceMesh(*rank, "cp=8"), BertConfig());
        plan_of(cp("ring balanced")).apply(bert);
      }),
      Contains("[plan] context_parallel: balanced parts are for causal attention, and this model is no CausalLM"));
  CHECK_THAT(error_of([] { balanced_order({}, 0); }), Contains("[balanced_order] no tensors"));
  CHECK_THAT(error_of([&] {
               DeviceMesh m(*rank, "cp=8");
               DistributedTensor x = zeros(m, "f32[1,2,8,4]");
               ops::ring_attention(x, x, x, 0);
             }),
             Contains("is not sharded over cp, and it alone, along the sequence"));
  CHECK_THAT(error_of([&] {
               DeviceMesh m(*rank, "cp=8");
               DistributedTensor x = zeros(m, "f32[1,2,8,4] cp=Shard(2)");
               ops::ring_attention(x, x, x, 0, {.k_lengths = zeros(m, "i64[]")});
             }),
             Contains("[ring_attention] attn_mask and k_lengths do not go round a ring: say who sees whom by positions "
                      "and documents"));
  CHECK_THAT(error_of([&] {
               DistributedTensor x = zeros(DeviceMesh(*rank, "cp=8"), "f32[1,2,8,4]");
               ops::ring_attention(x, x, x, 1);
             }),
             Contains("[ring_attention] axis 1 of mesh cp=8"));
  CHECK(plan_of(cp("ring balanced")).to_json().dump() ==
        R"({"context_parallel":{"axis":"cp","method":"ring","balanced":true}})");
  CHECK(plan_of(cp("all_to_all")).to_json().dump() == R"({"context_parallel":{"axis":"cp","method":"all_to_all"}})");
}
