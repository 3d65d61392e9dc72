#include "nn/record.h"

#include <fmt/format.h>
#include <optional>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

const Layout whole;  // Replicate on every axis

DistributedTensor total(const DistributedTensor& x) { return ops::sum(x).redistribute(whole); }

// A card with two outputs, 2x and 3x, that keeps nothing.
void twice_thrice(const Context&, std::span<const Tensor> in, std::span<Tensor> out) {
  for (int64_t i = 0; i < in[0].numel(); ++i) {
    out[0].data<double>()[i] = 2 * in[0].data<double>()[i];
    out[1].data<double>()[i] = 3 * in[0].data<double>()[i];
  }
}
void twice_thrice_gradient(Gradient& g) {
  DistributedTensor d;
  for (int i : {0, 1})
    if (g.of_output(i).defined()) {
      DistributedTensor part = ops::mul(g.of_output(i), 2 + i);
      d = d.defined() ? ops::add(d, part) : part;
    }
  g.set(0, d);
}
const Op two_outputs_op = {.name = "two_outputs",
                           .rule = "...->...,...",
                           .passes = {linear_in({0})},
                           .cpu = twice_thrice,
                           .gradient = twice_thrice_gradient};

void identity(const Context&, std::span<const Tensor> in, std::span<Tensor> out) { copy(in[0], out[0]); }
void ask_for_input(Gradient& g) { g.set(0, g.input(0)); }
void wrong_shape(Gradient& g) { g.set(0, ops::sum(g.of_output())); }
const Op forgetful_op = {.name = "forgetful", .rule = "...->...", .cpu = identity, .gradient = ask_for_input};
const Op wrong_shape_op = {.name = "wrong_shape", .rule = "...->...", .cpu = identity, .gradient = wrong_shape};

}  // namespace

TEST_CASE("law 1: a redistribution passes its gradient through and there are no adjoint collectives") {
  const Placement all[] = {Replicate(), Shard(0), Shard(1), Partial(), Partial(Reduce::avg), Partial(Reduce::max)};
  auto mesh = GENERATE(as<std::string>(), "x=1", "x=2", "x=3");
  on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    Tensor value = f64({5, 4}, 1), weight = f64({5, 4}, 2);
    std::vector<double> expected = values(value), w = values(weight);
    for (size_t i = 0; i < w.size(); ++i) expected[i] *= 2 * w[i];
    DistributedTensor c = DistributedTensor::distribute(weight, m, whole);
    for (Placement from : all)
      for (Placement through : all)
        for (Placement to : all) {
          std::string where = fmt::format("{} -> {} -> {}", to_string(from), to_string(through), to_string(to));
          DistributedTensor x = DistributedTensor::distribute(value, m, {from});
          Autograd autograd(rank);
          autograd.watch(x);
          DistributedTensor loss = total(ops::square(x.redistribute({through}).redistribute({to})) * c);
          CommLog log(rank);
          autograd.backward(loss);
          check(log.entries().empty(), "{}: the backward pass communicates:\n{}", where, listing(log.entries()));
          DistributedTensor g = autograd.gradient(x);
          check(g.defined() && g.shape() == x.shape(), "{}: gradient {}", where, to_string(g));
          check(difference(values(g.full_tensor()), expected) < 1e-14, "{}: a wrong gradient", where);
        }
  });
}

TEST_CASE("the gradients of a value made by an op are summed as they arrive and brought once to its own placement") {
  struct Case {
    Placement value;
    const char* collectives;  // of the whole backward pass, however many contributions there are
    Placement arrives;        // so the gradient of the leaf before it has this placement
  };
  const Case cases[] = {{Replicate(), "all_reduce 1", Replicate()},
                        {Shard(0), "reduce_scatter 1", Shard(0)},
                        {Shard(1), "reduce_scatter 1", Shard(1)},
                        {Partial(), "all_reduce 1", Replicate()}};
  struct Result {
    std::string collectives, reason;
    Placement placement;
    std::vector<double> gradient;
  };
  auto run = [](const DeviceMesh& m, Placement placement, int uses, bool direct) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    DistributedTensor leaf = DistributedTensor::distribute(f64({4, 6}, 1), m, {placement});
    Autograd autograd(rank);
    autograd.watch(leaf);
    DistributedTensor h = ops::mul(leaf, 0.5), sum;
    auto add = [&](const DistributedTensor& x) { sum = sum.defined() ? ops::add(sum, x) : x; };
    for (int i = 0; i < uses; ++i) {
      DistributedTensor w = DistributedTensor::distribute(f64({8, 6}, 2 + i), m, {Shard(0)});
      autograd.watch(w);
      add(ops::sum(ops::square(ops::linear(h.redistribute({Replicate()}), w))));
    }
    DistributedTensor loss = sum.redistribute(whole);
    if (direct) loss = loss + total(h);  // a contribution that is not Partial
    CommLog log(rank);
    autograd.backward(loss);
    std::string collectives = log.entries().empty() ? "" : counts(log.entries(), Phase::backward);
    return Result{collectives, log.entries().empty() ? "" : log.entries()[0].reason,
                  autograd.gradient(leaf).layout()[0], values(autograd.gradient(leaf).full_tensor())};
  };
  for (const Case& c : cases)
    for (int uses : {1, 2, 3})
      for (bool direct : {false, true}) {
        INFO(to_string(c.value) << ", " << uses << " uses" << (direct ? " and a direct one" : ""));
        Result one = on_mesh("tp=1", [&](const DeviceMesh& m) { return run(m, c.value, uses, direct); })[0];
        CHECK(one.collectives == "");
        for (const char* mesh : {"tp=2", "tp=3"}) {
          Result r = on_mesh(mesh, [&](const DeviceMesh& m) { return run(m, c.value, uses, direct); })[0];
          CHECK(r.collectives == c.collectives);
          CHECK(r.reason == "gradient of mul_scalar");
          CHECK(r.placement == c.arrives);
          CHECK(difference(r.gradient, one.gradient) < 1e-13);
        }
      }
}

