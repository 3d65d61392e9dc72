#include "nn/train/adamw.h"

#include <map>
#include <numbers>

#include "dtensor/creation.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Weights : Callable<DistributedTensor(const DistributedTensor&)> {
  explicit Weights(const DeviceMesh& mesh) : Callable(mesh) {}
  std::string_view kind() const override { return "Weights"; }
  DistributedTensor forward(const DistributedTensor& x) override { return ops::linear(x, a()); }
  Parameter a{*this, "a", {5, 7}, Init::normal(1)}, b{*this, "b", {9}, Init::ones()},
      c{*this, "c", {4, 3}, Init::normal(0.5)};
};

std::vector<DistributedTensor> gradients_of(Weights& w, int step) {
  std::vector<DistributedTensor> g;
  for (Parameter* p : w.parameters())
    g.push_back(DistributedTensor::distribute(f32(p->shape(), 10 * step + int(g.size())), p->stored().mesh(),
                                              p->stored().layout()));
  return g;
}

std::vector<double> all_values(Weights& w) {
  std::vector<double> v;
  for (Parameter* p : w.parameters())
    for (double x : values(p->stored().full_tensor())) v.push_back(x);
  return v;
}

}  // namespace

namespace {

// A global norm of 1 / scale, which clipping to 1 brings to about `scale` times the gradients.
DistributedTensor norm_of(const DeviceMesh& m, double scale) {
  return DistributedTensor::distribute(Tensor::of<double>({}, {1 / scale - 1e-6}), m, Layout());
}

}  // namespace

TEST_CASE("AdamW is the published algorithm") {
  struct Case {
    AdamWOptions options;
    double scale;
  };
  const Case cases[] = {{{}, 1},
                        {{.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01}, 1},
                        {{.eps = 0.1, .weight_decay = 0}, 0.25},
                        {{.beta1 = 0, .beta2 = 0.5, .eps = 1e-2, .weight_decay = 1}, 1}};
  for (const Case& c : cases) {
    constexpr int steps = 5;
    auto lr = [](int step) { return 0.1 / (1 + step); };
    auto rank = Rank::single();
    DeviceMesh m(*rank, "x=1");
    Weights w(m);
    materialize(w, 3);
    // By hand, in double.
    std::vector<double> p = all_values(w), avg(p.size()), sq(p.size());
    for (int t = 1; t <= steps; ++t) {
      std::vector<double> g;
      for (auto& x : gradients_of(w, t))
        for (double v : values(x.local())) g.push_back(v * c.scale);
      for (size_t i = 0; i < p.size(); ++i) {
        p[i] -= lr(t) * c.options.weight_decay * p[i];
        avg[i] = c.options.beta1 * avg[i] + (1 - c.options.beta1) * g[i];
        sq[i] = c.options.beta2 * sq[i] + (1 - c.options.beta2) * g[i] * g[i];
        double m_hat = avg[i] / (1 - std::pow(c.options.beta1, t)), v_hat = sq[i] / (1 - std::pow(c.options.beta2, t));
        p[i] -= lr(t) * m_hat / (std::sqrt(v_hat) + c.options.eps);
      }
    }
    for (const char* mesh : {"x=1", "x=2", "x=3"}) {
      auto result = on_mesh(mesh, [&](const DeviceMesh& dm) {
                      Weights x(dm);
                      x.a.place(0, Shard(1)), x.b.place(0, Shard(0));
                      materialize(x, 3);
                      AdamW adamw(x.parameters(), c.options);
                      CommLog log(dm.rank_state());
                      for (int t = 1; t <= steps; ++t) {
                        uint32_t version = x.a.stored().version();
                        adamw.step(gradients_of(x, t), lr(t), norm_of(dm, c.scale), 1);
                        check(x.a.stored().version() > version, "the version stays {}", version);
                        check(adamw.steps() == t, "{} steps", adamw.steps());
                      }
                      check(log.entries().empty(), "an optimizer communicates");
                      return all_values(x);
                    }).back();
      INFO(mesh << ", decay " << c.options.weight_decay);
      CHECK(difference(result, p) < 2e-6);
    }
  }
}

