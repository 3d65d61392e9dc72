#include "nn/train/causal_lm.h"

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Setup {
  std::string plan, mesh;  // a file's name, or "" for none
};

// Every shipped plan on every mesh that has its axes and no others; and no plan on data-parallel meshes.
std::vector<Setup> setups() {
  std::vector<Setup> list{{"", "dp=1"}, {"", "dp=2"}, {"", "dp=4"}};
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(plan_file("")))
    if (entry.path().extension() == ".json" && model_of_plan(entry.path().filename()) == "llama")
      names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    std::vector<std::string> axes = ParallelPlan::load(plan_file(name)).axes();
    for (const char* mesh : {"dp=2", "dp=4", "tp=1", "tp=2", "tp=4", "dp=2,tp=2"}) {
      MeshShape shape = MeshShape::parse(mesh);
      bool fits = std::all_of(axes.begin(), axes.end(), [&](const std::string& a) { return shape.find(a) >= 0; });
      for (int a = 0; a < shape.axes(); ++a)
        fits &= shape.name(a) == "dp" || std::find(axes.begin(), axes.end(), shape.name(a)) != axes.end();
      if (fits) list.push_back({name, mesh});
    }
  }
  return list;
}

ParallelPlan plan_of(const Setup& s) { return s.plan.empty() ? ParallelPlan{} : ParallelPlan::load(plan_file(s.plan)); }

struct Result {
  std::vector<double> loss, norm;
  std::vector<std::vector<float>> initial, last;  // parameters, gathered
  Entries entries;
};

using MakeBatch = std::function<PackedText::Batch(const DeviceMesh&, int64_t step)>;

std::vector<std::vector<float>> gathered(Module& model) {
  std::vector<std::vector<float>> all;
  for (Parameter* p : model.parameters()) {
    Tensor t = p->stored().full_tensor();
    all.emplace_back(t.data<float>(), t.data<float>() + t.numel());
  }
  return all;
}

std::vector<Result> train(const Setup& setup, const LlamaConfig& config, const LlamaTrainingOptions& options, int steps,
                          const MakeBatch& batch) {
  return on_mesh(setup.mesh, [&](const DeviceMesh& m) {
    m.rank_state().strict = true;  // law 7
    LlamaTraining training(m, config, plan_of(setup), options);
    Result r{{}, {}, gathered(training.model), {}, {}};
    CommLog log(m.rank_state());
    for (int i = 0; i < steps; ++i) {
      Trainer::Step s = training.trainer.step(batch(m, i));
      check(s.step == i + 1, "step {} is {}", i, s.step);
      r.loss.push_back(s.loss), r.norm.push_back(s.grad_norm);
    }
    r.entries = log.entries();
    r.last = gathered(training.model);
    return r;
  });
}

LlamaTrainingOptions ten_steps() {
  LlamaTrainingOptions o;
  o.steps = 20, o.lr = 3e-3, o.warmup_steps = 3;
  return o;
}

// Any tokens, of which some targets do not count: more of them in the first rows.
PackedText::Batch made_up(const DeviceMesh& m, int64_t step, int64_t rows, int64_t vocabulary) {
  constexpr int64_t seq = 16;
  std::vector<int64_t> inputs, targets;
  for (int64_t i = 0; i < rows * seq; ++i) {
    int64_t r = (i * 7919 + step * 104729 + 3) % 1009;
    inputs.push_back(r % vocabulary);
    targets.push_back(r % (2 + i / seq) == 0 ? ignored_target : (r * 31 + i) % vocabulary);
  }
  Layout layout = batch_layout(m.shape());
  return {DistributedTensor::distribute(Tensor::of<int64_t>({rows, seq}, inputs), m, layout),
          DistributedTensor::distribute(Tensor::of<int64_t>({rows, seq}, targets), m, layout)};
}