TEST_CASE("a leaf's gradient stays as it arrives") {
  on_mesh("dp=2", [](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    DistributedTensor w = DistributedTensor::distribute(f64({3, 4}, 1), m, whole);
    auto rows = [&](int seed) { return DistributedTensor::distribute(f64({6, 4}, seed), m, {Shard(0)}); };
    auto product = [&](int seed) { return ops::sum(ops::linear(rows(seed), w)); };
    auto expected = [&](int seed) {  // of product(): the sum of the rows, for each output
      std::vector<double> x = values(f64({6, 4}, seed)), g(12);
      for (size_t o = 0; o < 3; ++o)
        for (size_t i = 0; i < 24; ++i) g[o * 4 + i % 4] += x[i];
      return g;
    };
    CommLog log(rank);
    {  // one contribution
      Autograd autograd(rank);
      autograd.watch(w);
      autograd.backward(product(2));  // the loss is Partial itself: the same logical value
      check(autograd.gradient(w).layout() == Layout{Partial()}, "one: {}", to_string(autograd.gradient(w)));
      check(log.entries().empty(), "{}", listing(log.entries()));
      check(difference(values(autograd.gradient(w).full_tensor()), expected(2)) < 1e-14, "one: values");
    }
    log.clear();
    {  // two, added as they are; then a third that is Replicate, and a second backward pass
      Autograd autograd(rank);
      autograd.watch(w);
      autograd.backward(product(2) + product(3));
      check(autograd.gradient(w).layout() == Layout{Partial()}, "two: {}", to_string(autograd.gradient(w)));
      autograd.backward(ops::sum(w));
      check(autograd.gradient(w).layout() == Layout{Partial()}, "three: {}", to_string(autograd.gradient(w)));
      check(log.entries().empty(), "{}", listing(log.entries()));
      auto e = expected(2), more = expected(3);
      for (size_t i = 0; i < e.size(); ++i) e[i] += more[i] + 1;
      check(difference(values(autograd.gradient(w).full_tensor()), e) < 1e-14, "three: values");
      autograd.store.clear();
      check(!autograd.gradient(w).defined(), "cleared");
    }
  });
}

TEST_CASE("law 1: the collectives of a two-layer MLP are those of Megatron") {
  struct Case {
    const char *name, *mesh, *plan;
    Placement input;
    const char *forward, *backward, *parameters;  // collectives of each phase, loss and parameter gradients apart
  };
  const char* tensor_parallel =
      R"json({"tensor_parallel": {"axis": "tp", "plan": {"up": "ColwiseParallel", "down": "RowwiseParallel"}}})json";
  const char* sequence_parallel = R"json({"tensor_parallel": {"axis": "tp", "plan": {
      "": {"style": "PrepareModuleInput", "input_layouts": "Shard(1)", "desired_input_layouts": "Replicate"},
      "up": "ColwiseParallel", "down": {"style": "RowwiseParallel", "output_layouts": "Shard(1)"}}}})json";
  const Case cases[] = {
      {"alone", "dp=1", "{}", Replicate(), "", "", ""},
      {"tensor parallel", "tp=2", tensor_parallel, Replicate(), "all_reduce 1", "all_reduce 1", ""},
      {"tensor parallel", "tp=4", tensor_parallel, Replicate(), "all_reduce 1", "all_reduce 1", ""},
      {"sequence parallel", "tp=2", sequence_parallel, Shard(1), "all_gather 1, reduce_scatter 1",
       "all_gather 1, reduce_scatter 1", ""},
      {"sequence parallel", "tp=4", sequence_parallel, Shard(1), "all_gather 1, reduce_scatter 1",
       "all_gather 1, reduce_scatter 1", ""},
      {"data parallel", "dp=2", "{}", Shard(0), "", "", "all_reduce 2"},
      {"data parallel", "dp=3", "{}", Shard(0), "", "", "all_reduce 2"},
  };
  struct Result {
    Entries entries;
    std::vector<double> gradients;
  };
  auto run = [](const Case& c) {
    return on_mesh(c.mesh, [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      rank.strict = true;
      Mlp mlp(m);
      nn::ParallelPlan::from_json(json(c.plan)).apply(mlp);
      nn::materialize(mlp, 7);
      Autograd autograd(rank);
      for (nn::Parameter* p : mlp.parameters()) autograd.watch(p->stored());
      DistributedTensor leaf = DistributedTensor::distribute(f32({3, 4, 6}, 1), m, {c.input});
      autograd.watch(leaf);
      CommLog log(rank);
      DistributedTensor loss;
      {
        PhaseScope phase(rank, Phase::forward);
        DistributedTensor y = mlp(ops::mul(leaf, 1));  // made by an op, as in a model
        LabelScope label(rank, Label::Kind::reason, "loss");
        loss = total(ops::square(y));
      }
      autograd.backward(loss);
      PhaseScope phase(rank, Phase::optimizer);
      std::vector<DistributedTensor> gradients = nn::reduce_gradients(autograd, mlp.parameters());
      gradients.push_back(autograd.gradient(leaf));
      Result r;
      for (const auto& e : log.entries())
        if (e.reason != "loss") r.entries.push_back(e);
      for (auto& g : gradients)
        for (double v : values(g.full_tensor())) r.gradients.push_back(v);
      return r;
    })[0];
  };
  std::vector<double> alone = run(cases[0]).gradients;
  for (const Case& c : cases) {
    Result r = run(c);
    INFO(c.name << " on " << c.mesh << "\n" << listing(r.entries));
    CHECK(counts(r.entries, Phase::forward) == c.forward);
    CHECK(counts(r.entries, Phase::backward) == c.backward);
    CHECK(counts(r.entries, Phase::optimizer) == c.parameters);
    for (const auto& e : r.entries) {
      CHECK(e.asked_for);
      if (e.phase == Phase::optimizer) CHECK(e.group == r.entries.back().group);  // one launch
    }
    CHECK(difference(r.gradients, alone) < 1e-6);
  }
}

TEST_CASE("a result that is remade is dropped after the forward pass") {
  struct Result {
    int64_t bytes;  // in use after forward
    std::string backward;
    Entries entries;
    std::vector<double> gradients;
  };
  auto run = [](bool remake, bool twice) {
    return on_mesh("dp=2", [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      DistributedTensor w = DistributedTensor::distribute(f64({64, 64}, 1), m, {Shard(0)});
      DistributedTensor x = DistributedTensor::distribute(f64({2, 64}, 2), m, {Shard(0)});
      Autograd autograd(rank);
      autograd.watch(w), autograd.watch(x);
      CommLog log(rank);
      DistributedTensor loss;
      {
        PhaseScope phase(rank, Phase::forward);
        DistributedTensor full = w.redistribute({Replicate()}, {.remake = remake});
        // A recipe of a recipe starts from the first source.
        if (twice)
          full = w.redistribute({Shard(1)}, {.remake = remake}).redistribute({Replicate()}, {.remake = remake});
        loss = total(ops::square(ops::linear(x, full)));
      }
      int64_t bytes = rank.allocator()->bytes_in_use();
      autograd.backward(loss);
      Result r{bytes, counts(log.entries(), Phase::backward), log.entries(),
               values(autograd.gradient(w).full_tensor())};
      for (double v : values(autograd.gradient(x).full_tensor())) r.gradients.push_back(v);
      return r;
    })[0];
  };
  for (bool twice : {false, true}) {
    Result kept = run(false, twice), remade = run(true, twice);
    CHECK(kept.backward == "");
    CHECK(remade.backward == "all_gather 1");        // of w, and no all-to-all
    CHECK(kept.bytes - remade.bytes > 60 * 64 * 8);  // the gathered weight
    CHECK(remade.gradients == kept.gradients);
    bool found = false;
    for (const auto& e : remade.entries)
      if (e.phase == Phase::backward)
        found =
            e.reason == "remade for the gradient" && e.from == "dp=Shard(0)" && e.to == "dp=Replicate" && e.asked_for;
    INFO(listing(remade.entries));
    CHECK(found);
  }
}