TEST_CASE("AdamW gives the same bits however parameters are sharded") {
  auto run = [](const char* mesh, Placement place) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Weights w(m);
                     w.a.place(0, place), w.c.place(0, place);
                     materialize(w, 3);
                     AdamW adamw(w.parameters(), {});
                     for (int t = 1; t <= 3; ++t) adamw.step(gradients_of(w, t), 0.01, norm_of(m, 0.7), 1);
                     return all_values(w);
                   })
        .back();
  };
  auto one = run("x=1", Replicate());
  for (const char* mesh : {"x=2", "x=3", "x=4"})
    for (Placement p : {Shard(0), Shard(1)}) CHECK(run(mesh, p) == one);
}

TEST_CASE("AdamW changes nothing where the gradient norm is not finite") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Weights w(m);
  materialize(w, 3);
  auto before = all_values(w);
  AdamW adamw(w.parameters(), {});
  adamw.step(gradients_of(w, 1), 0.1, norm_of(m, 0), 1);
  CHECK(all_values(w) == before);
  adamw.step(gradients_of(w, 1), 0.1, norm_of(m, 1), 1);
  CHECK(all_values(w) != before);
}

TEST_CASE("errors of AdamW, and its step on meta") {
  auto rank = Rank::recorded(2);
  DeviceMesh m(*rank, "x=2");
  Weights w(m);
  w.a.place(0, Shard(0));
  materialize(w, 3);
  AdamW adamw(w.parameters(), {});
  auto meta = [&](Parameter* p) { return DistributedTensor::empty(m, TensorSpec(p->stored().spec())); };
  adamw.step({meta(&w.a), meta(&w.b), meta(&w.c)}, 0.1);
  CHECK(adamw.steps() == 1);
  CHECK(error_of([&] { adamw.step({meta(&w.a)}, 0.1); }) == "[AdamW] 1 gradients for 3 parameters");
  CHECK_THAT(error_of([] {
               on_mesh("x=2", [](const DeviceMesh& dm) {
                 Weights x(dm);
                 x.a.place(0, Shard(0));
                 materialize(x, 3);
                 auto g = gradients_of(x, 1);
                 g[0] = g[0].redistribute({Replicate()});
                 AdamW(x.parameters(), {}).step(g, 0.1);
               });
             }),
             Contains("[AdamW] the gradient of a is f32[5,7] x=Replicate, not f32[5,7] x=Shard(0)"));
}

TEST_CASE("a parameter that is computed with in bf16 has a copy, which the optimizer renews") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Weights w(m);
  CHECK(error_of([&] { w.a.compute_in(DType::i64); }) == "[Parameter] a cannot be computed with in i64");
  w.a.compute_in(DType::bf16), w.b.compute_in(DType::bf16), w.b.compute_in(DType::f32);
  materialize(w, 3);
  CHECK((w.a.value().dtype() == DType::bf16 && w.a.stored().dtype() == DType::f32 &&
         w.b.value().id() == w.b.stored().id()));
  auto copied = [&] { return values(w.a.value().local()) == values(ops::cast(w.a.stored(), DType::bf16).local()); };
  CHECK(copied());
  CHECK(error_of([&] { w.a.compute_in(DType::f32); }) ==
        "[Parameter] a has values already: choose its form before materialize()");
  uint64_t id = w.a.value().id();
  auto before = values(w.a.value().local());
  AdamW(w.parameters(), {}).step(gradients_of(w, 1), 0.1);
  CHECK(values(w.a.value().local()) != before);
  CHECK(copied());
  CHECK(w.a.value().id() == id);
}

