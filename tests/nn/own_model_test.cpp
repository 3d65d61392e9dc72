// The trainer of any module, loss and optimizer.
#include "dtensor/creation.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// The simplest optimizer: what a trainer needs of one.
class Sgd : public Optimizer {
 public:
  using Optimizer::Optimizer;
  void begin_step(double lr) override { ++steps_, lr_ = lr; }
  void apply(const std::vector<DistributedTensor>& gradients, const DistributedTensor& norm, double clip) override {
    if (parameters_[0]->stored().is_meta() || !std::isfinite(norm.item())) return;
    double scale = clip > 0 && norm.item() > clip ? clip / norm.item() : 1;
    NoGrad scope(parameters_[0]->stored().mesh().rank_state());
    for (size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i]->stored().copy_(ops::sub(parameters_[i]->stored(), ops::mul(gradients[i], lr_ * scale)));
      parameters_[i]->renew();
    }
  }
  std::vector<State> state() override { return {}; }

 private:
  double lr_ = 0;
};

// Rows that are sharded over dp; x [rows, 6] and y [rows, 6].
Batch made_up(const DeviceMesh& m, int64_t rows) {
  Layout layout = batch_layout(m.shape());
  return {DistributedTensor::distribute(f32({rows, 6}, 1), m, layout),
          DistributedTensor::distribute(f32({rows, 6}, 2), m, layout)};
}

ParallelPlan plan_of(const MeshShape& mesh) {
  if (mesh.find("tp") < 0) return {};
  return ParallelPlan::from_json(
      json(R"({"tensor_parallel": {"axis": "tp", "plan": {"up": "ColwiseParallel", "down": "RowwiseParallel"}}})"));
}

struct Result {
  std::vector<double> loss, norm;
  std::vector<float> up;
  double evaluated, seen_before;
};

enum class Terms { all, rows, one };

Loss loss_of(Mlp& model, Terms terms) {
  return [&model, terms](const Batch& b) {
    DistributedTensor each = ops::square(model(b[0]) - b[1]);
    return terms == Terms::all ? each : terms == Terms::rows ? ops::mean(each, {1}) : ops::mean(each);
  };
}

std::vector<Result> train(const std::string& mesh, Terms terms, TrainerOptions options, int64_t rows = 8) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Mlp model(m, true);
    plan_of(m.shape()).apply(model);
    materialize(model, 3);
    Sgd optimizer(model.parameters());
    Trainer trainer(model, loss_of(model, terms), optimizer, options);
    Result r{{}, {}, {}, 0, trainer.evaluate(made_up(m, rows))};
    for (int i = 0; i < 4; ++i) {
      Trainer::Step s = trainer.step(made_up(m, rows));
      r.loss.push_back(s.loss), r.norm.push_back(s.grad_norm);
    }
    r.evaluated = trainer.evaluate(made_up(m, rows));
    Tensor up = model.up.weight.stored().full_tensor();
    r.up.assign(up.data<float>(), up.data<float>() + up.numel());
    return r;
  });
}

}  // namespace

TEST_CASE("any module, loss and optimizer train alike on every mesh and evaluating is a step's loss without the step") {
  for (Terms terms : {Terms::all, Terms::rows, Terms::one}) {
    Result one = train("dp=1", terms, {.lr = 0.5})[0];
    CHECK(one.loss[3] < one.loss[0]);
    CHECK(one.seen_before == one.loss[0]);
    CHECK(one.evaluated < one.loss[3]);
    for (const char* mesh : {"dp=2", "dp=4", "tp=2", "dp=2,tp=2"})
      for (const Result& r : train(mesh, terms, {.lr = 0.5})) {
        INFO(mesh);
        for (size_t i = 0; i < 4; ++i) {
          CHECK(r.loss[i] == Approx(one.loss[i]).epsilon(1e-5));
          CHECK(r.norm[i] == Approx(one.norm[i]).epsilon(1e-5));
        }
        CHECK(r.evaluated == Approx(one.evaluated).epsilon(1e-5));
      }
  }
}

TEST_CASE("law 6: the mean of a loss's terms has the same bits in one pass and in several") {
  for (Terms terms : {Terms::all, Terms::rows}) {
    Result whole = train("dp=1", terms, {.lr = 0.5})[0];
    for (int64_t size : {4, 2, 1}) {
      INFO("micro-batches of " << size);
      Result parts = train("dp=1", terms, {.lr = 0.5, .micro_batch_size = size})[0];
      CHECK(parts.loss == whole.loss);
      CHECK(parts.up == whole.up);
      CHECK(parts.evaluated == whole.evaluated);
    }
  }
  // One number of each micro-batch: their mean.
  CHECK(train("dp=2", Terms::one, {.lr = 0.5, .micro_batch_size = 2})[0].loss[3] ==
        Approx(train("dp=1", Terms::one, {.lr = 0.5})[0].loss[3]));
}