void check_same_run(const std::vector<Result>& run, const Result& one) {
  for (const Result& r : run) {  // on every rank
    CHECK(r.loss == run[0].loss);
    CHECK(r.norm == run[0].norm);
  }
  for (size_t i = 0; i < one.loss.size(); ++i) {
    INFO("step " << i + 1);
    CHECK(run[0].loss[i] == Approx(one.loss[i]).epsilon(1e-5));
    if (i < 8) CHECK(run[0].norm[i] == Approx(one.norm[i]).epsilon(1e-5));
  }
  REQUIRE(run[0].initial.size() == one.initial.size());
  for (size_t p = 0; p < one.initial.size(); ++p) {
    REQUIRE(run[0].initial[p].size() == one.initial[p].size());
    CHECK(std::memcmp(run[0].initial[p].data(), one.initial[p].data(), one.initial[p].size() * sizeof(float)) == 0);
  }
}

}  // namespace

TEST_CASE("law 7: the same training on any mesh and plan in strict mode") {
  Folder folder;
  PackedText text({folder.write("text.txt", some_text(3000))}, 16);
  MakeBatch batch = [&](const DeviceMesh& m, int64_t step) { return text.batch(m, batch_layout(m.shape()), step, 8); };
  constexpr int steps = 10;
  Result one = train({"", "dp=1"}, small_llama(), ten_steps(), steps, batch)[0];
  CHECK(one.loss[0] == Approx(std::log(259.0)).epsilon(0.01));
  CHECK(one.loss[9] < one.loss[0] - 0.3);  // it learns
  for (const Setup& s : setups()) {
    INFO(s.plan << " on " << s.mesh);
    check_same_run(train(s, small_llama(), ten_steps(), steps, batch), one);
  }
}

TEST_CASE("the same training with two key and value heads and ignored targets over a vocabulary that does not divide") {
  // Ranks count different numbers of targets, and the last of dp=4 has fewer rows.
  struct Case {
    const char *plan, *mesh;
    int64_t rows;
  };
  for (int64_t rows : {8, 7}) {
    MakeBatch batch = [&](const DeviceMesh& m, int64_t step) { return made_up(m, step, rows, 61); };
    Result one = train({"", "dp=1"}, small_llama(2, 61), ten_steps(), 4, batch)[0];
    for (const Setup& s : setups()) {
      if (s.mesh == "tp=4" && s.plan != "tutorial_tp.json") continue;  // 2 heads do not divide
      INFO(s.plan << " on " << s.mesh << ", " << rows << " rows");
      check_same_run(train(s, small_llama(2, 61), ten_steps(), 4, batch), one);
    }
  }
}

// Whose loss is a sum over rows cut elsewhere: in chunks, or where the head has parts of the sequence.
bool sums_rows_otherwise(const Setup& s) { return s.plan == "fla_tp.json" || s.plan == "tutorial_3_sequence.json"; }

TEST_CASE("law 6: the first loss has the same bits on every mesh") {
  MakeBatch batch = [&](const DeviceMesh& m, int64_t step) { return made_up(m, step, 8, 64); };
  Result one = train({"", "dp=1"}, small_llama(4, 64), ten_steps(), 1, batch)[0];
  for (const Setup& s : setups()) {
    if (sums_rows_otherwise(s)) continue;
    INFO(s.plan << " on " << s.mesh);
    double loss = train(s, small_llama(4, 64), ten_steps(), 1, batch)[0].loss[0];
    CHECK(std::memcmp(&loss, &one.loss[0], sizeof(double)) == 0);
  }
}