TEST_CASE("AdamW's states are named distributed tensors, which another mesh can go on with") {
  struct Saved {
    int64_t steps = 0;
    std::map<std::string, std::vector<float>> tensors;  // whole, by path
    std::vector<double> last;
  };
  auto floats = [](const DistributedTensor& x) {
    Tensor t = x.full_tensor();
    return std::vector<float>(t.data<float>(), t.data<float>() + t.numel());
  };
  // Goes on from what was saved, if anything, until step `to`.
  auto run = [&](const char* mesh, Placement place, const Saved* from, int to) {
    return on_mesh(
               mesh,
               [&](const DeviceMesh& m) {
                 Weights w(m);
                 w.a.place(0, place), w.c.place(0, place);
                 materialize(w, 3);
                 AdamW adamw(w.parameters(), {});
                 auto load = [&](DistributedTensor& x, const std::string& path) {
                   x.copy_(DistributedTensor::distribute(Tensor::of<float>(x.shape(), from->tensors.at(path)), m,
                                                         x.layout()));
                 };
                 std::vector<AdamW::State> states = adamw.state();
                 check(states.size() == 6 && states[2].path() == "exp_avg.b" && states[5].path() == "exp_avg_sq.c",
                       "{} states", states.size());
                 for (AdamW::State& s : states) {
                   check(&s.tensor.spec() == &s.parameter->stored().spec(), "{} is {}", s.path(), to_string(s.tensor));
                   check(s.name == "exp_avg" || s.name == "exp_avg_sq", "a state {}", s.name);
                   if (from)
                     load(s.tensor, s.path());
                   else
                     check(values(s.tensor.full_tensor()) == std::vector<double>(size_t(numel(s.tensor.shape())), 0),
                           "{} begins with zeros", s.path());
                 }
                 if (from) {
                   for (Parameter* p : w.parameters()) load(p->stored(), p->path());
                   adamw.set_steps(from->steps);
                 }
                 for (int t = int(adamw.steps()) + 1; t <= to; ++t)
                   adamw.step(gradients_of(w, t), 0.01, norm_of(m, 0.7), 1);
                 Saved s{adamw.steps(), {}, all_values(w)};
                 for (AdamW::State& x : adamw.state()) s.tensors[x.path()] = floats(x.tensor);
                 for (Parameter* p : w.parameters()) s.tensors[p->path()] = floats(p->stored());
                 return s;
               })
        .back();
  };
  Saved whole = run("x=1", Replicate(), nullptr, 6);
  for (const char* first : {"x=1", "x=3"})
    for (const char* second : {"x=1", "x=2", "x=4"})
      for (Placement p : {Shard(0), Shard(1)}) {
        INFO(first << " then " << second << " " << to_string(p));
        Saved half = run(first, p, nullptr, 3);
        Saved all = run(second, p, &half, 6);
        CHECK(half.steps == 3);
        CHECK(all.steps == 6);
        CHECK(all.last == whole.last);  // to the bit
        CHECK(all.tensors == whole.tensors);
      }
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Weights w(m);
  AdamW adamw(w.parameters(), {});
  CHECK(error_of([&] { adamw.state(); }) == "[AdamW] a has no values yet: materialize() the model first");
  CHECK(error_of([&] { adamw.set_steps(-1); }) == "[Optimizer] -1 steps cannot have been taken");
}

TEST_CASE("the learning rate warms up and falls as a cosine") {
  struct Case {
    int64_t step, warmup, total;
    double factor;
  };
  const Case cases[] = {{0, 10, 110, 0.1},
                        {5, 10, 110, 0.55},
                        {9, 10, 110, 0.91},
                        {10, 10, 110, 1},
                        {35, 10, 110, 0.5 * (1 + std::numbers::sqrt2 / 2)},
                        {60, 10, 110, 0.5},
                        {110, 10, 110, 0},
                        {1000, 10, 110, 0},
                        {0, 0, 100, 1},
                        {50, 0, 100, 0.5},
                        {0, 5, 5, 0.1},
                        {5, 5, 5, 1},
                        {7, 10, 5, 0.1 + 0.63},
                        {12, 10, 5, 1}};
  for (const Case& c : cases) {
    INFO("step " << c.step << " of " << c.total << ", warm-up " << c.warmup);
    CHECK(warmup_cosine(3e-4, c.warmup, c.total)(c.step) == Approx(3e-4 * c.factor).epsilon(1e-12).margin(1e-18));
  }
}

