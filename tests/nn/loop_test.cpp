// What a long run needs of a trainer: bad steps that are skipped, averages of the parameters, a z-loss.
#include "dtensor/creation.h"
#include "nn/train/ema.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

std::vector<float> values_of(const DistributedTensor& x) {
  Tensor t = x.full_tensor();
  return {t.data<float>(), t.data<float>() + t.numel()};
}

// A model whose gradient is `factor` times that of good rows.
struct Training {
  explicit Training(const DeviceMesh& m, TrainerOptions options) : mesh(m), model(m, true) {
    materialize(model, 3);
    optimizer.emplace(model.parameters(), AdamWOptions{});
    trainer.emplace(
        model, [this](const Batch& b) { return ops::square(model(b[0]) - b[1]); }, *optimizer, options);
  }
  Trainer::Step step(double factor) {
    Layout layout = batch_layout(mesh.shape());
    return trainer->step({ops::mul(DistributedTensor::distribute(f32({8, 6}, 1), mesh, layout), factor),
                          DistributedTensor::distribute(f32({8, 6}, 2), mesh, layout)});
  }

  DeviceMesh mesh;
  Mlp model;
  std::optional<AdamW> optimizer;
  std::optional<Trainer> trainer;
};

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

}  // namespace

TEST_CASE("bad steps are skipped before anything reaches weights or states, and counted") {
  on_mesh("dp=2", [](const DeviceMesh& m) {
    Training t(m, {.lr = 1e-3, .skip_bad_steps = 2});
    for (int i = 0; i < 25; ++i) check(!t.step(1).skipped, "a good step was skipped");
    Parameter& p = *t.model.parameters()[0];
    std::vector<float> weights = values_of(p.stored()), states = values_of(t.optimizer->state()[0].tensor);
    for (double factor : {1e6, not_a_number}) {  // a spike, and what is not finite
      Trainer::Step s = t.step(factor);
      check(s.skipped, "step {} with factor {} was not skipped", s.step, factor);
      check(values_of(p.stored()) == weights && values_of(t.optimizer->state()[0].tensor) == states,
            "a skipped step changed something");
    }
    check(t.trainer->norms().skipped == 2 && t.trainer->norms().bad_in_a_row == 2, "they are counted");
    Trainer::Step good = t.step(1);
    check(!good.skipped && good.step == 28 && values_of(p.stored()) != weights, "a good step goes on");
    t.step(not_a_number), t.step(1e6);
    std::string error = error_of([&] { t.step(1e6); });
    check(error.find("[Trainer] step 31: the gradient norm is ") == 0 &&
              error.find("times its average of ") != error.npos &&
              error.find("and 2 steps before it were skipped already") != error.npos,
          "the third in a row is \"{}\"", error);
    error = error_of([&] { t.step(not_a_number); });
    check(error.find("the first value that is not finite is") != error.npos, "the third in a row is \"{}\"", error);
    return 0;
  });
}

TEST_CASE("a run that skips nothing has the bits of one that could not") {
  auto losses = [](int64_t skip) {
    return on_mesh("dp=2", [skip](const DeviceMesh& m) {
      Training t(m, {.lr = 1e-3, .skip_bad_steps = skip});
      std::vector<double> all;
      for (int i = 0; i < 30; ++i) {
        Trainer::Step s = t.step(1);
        all.push_back(s.loss), all.push_back(s.grad_norm);
      }
      return all;
    })[0];
  };
  CHECK(losses(0) == losses(3));
}

TEST_CASE("what skips bad steps says what cannot be") {
  on_mesh("dp=1", [](const DeviceMesh& m) {
    for (auto& [options, text] :
         {std::pair{TrainerOptions{.skip_bad_steps = -1}, "[Trainer] -1 bad steps cannot be skipped"},
          std::pair{TrainerOptions{.spike = 1},
                    "[Trainer] a norm of 1 times the average is no spike: give more than 1"}}) {
      std::string error = error_of([&, o = options] { Training(m, o); });
      check(error == text, "{}", error);
    }
    Training t(m, {});
    std::string error = error_of([&] { t.trainer->gradients(); });
    check(error == "[Trainer] gradients are gone after a step: set TrainerOptions::keep_gradients", "{}", error);
    return 0;
  });
}