TEST_CASE("law 6: gradients have the same bits on every mesh where one op gives them") {
  // By rounding differ: on dp the embedding's, which is added in the order of tokens; on tp whatever comes after the
  // sum of gate's and up's gradients of their input, whose parts are added before the ranks' are.
  MakeBatch batch = [&](const DeviceMesh& m, int64_t step) { return made_up(m, step, 8, 64); };
  LlamaTrainingOptions options = ten_steps();
  options.clip = 0, options.lr = 1, options.warmup_steps = 0;
  options.adamw.eps = 1;  // so that the update is nearly the gradient
  Result one = train({"", "dp=1"}, small_llama(4, 64), options, 1, batch)[0];
  auto rank = Rank::recorded(1);
  LlamaForCausalLM model(DeviceMesh(*rank, "dp=1"), small_llama(4, 64));
  std::vector<std::string> names;
  for (Parameter* p : model.parameters()) names.push_back(p->path());
  for (const Setup& s : setups()) {
    if (sums_rows_otherwise(s)) continue;
    Result r = train(s, small_llama(4, 64), options, 1, batch)[0];
    int compared = 0;
    for (size_t p = 0; p < names.size(); ++p) {
      bool last = names[p] == "lm_head.weight" || names[p] == "model.norm.weight" ||
                  names[p] == "model.layers.1.mlp.down_proj.weight";
      if (s.mesh.find("tp") == std::string::npos ? names[p] == "model.embed_tokens.weight" : !last) continue;
      INFO(names[p] << ", " << s.plan << " on " << s.mesh);
      ++compared;
      CHECK(std::memcmp(r.last[p].data(), one.last[p].data(), r.last[p].size() * sizeof(float)) == 0);
      CHECK(std::memcmp(r.last[p].data(), r.initial[p].data(), r.last[p].size() * sizeof(float)) != 0);
    }
    CHECK(compared >= 3);
  }
}

TEST_CASE("law 6: the same program on the same mesh gives the same bits every time") {
  MakeBatch batch = [&](const DeviceMesh& m, int64_t step) { return made_up(m, step, 8, 61); };
  for (const Setup& s : {Setup{"", "dp=4"}, Setup{"tp_sp_loss.json", "dp=2,tp=2"}}) {
    Result a = train(s, small_llama(4, 61), ten_steps(), 3, batch)[0],
           b = train(s, small_llama(4, 61), ten_steps(), 3, batch)[0];
    CHECK(a.loss == b.loss);
    CHECK(a.norm == b.norm);
    CHECK(a.last == b.last);
  }
}

TEST_CASE("law 8: the dry run's list of collectives is the run's") {
  constexpr int steps = 2;
  for (const Setup& s : setups()) {
    INFO(s.plan << " on " << s.mesh);
    Entries real = train(s, small_llama(), ten_steps(), steps,
                         [&](const DeviceMesh& m, int64_t step) { return made_up(m, step, 8, 259); })[0]
                       .entries;

    MeshShape shape = MeshShape::parse(s.mesh);
    auto rank = Rank::recorded(shape.world());
    rank->strict = true;
    DeviceMesh m(*rank, shape);
    LlamaTraining training(m, small_llama(), plan_of(s), ten_steps());
    CommLog log(*rank);
    for (int i = 0; i < steps; ++i) {
      Trainer::Step step = training.trainer.step(meta_batch(m, batch_layout(shape), 8, 16));
      CHECK(std::isnan(step.loss));
      CHECK(std::isnan(step.grad_norm));
    }
    const Entries& dry = log.entries();
    if (shape.world() > 1) CHECK_FALSE(dry.empty());
    REQUIRE(dry.size() == real.size());
    for (size_t i = 0; i < dry.size(); ++i) {
      INFO(to_string(real[i]));
      CHECK(to_string(dry[i]) == to_string(real[i]));
      CHECK(dry[i] == real[i]);
    }
  }
}