TEST_CASE("schedules fall as a cosine, in a line, or late, to the least rate") {
  struct Case {
    Decay decay;
    int64_t step;
    double lr;  // peak 10, least 2, warm-up 10 of 110 steps
  };
  const Case cases[] = {{Decay::cosine, 60, 6}, {Decay::cosine, 110, 2}, {Decay::linear, 10, 10},
                        {Decay::linear, 35, 8}, {Decay::linear, 110, 2}, {Decay::linear, 999, 2},
                        {Decay::wsd, 0, 1},     {Decay::wsd, 10, 10},    {Decay::wsd, 88, 10},
                        {Decay::wsd, 99, 6},    {Decay::wsd, 110, 2}};
  for (const Case& c : cases) {
    INFO(int(c.decay) << " at " << c.step);
    CHECK(warmup_then_decay({.decay = c.decay, .peak = 10, .warmup = 10, .total = 110, .least = 2})(c.step) ==
          Approx(c.lr).epsilon(1e-12));
  }
  CHECK(error_of([] { warmup_then_decay({.peak = 1, .least = 2}); }) ==
        "[Schedule] the least learning rate 2 is above the peak 1");
}

TEST_CASE("parameters whose paths end in a pattern do not decay") {
  auto after_a_step = [](std::vector<std::string> patterns) {
    auto rank = Rank::single();
    DeviceMesh m(*rank, "x=1");
    Mlp model(m, true);
    materialize(model, 3);
    for (Parameter* p : model.parameters()) fill(p->stored().local_for_writing(), 1);
    AdamW adamw(model.parameters(), {.weight_decay = 0.5, .no_decay = patterns});
    std::vector<DistributedTensor> zeros;
    for (Parameter* p : model.parameters()) zeros.push_back(zeros_like(p->stored()));
    adamw.step(zeros, 0.5);
    std::vector<double> v;
    for (Parameter* p : model.parameters()) v.push_back(values(p->stored().local())[0]);
    return v;  // up.weight, up.bias, down.weight, down.bias
  };
  using V = std::vector<double>;
  CHECK(after_a_step({}) == V{0.75, 0.75, 0.75, 0.75});
  CHECK(after_a_step({"bias"}) == V{0.75, 1, 0.75, 1});
  CHECK(after_a_step({"up.*"}) == V{1, 1, 0.75, 0.75});
  CHECK(after_a_step({"*n.weight", "up.bias"}) == V{0.75, 1, 1, 0.75});
  CHECK(error_of([&] { after_a_step({"eight"}); }) ==
        "[AdamW] no parameter's path ends in \"eight\", which is not to decay");
}