TEST_CASE("averages follow the parameters, which compute with them while they are exchanged") {
  on_mesh("dp=2", [](const DeviceMesh& m) {
    Training t(m, {.lr = 1e-2, .keep_gradients = true});
    Ema ema(t.model.parameters(), 0.75);
    Parameter& p = *t.model.parameters()[0];
    std::vector<float> wanted = values_of(p.stored());
    for (int i = 0; i < 5; ++i) {
      t.step(1);
      check(t.trainer->gradients().size() == t.model.parameters().size(), "gradients were kept");
      ema.update();
      std::vector<float> now = values_of(p.stored());
      for (size_t k = 0; k < now.size(); ++k) wanted[k] = wanted[k] * 0.75f + now[k] * 0.25f;
    }
    check(ema.averages()[0].path == p.path(), "averages have paths");
    check(values_of(ema.averages()[0].tensor) == wanted, "the average by hand");
    std::vector<float> weights = values_of(p.stored());
    ema.exchange();
    check(values_of(p.stored()) == wanted && values_of(p.value()) == wanted, "the model computes with the averages");
    ema.exchange();
    check(values_of(p.stored()) == weights && values_of(ema.averages()[0].tensor) == wanted, "and no longer");
    for (double decay : {-0.5, 1.0, not_a_number}) {
      std::string error = error_of([&] { Ema(t.model.parameters(), decay); });
      check(error.find("[Ema] a decay of ") == 0 && error.find("; it is from 0 to below 1, as 0.999") != error.npos,
            "{}", error);
    }
    Mlp empty(m, true);
    std::string error = error_of([&] { Ema(empty.parameters(), 0.5); });
    check(error.find("has no values yet: materialize() the model first") != error.npos, "{}", error);
    return 0;
  });
}

TEST_CASE("a z-loss adds the square of each counted token's log of the sum of exp, in training alone") {
  auto losses = [](const std::string& mesh, const std::string& plan, double z) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      LlamaTrainingOptions options;
      options.z_loss = z;
      ParallelPlan p = plan.empty() ? ParallelPlan{} : ParallelPlan::load(plan_file(plan));
      LlamaTraining t(m, small_llama(), p, options);
      Layout layout = batch_layout(m.shape());
      std::vector<int64_t> ids(16), targets(16);
      for (size_t i = 0; i < 16; ++i)
        ids[i] = int64_t(i * 5 % 11), targets[i] = i % 4 ? int64_t(i * 3 % 11) : ignored_target;
      Batch b{DistributedTensor::distribute(Tensor::of<int64_t>({2, 8}, ids), m, layout),
              DistributedTensor::distribute(Tensor::of<int64_t>({2, 8}, targets), m, layout)};
      double mean = 0;
      {
        NoGrad scope(m.rank_state());
        DistributedTensor squares = ops::square(ops::logsumexp(t.model(b[0]), {-1}));
        DistributedTensor counted = ops::where(ops::ne(b[1], double(ignored_target)), squares, 0.0);
        mean = ops::sum(counted).redistribute(Layout()).item() / 12;
      }
      double evaluated = t.trainer.evaluate(b);
      return std::vector{t.trainer.step(b).loss, evaluated, mean};
    })[0];
  };
  std::vector<double> without = losses("dp=1", "", 0), with = losses("dp=1", "", 0.1);
  CHECK(with[1] == without[0]);
  CHECK(with[0] == Approx(without[0] + 0.1 * with[2]).epsilon(1e-5));
  CHECK(losses("tp=2", "tp_sp_loss.json", 0.1)[0] == Approx(with[0]).epsilon(1e-5));
  CHECK(losses("dp=2", "ddp.json", 0.1)[0] == Approx(with[0]).epsilon(1e-5));
}

TEST_CASE("a z-loss that cannot be is an error") {
  on_mesh("tp=2", [](const DeviceMesh& m) {
    LlamaTrainingOptions options;
    options.z_loss = -1;
    ParallelPlan fused = ParallelPlan::from_json(json(
        R"({"tensor_parallel": {"axis": "tp", "plan": {"criterion": "LinearLossParallel", "lm_head": "ColwiseParallel"}}})"));
    std::string error = error_of([&] { LlamaTraining(m, small_llama(), fused, options); });
    check(error == "[causal_lm_loss] a z-loss of -1; it is 0 or more, as 1e-4", "{}", error);
    options.z_loss = 1e-4;
    LlamaTraining t(m, small_llama(), fused, options);
    error = error_of([&] {
      Tensor ids = Tensor::zeros(m.rank_state().allocator(), DType::i64, {2, 8});
      DistributedTensor all = DistributedTensor::distribute(ids, m, batch_layout(m.shape()));
      t.trainer.step({all, all});
    });
    check(error.find("[causal_lm_loss] a z-loss needs the logits, which LinearLossParallel never makes: leave one of "
                     "them out") != error.npos,
          "{}", error);
    return 0;
  });
}