TEST_CASE("what no gradient asks for is not remade") {
  on_mesh("dp=2", [](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    DistributedTensor w = DistributedTensor::distribute(f64({4, 4}, 1), m, {Shard(0)});
    Autograd autograd(rank);
    autograd.watch(w);
    DistributedTensor loss = total(ops::add(w.redistribute({Replicate()}, {.remake = true}), 1));  // add keeps nothing
    CommLog log(rank);
    autograd.backward(loss);
    check(log.entries().empty(), "{}", listing(log.entries()));
    check(difference(values(autograd.gradient(w).full_tensor()), std::vector<double>(16, 1)) == 0, "values");
  });
}

TEST_CASE("a kept value that was written in place since is an error") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  auto make = [&](int seed) { return DistributedTensor::distribute(f64({2, 3}, seed), m, whole); };
  DistributedTensor other = make(9);
  struct Case {
    const char *name, *error;  // "" where the value is not kept
    std::function<DistributedTensor(const DistributedTensor&, const DistributedTensor&)> op;
    int written;  // which value: 0 and 1 the inputs, 2 the output
  };
  auto mul = [](auto& a, auto& b) { return ops::mul(a, b); };
  auto add = [](auto& a, auto& b) { return ops::add(a, b); };
  auto exp = [](auto& a, auto&) { return ops::exp(a); };
  auto square = [](auto& a, auto&) { return ops::square(a); };
  const Case cases[] = {{"mul", "gradient of mul", mul, 0},
                        {"mul", "gradient of mul", mul, 1},
                        {"mul", "", mul, 2},
                        {"add", "", add, 0},
                        {"add", "", add, 2},
                        {"exp", "gradient of exp", exp, 2},
                        {"exp", "", exp, 0},
                        {"square", "gradient of square", square, 0}};
  for (const Case& c : cases) {
    INFO(c.name << ", value " << c.written);
    DistributedTensor v[3] = {make(1), make(2), {}};
    Autograd autograd(*rank);
    autograd.watch(v[0]), autograd.watch(v[1]);
    v[2] = c.op(v[0], v[1]);
    DistributedTensor loss = ops::sum(v[2]);
    v[c.written].copy_(other);
    std::string error = error_of([&] { autograd.backward(loss); });
    if (!*c.error)
      CHECK(error == "");
    else {
      CHECK_THAT(error, StartsWith("[backward] f64[2,3] x=Replicate, which the " + std::string(c.error) +
                                   " needs, was written in place"));
    }
  }
  SECTION("the source of a recipe") {
    on_mesh("dp=2", [](const DeviceMesh& mesh) {
      DistributedTensor w = DistributedTensor::distribute(f64({4, 4}, 1), mesh, {Shard(0)});
      Autograd autograd(mesh.rank_state());
      autograd.watch(w);
      DistributedTensor loss = total(ops::square(w.redistribute({Replicate()}, {.remake = true})));
      w.copy_(DistributedTensor::distribute(f64({4, 4}, 2), mesh, {Shard(0)}));
      std::string error = error_of([&] { autograd.backward(loss); });
      check(error.find("was written in place after it was used") != std::string::npos, "{}", error);
    });
  }
  SECTION("a write between passes is none") {
    DistributedTensor x = make(1);
    Autograd autograd(*rank);
    autograd.watch(x);
    autograd.backward(ops::sum(ops::square(x)));
    autograd.store.clear();
    x.copy_(other);
    autograd.backward(ops::sum(ops::square(x)));
    auto expected = values(other.local());
    for (double& e : expected) e *= 2;
    CHECK(values(autograd.gradient(x).local()) == expected);
  }
}