TEST_CASE("law 7: every collective of a training step has its reason") {
  for (const Setup& s : setups()) {
    auto rank = Rank::recorded(MeshShape::parse(s.mesh).world());
    DeviceMesh m(*rank, s.mesh);
    LlamaTraining training(m, small_llama(), plan_of(s), ten_steps());
    CommLog log(*rank);
    training.trainer.step(meta_batch(m, batch_layout(m.shape()), 8, 16));
    for (const auto& e : log.entries()) {
      INFO(s.plan << " on " << s.mesh << ": " << to_string(e));
      CHECK(e.asked_for);
      CHECK(e.phase != Phase::none);
      CHECK_FALSE((e.reason.empty() && e.plan_line.empty()));
    }
  }
}

TEST_CASE("clipping scales by the norm before it and the learning rate follows its schedule") {
  MakeBatch batch = [&](const DeviceMesh& m, int64_t step) { return made_up(m, step, 4, 61); };
  auto run = [&](double clip, std::vector<double>& lr) {
    auto rank = Rank::single();
    DeviceMesh m(*rank, "dp=1");
    LlamaTrainingOptions o = ten_steps();
    o.clip = clip, o.adamw.eps = 1;  // so that the update is in proportion to the gradient
    o.adamw.weight_decay = 0;
    LlamaTraining training(m, small_llama(4, 61), {}, o);
    auto before = gathered(training.model);
    Trainer::Step s;
    for (int i = 0; i < 4; ++i) {
      s = training.trainer.step(batch(m, 0));
      lr.push_back(s.lr);
      if (i == 0) {
        auto after = gathered(training.model);
        double moved = 0;
        for (size_t p = 0; p < before.size(); ++p)
          for (size_t j = 0; j < before[p].size(); ++j)
            moved += std::pow(double(after[p][j]) - double(before[p][j]), 2);
        lr.push_back(std::sqrt(moved));
        lr.push_back(s.grad_norm);
      }
    }
  };
  std::vector<double> none, tight, loose;
  run(0, none), run(0.01, tight), run(1e6, loose);
  // step 1's lr, how far it moved, its norm, then the lr of steps 2, 3 and 4
  CHECK(none == loose);
  CHECK(tight[2] == none[2]);
  CHECK(tight[1] == Approx(none[1] * 0.01 / none[2]).epsilon(0.1));
  for (auto& v : {none, tight}) {
    CHECK(v[0] == Approx(3e-4));
    CHECK(v[3] == Approx(3e-3 * 0.4));
    CHECK(v[4] == Approx(3e-3 * 0.7));
    CHECK(v[5] == Approx(3e-3));
  }
}

TEST_CASE("a model counts parameters once on every mesh") {
  for (const Setup& s : setups()) {
    auto rank = Rank::recorded(MeshShape::parse(s.mesh).world());
    DeviceMesh m(*rank, s.mesh);
    CHECK(LlamaTraining(m, small_llama(), plan_of(s), {}).model.parameter_count() ==
          2 * 259 * 32 + 32 + 2 * (2 * 32 + 4 * 32 * 32 + 3 * 32 * 64));
  }
}