TEST_CASE("law 8: the dry run of an own model is the run") {
  for (const char* mesh : {"dp=2", "tp=2", "dp=2,tp=2"})
    for (int64_t size : {0, 4}) {
      auto step = [&](const DeviceMesh& m, bool meta) {
        Mlp model(m, true);
        plan_of(m.shape()).apply(model);
        materialize(model, 3);
        AdamW optimizer(model.parameters(), {});
        Trainer trainer(model, loss_of(model, Terms::rows), optimizer, {.micro_batch_size = size});
        Layout layout = batch_layout(m.shape());
        Batch batch = meta ? Batch{empty(m, {DType::f32, {8, 6}, layout}), empty(m, {DType::f32, {8, 6}, layout})}
                           : made_up(m, 8);
        CommLog log(m.rank_state());
        bool number = std::isfinite(trainer.step(batch).loss);
        check(number != meta, "the loss is a number: {}", number);
        return log.entries();
      };
      Entries real = on_mesh(mesh, [&](const DeviceMesh& m) { return step(m, false); })[0];
      auto rank = Rank::recorded(MeshShape::parse(mesh).world());
      CHECK_FALSE(real.empty());
      CHECK(listing(step(DeviceMesh(*rank, mesh), true)) == listing(real));
    }
}

TEST_CASE("a trainer takes the optimizer's parameters alone and any schedule") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "dp=1");
  Mlp model(m, true);
  materialize(model, 3);
  CHECK(model.parameter_count() == 6 * 8 + 8 + 8 * 6 + 6);
  Sgd optimizer(model.down.parameters());
  Trainer trainer(model, loss_of(model, Terms::all), optimizer,
                  {.lr = [](int64_t step) { return 0.1 / double(step + 1); }});
  std::vector<double> up = values(model.up.weight.stored().local()), down = values(model.down.weight.stored().local());
  CHECK(trainer.step(made_up(m, 8)).lr == 0.1);
  CHECK(trainer.step(made_up(m, 8)).lr == 0.05);
  CHECK(values(model.up.weight.stored().local()) == up);  // frozen
  CHECK(values(model.down.weight.stored().local()) != down);
}

TEST_CASE("errors of a trainer") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "dp=1");
  Mlp model(m), other(m);
  materialize(model, 3);
  Sgd optimizer(model.parameters());
  auto step = [&](Loss loss, int64_t size, const Batch& batch) {
    return error_of([&] { Trainer(model, loss, optimizer, {.micro_batch_size = size}).step(batch); });
  };
  CHECK(error_of([&] { Trainer(other, loss_of(model, Terms::all), optimizer, {}); }) ==
        "[Trainer] the optimizer has up.weight, which is no parameter of the model");
  Loss ids = [](const Batch&b) { return ops::cast(b[0], DType::i64); },
       nothing = [](const Batch&) { return DistributedTensor(); };
  CHECK(step(ids, 0, made_up(m, 8)) == "[Trainer] the loss is i64[8,6] dp=Replicate; it needs floating numbers");
  CHECK(step(nothing, 0, made_up(m, 8)) == "[Trainer] the loss is undefined; it needs floating numbers");
  Batch uneven{made_up(m, 8)[0], made_up(m, 4)[1]};
  CHECK(step(loss_of(model, Terms::all), 2, uneven) ==
        "[Trainer] micro-batches are rows of all tensors of a batch, but one is f32[8,6] dp=Replicate and another "
        "f32[4,6] dp=Replicate: give dimension 0 of all the same size and layout");
  CHECK(step(loss_of(model, Terms::all), 2, {}) == "[Trainer] a batch without tensors has no micro-batches");
  int calls = 0;
  Loss unlike = [&](const Batch& b) {
    return ++calls == 1 ? ops::square(model(b[0])) : ops::mean(ops::square(model(b[0])));
  };
  CHECK(step(unlike, 4, made_up(m, 8)) == "[Trainer] the loss has 1 terms in micro-batch 1, but 24 in the first");

  // What is not finite is found in its micro-batch; nothing was changed.
  std::vector<double> before = values(model.up.weight.stored().local());
  Batch bad = made_up(m, 8);
  bad[0].local_for_writing().data<float>()[6 * 6] = NAN;
  CHECK_THAT(step(loss_of(model, Terms::all), 4, bad),
             Contains("the first value that is not finite is the output of linear in up. Lower the learning rate"));
  CHECK(values(model.up.weight.stored().local()) == before);
}