TEST_CASE("the shapes of graphs") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole),
                    y = DistributedTensor::distribute(f64({2, 3}, 2), m, whole);
  std::vector<double> vx = values(x.local()), vy = values(y.local());
  Autograd autograd(*rank);
  autograd.watch(x);
  auto gradient = [&](const DistributedTensor& of) { return values(autograd.gradient(of).local()); };
  auto each = [&](auto f) {
    std::vector<double> v;
    for (size_t i = 0; i < vx.size(); ++i) v.push_back(f(vx[i], vy[i]));
    return v;
  };

  SECTION("a diamond") {
    DistributedTensor h = ops::square(x);  // h * 3 + h * h
    autograd.backward(ops::sum(h * 3 + h * h));
    CHECK(difference(gradient(x), each([](double a, double) { return 2 * a * (3 + 2 * a * a); })) < 1e-14);
  }
  SECTION("one operand twice, and many times") {
    DistributedTensor s = x * x;
    for (int i = 0; i < 3; ++i) s = s + x;
    autograd.backward(ops::sum(s));
    CHECK(difference(gradient(x), each([](double a, double) { return 2 * a + 3; })) < 1e-14);
  }
  SECTION("what is not watched has no gradient") {
    autograd.backward(ops::sum(x * y));
    CHECK(gradient(x) == vy);
    CHECK_FALSE(autograd.gradient(y).defined());
    CHECK_FALSE(autograd.tracks(y));
  }
  SECTION("what the loss does not depend on has no gradient, and its nodes do nothing") {
    autograd.watch(y);
    DistributedTensor unused = ops::maximum(y, y);  // a card without a gradient
    autograd.backward(ops::sum(x));
    CHECK(gradient(x) == std::vector<double>(6, 1));
    CHECK_FALSE(autograd.gradient(y).defined());
  }
  SECTION("an output that nothing uses") {
    for (int used : {0, 1}) {
      auto out = call_all(two_outputs_op, {&x});
      autograd.backward(ops::sum(out[size_t(used)]));
      CHECK(gradient(x) == std::vector<double>(6, 2 + used));
      autograd.store.clear();
    }
    auto out = call_all(two_outputs_op, {&x});
    autograd.backward(ops::sum(out[0] * out[1]));  // 6 x^2
    CHECK(difference(gradient(x), each([](double a, double) { return 12 * a; })) < 1e-14);
  }
  SECTION("the loss is a leaf") {
    DistributedTensor one = DistributedTensor::distribute(f64({1, 1}, 1), m, whole);
    autograd.watch(one);
    autograd.backward(one);
    CHECK(gradient(one) == std::vector<double>{1});
    CHECK(autograd.gradient(one).shape() == Shape{1, 1});
  }
  SECTION("integers carry no gradient") {
    DistributedTensor i = ops::cast(x * 10, DType::i64);
    CHECK_FALSE(autograd.tracks(i));
    autograd.backward(ops::sum(x * ops::cast(i, DType::f64)));
    CHECK(difference(gradient(x), each([](double a, double) { return double(int64_t(a * 10)); })) < 1e-14);
  }
  SECTION("through another element type and back") {
    autograd.backward(ops::sum(ops::square(ops::cast(x, DType::f32))));
    CHECK(autograd.gradient(x).dtype() == DType::f64);
    CHECK(difference(gradient(x), each([](double a, double) { return 2 * a; })) < 1e-6);
  }
  SECTION("two passes add, until the gradients are cleared") {
    for (int i = 1; i <= 3; ++i) {
      autograd.backward(ops::sum(x * y));
      CHECK(difference(gradient(x), each([&](double, double b) { return i * b; })) < 1e-14);
    }
  }
  SECTION("the innermost scope records") {
    Autograd second(*rank);
    second.watch(y);
    DistributedTensor loss = ops::sum(x * y);
    second.backward(loss);
    CHECK(values(second.gradient(y).local()) == vx);
    CHECK(autograd.nodes() == 0);
    CHECK_THAT(error_of([&] { autograd.backward(loss); }), Contains("no watched value leads to the loss"));
  }
  SECTION("NoGrad records nothing") {
    DistributedTensor h;
    {
      NoGrad scope(*rank);
      h = ops::square(x);
      NoGrad inner(*rank);
      CHECK_FALSE(autograd.tracks(h));
    }
    CHECK(autograd.nodes() == 0);
    autograd.backward(ops::sum(h * x));
    CHECK(difference(gradient(x), each([](double a, double) { return a * a; })) < 1e-14);
    {
      NoGrad scope(*rank);
      h = ops::sum(x);
    }
    CHECK_THAT(error_of([&] { autograd.backward(h); }), Contains("no watched value leads to the loss"));
  }
  SECTION("nothing is recorded without a watched value") {
    DistributedTensor h = ops::square(y) * y;
    CHECK(autograd.nodes() == 0);
  }
}

TEST_CASE("law 1: a redistribution inside NoGrad is not part of the graph") {
  on_mesh("x=2", [](const DeviceMesh& m) {
    DistributedTensor x = DistributedTensor::distribute(f64({4, 2}, 1), m, {Shard(0)});
    Autograd autograd(m.rank_state());
    autograd.watch(x);
    DistributedTensor detached;
    {
      NoGrad scope(m.rank_state());
      detached = x.redistribute({Replicate()});
    }
    check(!autograd.tracks(detached), "a detached value is tracked");
    check(autograd.tracks(x.redistribute({Replicate()})), "a redistributed value is not");
  });
}

TEST_CASE("backward frees each node as it leaves it") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  constexpr int64_t size = 4096 * 8;
  DistributedTensor x = DistributedTensor::distribute(f64({4096}, 1), m, whole);
  Autograd autograd(*rank);
  autograd.watch(x);
  int64_t before = rank->allocator()->bytes_in_use();
  DistributedTensor loss;
  {
    DistributedTensor h = x;
    for (int i = 0; i < 10; ++i) h = ops::tanh(h);
    loss = ops::sum(h);
  }
  CHECK(autograd.nodes() == 11);
  CHECK(rank->allocator()->bytes_in_use() >= before + 10 * size);  // tanh keeps its output
  rank->allocator()->reset_peak();
  autograd.backward(loss);
  CHECK(autograd.nodes() == 0);
  CHECK(rank->allocator()->bytes_in_use() <= before + size + 4096);  // the gradient
  CHECK(rank->allocator()->peak_bytes() <= before + 15 * size);      // not 10 values and 10 gradients
  CHECK_THAT(error_of([&] { autograd.backward(loss); }), Contains("no watched value leads to the loss"));
}

TEST_CASE("a weight's gradient is added to the one of the same record, in its place, and to no other's") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f32({2, 3}, 1), m, whole);
  DistributedTensor w = DistributedTensor::distribute(f32({4, 3}, 2), m, whole);
  Autograd autograd(*rank);
  autograd.watch(w);
  struct Adds : Observer {  // a sum made by an op, not in its place
    int count = 0;
    void on_call(const CallEvent& e) override { count += e.op.name == "add"; }
  } adds;
  auto twice = [&] {
    DistributedTensor loss = total(ops::linear(x, w)) + total(ops::linear(x, w));
    rank->add(adds);
    adds.count = 0;
    autograd.backward(loss);
    rank->remove(adds);
    return adds.count;
  };
  CHECK(twice() == 0);
  DistributedTensor first = autograd.gradient(w);
  std::vector<double> once = values(first.local()), two = once;
  for (double& e : two) e *= 2;
  CHECK(twice() == 1);  // of the two records' sums
  CHECK(values(first.local()) == once);
  CHECK(values(autograd.gradient(w).local()) == two);
}

namespace {

// What a backward pass has added: by ops of their own, and by calls in the place of what there was.
struct Additions : Observer {
  int apart = 0, in_place = 0;
  void on_call(const CallEvent& e) override { apart += e.op.name == "add", in_place += e.accumulated; }
};

// The gradient of x, which three projections of other widths read, for given gradients of these; and the same by their
// products one by one, the last projection first. Each as this rank has it.
struct Shared {
  std::vector<double> joint, apart, whole;
  int additions;
  bool operator==(const Shared&) const = default;
};
Shared shared_input(const DeviceMesh& m, DType dtype) {
  Rank& rank = m.rank_state();
  auto given = [&](const Shape& shape, int seed, const Layout& layout) {
    return ops::cast(DistributedTensor::distribute(f32(shape, seed), m, layout), dtype);
  };
  const Layout rows{Shard(0)}, columns{Shard(2)};
  DistributedTensor x = given({2, 5, 24}, 1, whole);
  Autograd autograd(rank);
  autograd.watch(x);
  std::vector<DistributedTensor> y, dy, w;
  for (int i = 0; i < 3; ++i) {
    int64_t n = i == 0 ? 264 : 132;
    w.push_back(given({n, 24}, 2 + i, rows)), dy.push_back(given({2, 5, n}, 5 + i, columns));
    y.push_back(ops::linear(x, w.back()));
  }
  Additions additions;
  rank.add(additions);
  autograd.record.backward(y, dy);
  rank.remove(additions);
  check(additions.in_place == 2, "{} products were added in place", additions.in_place);
  NoGrad scope(rank);
  DistributedTensor sum;
  for (size_t i : {2, 1, 0}) {
    DistributedTensor d = ops::matmul(ops::cast(dy[i], DType::f32), ops::cast(w[i], DType::f32));
    sum = ops::cast(sum.defined() ? ops::add(ops::cast(sum, DType::f32), d) : d, dtype);
  }
  DistributedTensor joint = autograd.gradient(x);
  return {values(joint.local()), values(sum.local()), values(joint.full_tensor()), additions.apart};
}

}  // namespace