TEST_CASE("the global norm counts each element once on every mesh") {
  double expected = 0;
  std::vector<Shape> shapes{{5, 7}, {9}, {4, 3}, {2}};
  for (size_t i = 0; i < shapes.size(); ++i)
    for (double v : values(f32(shapes[i], int(i)))) expected += v * v;
  expected = std::sqrt(expected);
  struct Case {
    const char* mesh;
    std::vector<const char*> layouts;
    int entries;  // reductions: one per layout that is not Replicate, in one launch per set of axes
  };
  const Case cases[] = {{"x=1", {"", "", "", ""}, 0},
                        {"x=2", {"", "", "", ""}, 0},
                        {"x=2", {"x=Shard(0)", "x=Shard(0)", "x=Shard(1)", ""}, 1},
                        {"x=4", {"x=Shard(1)", "x=Shard(0)", "x=Shard(1)", "x=Shard(0)"}, 1},
                        {"x=2,y=2", {"x=Shard(0)", "y=Shard(0)", "x=Shard(1) y=Shard(0)", ""}, 3},
                        {"x=2,y=3", {"y=Shard(0) x=Shard(0)", "x=Shard(0) y=Shard(0)", "", "y=Shard(0)"}, 2},
                        {"x=2", {"x=Partial", "", "x=Shard(0)", "x=Partial"}, 3},
                        {"x=2,y=2", {"x=Partial y=Shard(0)", "x=Partial y=Partial", "", ""}, 3}};
  for (const Case& c : cases) {
    auto results = on_mesh(c.mesh, [&](const DeviceMesh& m) {
      m.rank_state().strict = true;
      std::vector<DistributedTensor> g;
      for (size_t i = 0; i < shapes.size(); ++i)
        g.push_back(DistributedTensor::distribute(f32(shapes[i], int(i)), m,
                                                  parse_layout(c.layouts[i], m.shape(), shapes[i].dims())));
      CommLog log(m.rank_state());
      DistributedTensor norm = global_norm(g);
      check(norm.dtype() == DType::f64 && norm.layout().is_replicated(), "{}", to_string(norm));
      for (const auto& e : log.entries())
        check(e.reason == "gradient norm" && e.asked_for, "{}", listing(log.entries()));
      return std::pair(norm.item(), log.entries());
    });
    INFO(c.mesh << " " << c.layouts[0] << "\n" << listing(results[0].second));
    for (const auto& r : results) {
      CHECK(r.first == Approx(expected).epsilon(1e-12));
      CHECK(r.first == results[0].first);
    }
    CHECK(int(results[0].second.size()) == c.entries);
  }
  CHECK(error_of([] { global_norm({}); }) == "[global_norm] no gradients");
  auto rank = Rank::single();
  DistributedTensor g = DistributedTensor::distribute(f32({3}, 1), DeviceMesh(*rank, "x=1"), Layout());
  CHECK_THAT(error_of([&] {
               global_norm({g, DistributedTensor()});
             }),
             Contains("[global_norm] gradient 1 of 2 is undefined: nothing led to it"));
}

TEST_CASE("gradients go to the stored layouts in few launches, with zeros where there are none") {
  Entries e = on_mesh("dp=2", [](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    Weights w(m);
    w.b.place(0, Shard(0));
    materialize(w, 1);
    Autograd autograd(rank);
    watch_parameters(autograd, w.parameters());
    DistributedTensor x = DistributedTensor::distribute(f32({4, 7}, 1), m, {Shard(0)});
    autograd.backward(ops::sum(ops::linear(x, w.a())) + ops::sum(ops::linear(x, ops::mul(w.a(), 2))));
    CommLog log(rank);
    auto g = reduce_gradients(autograd, w.parameters());
    for (size_t i = 0; i < 3; ++i)
      check(g[i].layout() == w.parameters()[i]->stored().layout() && g[i].dtype() == DType::f32, "{}: {}", i,
            to_string(g[i]));
    check(values(g[1].full_tensor()) == std::vector<double>(9, 0), "zeros");
    check(values(g[2].full_tensor()) == std::vector<double>(12, 0), "zeros");
    check(autograd.gradient(w.a.stored()).layout() == w.a.stored().layout(), "what is reduced is the store's");
    Entries some(log.entries().begin(), log.entries().begin() + 1);
    return some;
  })[0];
  REQUIRE(e.size() == 1);
  CHECK(e[0].collective == "all_reduce");
  CHECK(e[0].reason == "gradient of a");
  auto rank = Rank::single();
  GradientStore store(*rank);
  CHECK(reduce_gradients(store, {}).empty());
}