TEST_CASE("a parameter that requires no gradient is used and stays as it is, under every plan") {
  struct Result {
    std::vector<double> losses;
    std::vector<float> frozen, trained;
  };
  const std::vector<std::string> frozen{"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                                        "model.layers.1.mlp.up_proj.weight"};
  auto train = [&](const Setup& s) {
    return on_mesh(s.mesh, [&](const DeviceMesh& m) {
      LlamaForCausalLM model(m, small_llama());
      for (Parameter* p : model.parameters())
        p->requires_grad = std::find(frozen.begin(), frozen.end(), p->path()) == frozen.end();
      ParallelPlan plan = plan_of(s);
      plan.apply(model);
      materialize(model, 3);
      AdamW optimizer(model.parameters(), {});
      check(optimizer.parameters().size() == model.parameters().size() - frozen.size(), "the optimizer has all");
      Trainer trainer(model, causal_lm_loss(model), optimizer, {.lr = 1e-2});
      auto values_of = [&](bool of_frozen) {
        std::vector<float> list;
        for (Parameter* p : model.parameters())
          if (p->requires_grad != of_frozen) {
            Tensor t = p->stored().full_tensor();
            list.insert(list.end(), t.data<float>(), t.data<float>() + t.numel());
          }
        return list;
      };
      std::vector<float> before = values_of(true);
      Result r;
      for (int step = 0; step < 3; ++step) {
        std::vector<int64_t> ids;
        for (int64_t i = 0; i < 8 * 16; ++i) ids.push_back((i * 7 + i * i * (step + 3)) % 259);
        DistributedTensor batch =
            DistributedTensor::distribute(Tensor::of<int64_t>({8, 16}, ids), m, batch_layout(m.shape(), plan));
        r.losses.push_back(trainer.step({batch, batch}).loss);
      }
      r.frozen = values_of(true), r.trained = values_of(false);
      check(r.frozen == before, "a frozen parameter changed");
      return r;
    })[0];
  };
  Result one = train({"", "dp=1"});
  CHECK(one.losses[2] < one.losses[0]);
  for (const Setup& s : {Setup{"fsdp.json", "dp=2"}, Setup{"zero1.json", "dp=2"}, Setup{"ddp.json", "dp=2"},
                         Setup{"tp_sp_loss.json", "tp=2"}, Setup{"fsdp_tp.json", "dp=2,tp=2"}}) {
    INFO(s.plan);
    Result r = train(s);
    for (size_t i = 0; i < 3; ++i) CHECK(r.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
    CHECK(r.frozen == one.frozen);
  }
}

TEST_CASE("errors of training") {
  auto make = [](const char* mesh, const char* plan) {
    return error_of([&] {
      auto rank = Rank::recorded(MeshShape::parse(mesh).world());
      LlamaTraining(DeviceMesh(*rank, mesh), small_llama(), ParallelPlan::from_json(json(plan)), {});
    });
  };
  CHECK(make("dp=2,tp=2", "{}") ==
        "[mesh] nothing uses axis \"tp\" of dp=2,tp=2: give a plan that does, or name it dp to divide the batch");
  CHECK(make("data=2", "{}") ==
        "[mesh] nothing uses axis \"data\" of data=2: give a plan that does, or name it dp to divide the batch");
  CHECK_THAT(make("dp=2", R"({"tensor_parallel": {"axis": "tp", "plan": {"lm_head": "ColwiseParallel"}}})"),
             Contains("axis \"tp\", which mesh dp=2 lacks"));
  CHECK(make("dp_replicate=2,dp_shard=2", "{}") == "");

  // A loss that is not a number ends the run and names the step.
  CHECK_THAT(error_of([&] {
               on_mesh("dp=2", [&](const DeviceMesh& m) {
                 LlamaTraining training(m, small_llama(4, 61), {}, {});
                 training.trainer.step(made_up(m, 0, 4, 61));
                 auto batch = made_up(m, 0, 4, 61);
                 fill(batch.targets.local_for_writing(), ignored_target);  // nothing counts: 0 / 0
                 training.trainer.step(batch);
               });
             }),
             Contains("[Trainer] step 2: the loss is ") && Contains("nan and the gradient norm 0"));
}

TEST_CASE("no memory grows from step to step") {
  for (const Setup& s : setups()) {
    auto growth = on_mesh(s.mesh, [&](const DeviceMesh& m) {
      LlamaTraining training(m, small_llama(4, 61), plan_of(s), ten_steps());
      std::vector<int64_t> bytes;
      for (int i = 0; i < 4; ++i) {
        training.trainer.step(made_up(m, i, 4, 61));
        m.communicator(m.shape().all())
            .barrier();  // others may hold parts of ours until they leave their last collective
        bytes.push_back(m.rank_state().allocator()->bytes_in_use());
      }
      return bytes.back() - bytes[1];
    });
    INFO(s.plan << " on " << s.mesh);
    for (int64_t g : growth) CHECK(g == 0);
  }
}