TEST_CASE("the gradient of what several projections read is one sum, to the bits of their products added one by one") {
  std::vector<double> one;
  for (const char* mesh : {"tp=1", "tp=2", "tp=4"})
    for (const Shared& s : on_mesh(mesh, [](const DeviceMesh& m) { return shared_input(m, DType::f32); })) {
      INFO(mesh);
      CHECK(s.additions == 0);
      CHECK(s.joint == s.apart);
      if (one.empty()) one = s.whole;
      CHECK(difference(s.whole, one) < 1e-6);
    }
  // Each product is added in float32 and rounded once.
  Shared half = on_mesh("tp=1", [](const DeviceMesh& m) { return shared_input(m, DType::bf16); })[0];
  CHECK(half.additions == 0);
  CHECK(half.joint == half.apart);
}

TEST_CASE("the gradients of what products of batches read, on either side, are one sum") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  auto given = [&](const Shape& shape, int seed) { return DistributedTensor::distribute(f32(shape, seed), m, whole); };
  for (bool left : {true, false}) {
    DistributedTensor x = given({3, 4, 4}, 1), others[] = {given({3, 4, 4}, 2), given({3, 4, 4}, 3)}, y[2];
    auto gradient = [&](std::initializer_list<int> of) {
      Autograd autograd(*rank);
      autograd.watch(x);
      std::vector<DistributedTensor> outputs, given_gradients;
      for (int i : of) {
        outputs.push_back(left ? ops::matmul(x, others[i]) : ops::matmul(others[i], x));
        given_gradients.push_back(given({3, 4, 4}, 4 + i));
      }
      Additions additions;
      rank->add(additions);
      autograd.record.backward(outputs, given_gradients);
      rank->remove(additions);
      CHECK(additions.apart == 0);
      CHECK(additions.in_place == int(of.size()) - 1);
      return autograd.gradient(x);
    };
    CHECK(values(gradient({0, 1}).local()) == values(ops::add(gradient({1}), gradient({0})).local()));
  }
}

TEST_CASE("a norm adds what came for its input round it, while it has the rows at hand") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  auto given = [&](const Shape& shape, int seed) { return DistributedTensor::distribute(f32(shape, seed), m, whole); };
  DistributedTensor x = given({4, 6}, 1), w = given({6}, 2), dy = given({4, 6}, 3), dx = given({4, 6}, 4);
  auto gradients = [&](bool round) {
    Autograd autograd(*rank);
    autograd.watch(x), autograd.watch(w);
    std::vector<DistributedTensor> outputs{ops::rms_norm(x, w, 1e-5)}, given_gradients{dy};
    if (round) outputs.push_back(ops::add(x, 1)), given_gradients.push_back(dx);
    Additions additions;
    rank->add(additions);
    autograd.record.backward(outputs, given_gradients);
    rank->remove(additions);
    CHECK(additions.apart == 0);
    return std::pair(autograd.gradient(x), values(autograd.gradient(w).local()));
  };
  auto [both, weight] = gradients(true);
  auto [alone, same_weight] = gradients(false);
  CHECK(values(both.local()) == values(ops::add(dx, alone).local()));
  CHECK(weight == same_weight);
  CHECK(values(dx.local()) == values(given({4, 6}, 4).local()));
}

TEST_CASE("errors of a record") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole);
  Autograd autograd(*rank);
  autograd.watch(x);
  auto backward = [&](const DistributedTensor& loss) { return error_of([&] { autograd.backward(loss); }); };
  CHECK(backward(ops::square(x)) ==
        "[backward] the loss f64[2,3] x=Replicate has 6 elements; it needs one, or give the gradients of the outputs");
  CHECK(backward(DistributedTensor::distribute(f64({}, 1), m, whole)) ==
        "[backward] no watched value leads to the loss");
  CHECK(backward(ops::sum(call(ops::relu_backward_op, {&x, &x}))) == "[backward] relu_backward has no gradient");
  CHECK(backward(ops::sum(call(forgetful_op, {&x}))) ==
        "[forgetful] the gradient asks for input 0, which the card does not keep");
  CHECK(backward(ops::sum(call(wrong_shape_op, {&x}))) ==
        "[backward] the gradient of wrong_shape gives f64[] x=Replicate for an input of shape [2,3]");
  CHECK(backward({}) == "[backward] the loss is undefined");
  nn::Record& record = autograd.record;
  DistributedTensor y = ops::square(x), one = DistributedTensor::distribute(f64({1}, 1), m, whole);
  auto several = [&](std::vector<DistributedTensor> outputs, std::vector<DistributedTensor> gradients,
                     nn::BackwardOptions o = {}) { return error_of([&] { record.backward(outputs, gradients, o); }); };
  CHECK(several({y}, {}) == "[backward] 1 outputs and 0 gradients");
  CHECK(several({y, {}}, {y, y}) == "[backward] output 1 is undefined");
  CHECK(several({y, one}, {y, one}) == "[backward] no watched value leads to output 1");
  CHECK(several({y}, {one}) ==
        "[backward] the gradient of output 0 is f64[1] x=Replicate, not of the output's shape and type, f64[2,3] "
        "x=Replicate");
  CHECK_THAT(
      several({y}, {y}, {.of = nn::BackwardOptions::Of::weights}),
      Contains("[backward] the gradients of the weights alone are backward_weights()'s, after a pass of the inputs"));
  CHECK(error_of([&] { record.watch({}); }) == "[watch] the value is undefined");
  CHECK(error_of([&] { record.gradient({}); }) == "[gradient] the value is undefined");
  CHECK(error_of([&] { autograd.store.gradient({}); }) == "[gradient] the value is undefined");
  CHECK(error_of([&] { autograd.store.watch({}, {}, "w"); }) == "[watch] the value w is undefined");
  CHECK(error_of([&] { autograd.store.watch_in_buckets({x}, {}, 1); }) == "[watch_in_buckets] 1 leaves and 0 names");
  CHECK(error_of([&] { autograd.store.reduce({one}); }) == "[reduce] f64[1] x=Replicate is not watched");
  CHECK(error_of([&] { nn::Record none(autograd.store, {.micro_batches = 0}); }) ==
        "[Record] 0 micro-batches; at least one is needed");
  DistributedTensor ids = DistributedTensor::distribute(Tensor::of<int64_t>({1}, {3}), m, whole);
  CHECK(error_of([&] { autograd.watch(ids); }) ==
        "[watch] i64[1] x=Replicate has no gradient of type i64: only floating types have one");
  CHECK(error_of([&] { record.watch(ids); }) ==
        "[watch] i64[1] x=Replicate has no gradient: only floating types have one");
  CHECK_THAT(error_of([&] { record.watch(x); }),
             Catch::Equals("[watch] f64[2,3] x=Replicate is watched by the store, or was computed from a watched "
                           "value, whose gradient would end here: watch values before they are used"));
}

TEST_CASE("an error anywhere leaves no half sum behind: the step can be repeated and gives the same bits") {
  // An observer throws at the n-th call of the backward pass, for every n there is; of a model in groups, too.
  struct Thrower : Observer {
    int left = -1;
    void on_call(const CallEvent&) override {
      if (left > 0 && --left == 0) throw Error("[observer] no");
    }
  };
  auto grouped = GENERATE(false, true);
  on_mesh("dp=2", [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    DistributedTensor a = DistributedTensor::distribute(f64({4, 4}, 1), m, {Shard(0)}),
                      b = DistributedTensor::distribute(f64({4, 4}, 2), m, {Shard(0)});
    nn::GradientStore store(rank);
    if (grouped)
      store.watch_together({a}, {"a"}), store.watch_together({b}, {"b"});
    else
      store.watch(a), store.watch(b);
    nn::Record record(store, {.micro_batches = 4});
    auto forward = [&](int seed) {
      nn::Record::Scope scope(record);
      DistributedTensor x = DistributedTensor::distribute(f64({2, 4}, seed), m, {Shard(0)});
      for (const DistributedTensor* w : {&a, &b, &a}) x = ops::tanh(ops::linear(x, w->redistribute({Replicate()})));
      return ops::sum(x).redistribute(whole);
    };
    auto step = [&](Thrower* thrower) {  // four micro-batches; each is repeated where it fails
      store.clear();
      int failures = 0;
      for (int i = 0; i < 4; ++i)
        for (int attempt = 1, again = 1; again; ++attempt) {
          DistributedTensor loss = forward(i);
          again = 0;
          if (thrower) thrower->left = attempt;
          try {
            record.backward(loss, {.reduce = i == 3});
          } catch (const Error&) {
            check(record.nodes() == 0 && !record.tracks(loss), "something is left");
            ++failures, again = 1;
          }
          if (thrower) thrower->left = -1;
        }
      std::vector<double> all;
      for (const DistributedTensor& g : store.reduce({a, b}))
        for (double v : values(g.full_tensor())) all.push_back(v);
      if (thrower) check(failures > 60, "{} failures", failures);
      return all;
    };
    std::vector<double> expected = step(nullptr);
    Thrower thrower;
    rank.add(thrower);
    std::vector<double> repeated = step(&thrower);
    rank.remove(thrower);
    check(repeated == expected, "another sum");
  });
}

TEST_CASE("what was written in place between its use and the backward pass is an error or right") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor c = DistributedTensor::distribute(f64({2, 3}, 9), m, whole),
                    w = DistributedTensor::distribute(f64({2, 3}, 1), m, whole);
  Autograd autograd(*rank);
  autograd.watch(w);
  auto written = [](const DistributedTensor&) {
    return Catch::Equals(
        "[Record] f64[2,3] x=Replicate was written in place after it was recorded, so that it has no gradient any "
        "more: write to a new value, or before it is used, or start a new record");
  };
  SECTION("an output that is used afterwards") {
    DistributedTensor y = w + w;
    y.copy_(c);
    CHECK_THAT(error_of([&] { ops::sum(y); }), written(y));
    CHECK_THAT(error_of([&] { autograd.record.backward({y}, {c}); }), written(y));
  }
  SECTION("an output that was redistributed") {
    DistributedTensor y = w + w;
    y.copy_(c);
    CHECK_THAT(error_of([&] { ops::square(y); }), written(y));
  }
  SECTION("a leaf between two uses") {
    DistributedTensor y = w + w;
    w.copy_(c);
    CHECK_THAT(error_of([&] { y + w; }), written(w));
  }
  SECTION("an input of the record") {
    autograd.record.watch(c);
    DistributedTensor y = c + w;
    c.copy_(w);
    CHECK_THAT(error_of([&] { y + c; }), written(c));
  }
  SECTION("a value that no gradient needs any more") {
    DistributedTensor y = w + w, loss = ops::sum(y);
    y.copy_(c);
    autograd.backward(loss);
    CHECK(values(autograd.gradient(w).local()) == std::vector<double>(6, 2));
  }
  SECTION("before it is recorded") {
    DistributedTensor y = c * 2;
    y.copy_(c);
    autograd.backward(ops::sum(y * w));
    CHECK(values(autograd.gradient(w).local()) == values(c.local()));
  }
}

TEST_CASE("a value that was computed cannot be watched") {
  // Its gradient would stop there, and what it was computed from would silently get none.
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole);
  Autograd autograd(*rank);
  autograd.watch(x);
  autograd.watch(x);  // twice is once
  DistributedTensor h = ops::square(x);
  CHECK_THAT(error_of([&] { autograd.watch(h); }),
             Contains("[watch] f64[2,3] x=Replicate was computed from a watched value, whose gradient would end here: "
                      "watch values before they are used"));
}

TEST_CASE("any outputs with given gradients") {
  // A middle stage: y = f(x, w), z = g(x); the gradient of x is returned, that of w stored.
  for (const char* mesh : {"x=1", "x=2", "x=3"})
    on_mesh(mesh, [](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      DistributedTensor x = DistributedTensor::distribute(f64({4, 5}, 1), m, {Shard(0)}),
                        w = DistributedTensor::distribute(f64({3, 5}, 2), m, whole);
      DistributedTensor dy = DistributedTensor::distribute(f64({4, 3}, 3), m, {Shard(1)}),
                        dz = DistributedTensor::distribute(f64({4, 5}, 4), m, whole);
      nn::GradientStore store(rank), scalar_store(rank);
      store.watch(w), scalar_store.watch(w);
      nn::Record record(store), scalar(scalar_store);
      record.watch(x), scalar.watch(x);
      DistributedTensor y, z;
      {
        nn::Record::Scope scope(record);
        y = ops::tanh(ops::linear(x, w)), z = ops::square(x);
      }
      check(!record.gradient(x).defined(), "a gradient before there is one");
      record.backward({y, z}, {dy, dz});
      DistributedTensor loss;
      {
        nn::Record::Scope scope(scalar);
        loss = total(ops::tanh(ops::linear(x, w)) * dy) + total(ops::square(x) * dz);
      }
      scalar.backward(loss);
      check(difference(values(record.gradient(x).full_tensor()), values(scalar.gradient(x).full_tensor())) < 1e-14,
            "the input's gradient");
      check(difference(values(store.gradient(w).full_tensor()), values(scalar_store.gradient(w).full_tensor())) < 1e-14,
            "the weight's");
      {
        nn::Record::Scope scope(record);
        y = ops::linear(x, w), z = ops::square(y);
      }
      record.backward({y, z}, {{}, ops::square(y)});  // nothing depends on y but by z
      check(!record.gradient(x).defined(), "x was an input of the first pass alone");
    });
}

TEST_CASE("two records at once give the gradients of one after the other, in both orders") {
  enum Order { one_by_one, first_first, last_first };
  auto run = [](Order order) {
    return on_mesh("dp=2,tp=2", [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      nn::LlamaForCausalLM model(m, small_llama(4, 64));
      nn::ParallelPlan::load(plan_file("fsdp_tp.json")).apply(model);
      nn::materialize(model, 1);
      nn::GradientStore store(rank);
      nn::watch_parameters(store, model.parameters());
      std::unique_ptr<nn::Record> records[2];
      DistributedTensor losses[2];
      auto forward = [&](int i) {
        std::vector<int64_t> ids;
        for (int64_t k = 0; k < 4 * 8; ++k) ids.push_back((k * 7 + i * 13) % 61);
        DistributedTensor x =
            DistributedTensor::distribute(Tensor::of<int64_t>({4, 8}, ids), m, nn::batch_layout(m.shape()));
        records[i] = std::make_unique<nn::Record>(store, nn::RecordOptions{.micro_batches = 2});
        nn::Record::Scope scope(*records[i]);
        losses[i] = ops::cross_entropy(model(x), x);
      };
      auto backward = [&](int i, bool last) { records[i]->backward(losses[i], {.reduce = last}); };
      if (order == one_by_one) forward(0), backward(0, false), forward(1), backward(1, true);
      if (order == first_first) forward(0), forward(1), backward(0, false), backward(1, true);
      if (order == last_first) forward(1), forward(0), backward(1, false), backward(0, true);
      std::vector<double> all;
      for (const DistributedTensor& g : nn::reduce_gradients(store, model.parameters()))
        for (double v : values(g.full_tensor())) all.push_back(v);
      return all;
    })[0];
  };
  std::vector<double> expected = run(one_by_one);
  CHECK(run(first_first) == expected);
  CHECK(run(last_first) == expected);  // a + b is b + a
}

TEST_CASE("a dropped record frees what it keeps, and nothing is recorded outside of its scope") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({4096}, 1), m, whole);
  nn::GradientStore store(*rank);
  store.watch(x);
  int64_t before = rank->allocator()->bytes_in_use();
  for (int i = 0; i < 5; ++i) {
    nn::Record record(store);
    {
      nn::Record::Scope scope(record);
      DistributedTensor h = x;
      for (int k = 0; k < 10; ++k) h = ops::tanh(h);
    }
    CHECK(record.nodes() == 10);
    CHECK(rank->allocator()->bytes_in_use() >= before + 10 * 4096 * 8);
    ops::tanh(x);
    CHECK(record.nodes() == 10);
  }
  CHECK(rank->allocator()->bytes_in_use() == before);
}

TEST_CASE("the inputs' gradients first and the weights' later are those of one pass, bit for bit") {
  on_mesh("tp=2", [](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    DistributedTensor x = DistributedTensor::distribute(f64({4, 6}, 1), m, whole);
    DistributedTensor up = DistributedTensor::distribute(f64({8, 6}, 2), m, {Shard(0)}),
                      down = DistributedTensor::distribute(f64({6, 8}, 3), m, {Shard(1)});
    DistributedTensor scale = DistributedTensor::distribute(f64({6}, 4), m, whole);
    DistributedTensor dy = DistributedTensor::distribute(f64({4, 6}, 5), m, whole),
                      dw = DistributedTensor::distribute(f64({6}, 6), m, whole);
    auto run = [&](bool split, bool grouped) {
      nn::GradientStore store(rank);
      if (grouped)
        store.watch_together({up, down, scale}, {"up", "down", "scale"});
      else
        store.watch(up), store.watch(down), store.watch(scale);
      nn::Record record(store);
      record.watch(x);
      DistributedTensor y;
      {
        nn::Record::Scope scope(record);
        DistributedTensor w = ops::square(scale);  // of weights alone
        y = ops::linear(ops::gelu(ops::linear(ops::rms_norm(x, w, 1e-5), up)), down) * w;
      }
      std::vector<double> all;
      if (split) {
        record.backward({y, scale}, {dy, dw}, {.of = nn::BackwardOptions::Of::inputs});
        check(!store.gradient(up).defined() && record.nodes() > 0, "weights before their pass");
        for (double v : values(record.gradient(x).full_tensor())) all.push_back(v);
        record.backward_weights();
      } else {
        record.backward({y, scale}, {dy, dw});
        for (double v : values(record.gradient(x).full_tensor())) all.push_back(v);
      }
      check(record.nodes() == 0, "nodes are left");
      for (const DistributedTensor& g : store.reduce({up, down, scale}))
        for (double v : values(g.full_tensor())) all.push_back(v);
      return all;
    };
    for (bool grouped : {false, true}) check(run(true, grouped) == run(false, grouped), "other bits");
  });
}

TEST_CASE("what a policy does not keep is made again by the same calls, with the same gradients and less memory") {
  struct Policy : KeepPolicy {
    int mode, products = 0;  // 0: keeps all, 1: nothing, 2: every second product
    explicit Policy(int m) : mode(m) {}
    bool keep(const CallEvent& e) override {
      return mode == 0 || (mode == 2 && e.op.name == "linear" && ++products % 2 == 0);
    }
    bool keep(const RedistributeEvent&) override { return mode == 0; }
  };
  struct Calls : Observer {
    int count = 0;
    void on_call(const CallEvent& e) override { count += e.op.name == "linear"; }
  };
  struct Result {
    std::vector<double> gradients;
    int64_t kept;
    int again;
    std::string gathers;
  };
  auto run = [](int mode) {
    return on_mesh("tp=2", [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      rank.strict = true;
      std::vector<DistributedTensor> weights;
      for (int i = 0; i < 8; ++i)
        weights.push_back(DistributedTensor::distribute(f64({32, 32}, i), m, {i % 2 ? Shard(1) : Shard(0)}));
      DistributedTensor x = DistributedTensor::distribute(f64({64, 32}, 20), m, {Shard(0)});
      nn::GradientStore store(rank);
      for (const auto& w : weights) store.watch(w);
      nn::Record record(store);
      record.watch(x);
      int64_t before = rank.allocator()->bytes_in_use();
      Policy policy(mode);
      CommLog log(rank);
      DistributedTensor loss;
      {
        nn::Record::Scope scope(record);
        PhaseScope phase(rank, Phase::forward);
        DistributedTensor h = x;
        for (int block = 0; block < 4; ++block) {  // one checkpointed region each
          rank.keep_policy = &policy;
          DistributedTensor g = h.redistribute({Replicate()});
          h = ops::dropout(
                  ops::linear(ops::gelu(ops::linear(g, weights[size_t(2 * block)])), weights[size_t(2 * block + 1)]),
                  0.25, {.seed = 3, .call = block})
                  .redistribute({Shard(0)});
          rank.keep_policy = nullptr;
          record.on_keep(h);
        }
        loss = total(ops::square(h));
      }
      m.communicator(m.shape().all()).barrier();
      Result r{{}, rank.allocator()->bytes_in_use() - before, 0, ""};
      Calls calls;
      rank.add(calls);
      record.backward(loss);
      rank.remove(calls);
      r.again = calls.count;
      r.gathers = counts(log.entries(), Phase::backward);
      for (double v : values(record.gradient(x).full_tensor())) r.gradients.push_back(v);
      for (const auto& w : weights)
        for (double v : values(store.gradient(w).full_tensor())) r.gradients.push_back(v);
      return r;
    })[0];
  };
  Result all = run(0), none = run(1), some = run(2);
  CHECK(none.gradients == all.gradients);
  CHECK(some.gradients == all.gradients);
  CHECK(all.again == 0);
  CHECK(none.again == 4);  // the second product of a block is needed by nothing
  CHECK(some.again == 4);
  CHECK(none.kept < all.kept / 3);
  CHECK(none.kept < some.kept + 1);
  CHECK(some.kept < all.kept);
  CHECK(all.gathers == "all_gather 1, all_reduce 3");
  CHECK(none.gathers == "all_gather 5, all_reduce 3");  // a plan's gathers are made again, too
}

TEST_CASE("buckets are reduced while the pass goes on, more than one on its way") {
  struct InFlight : Observer {
    std::vector<std::string> events;
    void on_collective(const CollectiveEvent& e) override { events.push_back(std::string(e.reason)); }
  };
  auto run = [](int64_t bytes) {
    return on_mesh("dp=2", [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      rank.strict = true;
      std::vector<DistributedTensor> weights;
      std::vector<std::string> names;
      for (int i = 0; i < 6; ++i)
        weights.push_back(DistributedTensor::distribute(f64({4, 4}, i), m, whole)), names.push_back(std::to_string(i));
      nn::GradientStore store(rank);
      if (bytes)
        store.watch_in_buckets(weights, names, bytes);
      else
        for (size_t i = 0; i < 6; ++i) store.watch(weights[i], {}, names[i]);
      nn::Record record(store);
      DistributedTensor h = DistributedTensor::distribute(f64({2, 4}, 9), m, {Shard(0)}), loss;
      {
        nn::Record::Scope scope(record);
        for (const auto& w : weights) h = ops::tanh(ops::linear(h, w));
        loss = total(h);
      }
      CommLog log(rank);
      record.backward(loss);
      std::pair<std::string, std::vector<double>> r;
      int launch = -1;
      for (const auto& e : log.entries()) {
        r.first += (e.group != launch ? " | " : " ") + e.reason.substr(12);
        launch = e.group;
      }
      for (const DistributedTensor& g : store.reduce(weights))
        for (double v : values(g.full_tensor())) r.second.push_back(v);
      return r;
    })[0];
  };
  auto one = run(0), two = run(2 * 4 * 4 * 8), large = run(1 << 20), small = run(1);
  CHECK(one.first == "");  // all by reduce()
  CHECK(two.first == " | 5 4 | 3 2 | 1 0");
  CHECK(large.first == " | 5 4 3 2 1 0");
  CHECK(small.first == " | 5 | 4 | 3 | 2 | 1 | 0");
  for (const auto& r : {two, large, small}) CHECK(r.second == one.second);
}

TEST_CASE("calls without an optional operand, or with a number in the place of one, are made again") {
  struct Nothing : KeepPolicy {
    bool keep(const CallEvent&) override { return false; }
    bool keep(const RedistributeEvent&) override { return false; }
  };
  auto gradient = [](bool remade) {
    auto rank = Rank::single();
    DeviceMesh mesh(*rank, "x=1");
    DistributedTensor w = DistributedTensor::distribute(f64({4, 4}, 1), mesh, Layout()), loss;
    nn::GradientStore store(*rank);
    store.watch(w);
    nn::Record record(store);
    Nothing nothing;
    {
      nn::Record::Scope scope(record);
      if (remade) rank->keep_policy = &nothing;
      loss = ops::sum(ops::square(ops::linear(ops::maximum(w, 0.1), w)));
      rank->keep_policy = nullptr;
    }
    record.backward(loss);
    return values(store.gradient(w).full_tensor());
  };
  CHECK(gradient(true) == gradient(false));
}

TEST_CASE("a record holds the cards of its calls: one may be gone before its gradient runs") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "x=1");
  DistributedTensor w = DistributedTensor::distribute(f64({4}, 1), mesh, Layout()), loss;
  nn::GradientStore store(*rank);
  store.watch(w);
  nn::Record record(store);
  {
    nn::Record::Scope scope(record);
    std::optional<Op> card(two_outputs_op);
    loss = ops::sum(call(*card, {&w}));
    card.emplace(forgetful_op);  // another card in its place
  }
  record.backward(loss);
  for (double v : values(store.gradient(w).full_tensor())) CHECK(v == 2);
}
