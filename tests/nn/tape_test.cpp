#include "nn/tape.h"

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using nn::Tape;

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
const Op two_outputs_op = {.name = "two_outputs", .rule = "...->...,...", .linear = {{0}}, .cpu = twice_thrice, .gradient = twice_thrice_gradient};

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
          Tape tape(rank);
          tape.watch(x);
          DistributedTensor loss = total(ops::square(x.redistribute({through}).redistribute({to})) * c);
          CommLog log(rank);
          tape.backward(loss);
          check(log.entries().empty(), "{}: the backward pass communicates:\n{}", where, listing(log.entries()));
          DistributedTensor g = tape.gradient(x);
          check(g.defined() && g.shape() == x.shape(), "{}: gradient {}", where, to_string(g));
          check(difference(values(g.full()), expected) < 1e-14, "{}: a wrong gradient", where);
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
    Tape tape(rank);
    tape.watch(leaf);
    DistributedTensor h = ops::mul(leaf, 0.5), sum;
    auto add = [&](const DistributedTensor& x) { sum = sum.defined() ? ops::add(sum, x) : x; };
    for (int i = 0; i < uses; ++i) {
      DistributedTensor w = DistributedTensor::distribute(f64({8, 6}, 2 + i), m, {Shard(0)});
      tape.watch(w);
      add(ops::sum(ops::square(ops::linear(h.redistribute({Replicate()}), w))));
    }
    DistributedTensor loss = sum.redistribute(whole);
    if (direct) loss = loss + total(h);  // a contribution that is not Partial
    CommLog log(rank);
    tape.backward(loss);
    std::string collectives = log.entries().empty() ? "" : counts(log.entries(), Phase::backward);
    return Result{collectives, log.entries().empty() ? "" : log.entries()[0].reason, tape.gradient(leaf).layout()[0], values(tape.gradient(leaf).full())};
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
      Tape tape(rank);
      tape.watch(w);
      tape.backward(product(2));  // the loss is Partial itself: the same logical value
      check(tape.gradient(w).layout() == Layout{Partial()}, "one: {}", to_string(tape.gradient(w)));
      check(log.entries().empty(), "{}", listing(log.entries()));
      check(difference(values(tape.gradient(w).full()), expected(2)) < 1e-14, "one: values");
    }
    log.clear();
    {  // two, added as they are; then a third that is Replicate, and a second backward pass
      Tape tape(rank);
      tape.watch(w);
      tape.backward(product(2) + product(3));
      check(tape.gradient(w).layout() == Layout{Partial()}, "two: {}", to_string(tape.gradient(w)));
      tape.backward(ops::sum(w));
      check(tape.gradient(w).layout() == Layout{Partial()}, "three: {}", to_string(tape.gradient(w)));
      check(log.entries().empty(), "{}", listing(log.entries()));
      auto e = expected(2), more = expected(3);
      for (size_t i = 0; i < e.size(); ++i) e[i] += more[i] + 1;
      check(difference(values(tape.gradient(w).full()), e) < 1e-14, "three: values");
      tape.clear_gradients();
      check(!tape.gradient(w).defined(), "cleared");
    }
  });
}

TEST_CASE("law 1: the collectives of a two-layer MLP are those of Megatron") {
  struct Case {
    const char *name, *mesh, *plan;
    Placement input;
    const char *forward, *backward, *parameters;  // collectives of each phase, loss and parameter gradients apart
  };
  const char* tensor_parallel = R"json({"tensor_parallel": {"axis": "tp", "plan": {"up": "ColwiseParallel", "down": "RowwiseParallel"}}})json";
  const char* sequence_parallel = R"json({"tensor_parallel": {"axis": "tp", "plan": {
      "": {"style": "PrepareModuleInput", "input_layouts": "Shard(1)", "desired_input_layouts": "Replicate"},
      "up": "ColwiseParallel", "down": {"style": "RowwiseParallel", "output_layouts": "Shard(1)"}}}})json";
  const Case cases[] = {
      {"alone", "dp=1", "{}", Replicate(), "", "", ""},
      {"tensor parallel", "tp=2", tensor_parallel, Replicate(), "all_reduce 1", "all_reduce 1", ""},
      {"tensor parallel", "tp=4", tensor_parallel, Replicate(), "all_reduce 1", "all_reduce 1", ""},
      {"sequence parallel", "tp=2", sequence_parallel, Shard(1), "all_gather 1, reduce_scatter 1", "all_gather 1, reduce_scatter 1", ""},
      {"sequence parallel", "tp=4", sequence_parallel, Shard(1), "all_gather 1, reduce_scatter 1", "all_gather 1, reduce_scatter 1", ""},
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
      Tape tape(rank);
      for (nn::Parameter* p : mlp.parameters()) tape.watch(p->stored());
      DistributedTensor leaf = DistributedTensor::distribute(f32({3, 4, 6}, 1), m, {c.input});
      tape.watch(leaf);
      CommLog log(rank);
      DistributedTensor loss;
      {
        PhaseScope phase(rank, Phase::forward);
        DistributedTensor y = mlp(ops::mul(leaf, 1));  // made by an op, as in a model
        LabelScope label(rank, Label::Kind::reason, "loss");
        loss = total(ops::square(y));
      }
      tape.backward(loss);
      PhaseScope phase(rank, Phase::optimizer);
      std::vector<DistributedTensor> gradients = nn::reduce_gradients(tape, mlp.parameters());
      gradients.push_back(tape.gradient(leaf));
      Result r;
      for (const auto& e : log.entries())
        if (e.reason != "loss") r.entries.push_back(e);
      for (auto& g : gradients)
        for (double v : values(g.full())) r.gradients.push_back(v);
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
      Tape tape(rank);
      tape.watch(w), tape.watch(x);
      CommLog log(rank);
      DistributedTensor loss;
      {
        PhaseScope phase(rank, Phase::forward);
        DistributedTensor full = w.redistribute({Replicate()}, {.remake = remake});
        // A recipe of a recipe starts from the first source.
        if (twice) full = w.redistribute({Shard(1)}, {.remake = remake}).redistribute({Replicate()}, {.remake = remake});
        loss = total(ops::square(ops::linear(x, full)));
      }
      int64_t bytes = rank.allocator()->bytes_in_use();
      tape.backward(loss);
      Result r{bytes, counts(log.entries(), Phase::backward), log.entries(), values(tape.gradient(w).full())};
      for (double v : values(tape.gradient(x).full())) r.gradients.push_back(v);
      return r;
    })[0];
  };
  for (bool twice : {false, true}) {
    Result kept = run(false, twice), remade = run(true, twice);
    CHECK(kept.backward == "");
    CHECK(remade.backward == "all_gather 1");  // of w, and no all-to-all
    CHECK(kept.bytes - remade.bytes > 60 * 64 * 8);  // the gathered weight
    CHECK(remade.gradients == kept.gradients);
    bool found = false;
    for (const auto& e : remade.entries)
      if (e.phase == Phase::backward) found = e.reason == "remade for the gradient" && e.from == "dp=Shard(0)" && e.to == "dp=Replicate" && e.asked_for;
    INFO(listing(remade.entries));
    CHECK(found);
  }
}

TEST_CASE("what no gradient asks for is not remade") {
  on_mesh("dp=2", [](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    DistributedTensor w = DistributedTensor::distribute(f64({4, 4}, 1), m, {Shard(0)});
    Tape tape(rank);
    tape.watch(w);
    DistributedTensor loss = total(ops::add(w.redistribute({Replicate()}, {.remake = true}), 1));  // add keeps nothing
    CommLog log(rank);
    tape.backward(loss);
    check(log.entries().empty(), "{}", listing(log.entries()));
    check(difference(values(tape.gradient(w).full()), std::vector<double>(16, 1)) == 0, "values");
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
  const Case cases[] = {{"mul", "gradient of mul", mul, 0},   {"mul", "gradient of mul", mul, 1},      {"mul", "", mul, 2}, {"add", "", add, 0},
                        {"add", "", add, 2},                  {"exp", "gradient of exp", exp, 2},      {"exp", "", exp, 0},
                        {"square", "gradient of square", square, 0}};
  for (const Case& c : cases) {
    INFO(c.name << ", value " << c.written);
    DistributedTensor v[3] = {make(1), make(2), {}};
    Tape tape(*rank);
    tape.watch(v[0]), tape.watch(v[1]);
    v[2] = c.op(v[0], v[1]);
    DistributedTensor loss = ops::sum(v[2]);
    v[c.written].copy_(other);
    std::string error = error_of([&] { tape.backward(loss); });
    if (!*c.error) CHECK(error == "(no error)");
    else {
      CHECK_THAT(error, StartsWith("[backward] f64[2,3] x=Replicate, which the " + std::string(c.error) + " needs, was written in place"));
    }
  }
  SECTION("the source of a recipe") {
    on_mesh("dp=2", [](const DeviceMesh& mesh) {
      DistributedTensor w = DistributedTensor::distribute(f64({4, 4}, 1), mesh, {Shard(0)});
      Tape tape(mesh.rank_state());
      tape.watch(w);
      DistributedTensor loss = total(ops::square(w.redistribute({Replicate()}, {.remake = true})));
      w.copy_(DistributedTensor::distribute(f64({4, 4}, 2), mesh, {Shard(0)}));
      std::string error = error_of([&] { tape.backward(loss); });
      check(error.find("was written in place after it was used") != std::string::npos, "{}", error);
    });
  }
  SECTION("a write between passes is none") {
    DistributedTensor x = make(1);
    Tape tape(*rank);
    tape.watch(x);
    tape.backward(ops::sum(ops::square(x)));
    tape.clear_gradients();
    x.copy_(other);
    tape.backward(ops::sum(ops::square(x)));
    auto expected = values(other.local());
    for (double& e : expected) e *= 2;
    CHECK(values(tape.gradient(x).local()) == expected);
  }
}

TEST_CASE("the shapes of graphs") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole), y = DistributedTensor::distribute(f64({2, 3}, 2), m, whole);
  std::vector<double> vx = values(x.local()), vy = values(y.local());
  Tape tape(*rank);
  tape.watch(x);
  auto gradient = [&](const DistributedTensor& of) { return values(tape.gradient(of).local()); };
  auto each = [&](auto f) {
    std::vector<double> v;
    for (size_t i = 0; i < vx.size(); ++i) v.push_back(f(vx[i], vy[i]));
    return v;
  };

  SECTION("a diamond") {
    DistributedTensor h = ops::square(x);  // h * 3 + h * h
    tape.backward(ops::sum(h * 3 + h * h));
    CHECK(difference(gradient(x), each([](double a, double) { return 2 * a * (3 + 2 * a * a); })) < 1e-14);
  }
  SECTION("one operand twice, and many times") {
    DistributedTensor s = x * x;
    for (int i = 0; i < 3; ++i) s = s + x;
    tape.backward(ops::sum(s));
    CHECK(difference(gradient(x), each([](double a, double) { return 2 * a + 3; })) < 1e-14);
  }
  SECTION("what is not watched has no gradient") {
    tape.backward(ops::sum(x * y));
    CHECK(gradient(x) == vy);
    CHECK_FALSE(tape.gradient(y).defined());
    CHECK_FALSE(tape.tracks(y));
  }
  SECTION("what the loss does not depend on has no gradient, and its nodes do nothing") {
    tape.watch(y);
    DistributedTensor unused = ops::maximum(y, y);  // a card without a gradient
    tape.backward(ops::sum(x));
    CHECK(gradient(x) == std::vector<double>(6, 1));
    CHECK_FALSE(tape.gradient(y).defined());
  }
  SECTION("an output that nothing uses") {
    for (int used : {0, 1}) {
      auto out = call_all(two_outputs_op, {&x});
      tape.backward(ops::sum(out[size_t(used)]));
      CHECK(gradient(x) == std::vector<double>(6, 2 + used));
      tape.clear_gradients();
    }
    auto out = call_all(two_outputs_op, {&x});
    tape.backward(ops::sum(out[0] * out[1]));  // 6 x^2
    CHECK(difference(gradient(x), each([](double a, double) { return 12 * a; })) < 1e-14);
  }
  SECTION("the loss is a leaf") {
    DistributedTensor one = DistributedTensor::distribute(f64({1, 1}, 1), m, whole);
    tape.watch(one);
    tape.backward(one);
    CHECK(gradient(one) == std::vector<double>{1});
    CHECK(tape.gradient(one).shape() == Shape{1, 1});
  }
  SECTION("integers carry no gradient") {
    DistributedTensor i = ops::cast(x * 10, DType::i64);
    CHECK_FALSE(tape.tracks(i));
    tape.backward(ops::sum(x * ops::cast(i, DType::f64)));
    CHECK(difference(gradient(x), each([](double a, double) { return double(int64_t(a * 10)); })) < 1e-14);
  }
  SECTION("through another element type and back") {
    tape.backward(ops::sum(ops::square(ops::cast(x, DType::f32))));
    CHECK(tape.gradient(x).dtype() == DType::f64);
    CHECK(difference(gradient(x), each([](double a, double) { return 2 * a; })) < 1e-6);
  }
  SECTION("two passes add, until the gradients are cleared") {
    for (int i = 1; i <= 3; ++i) {
      tape.backward(ops::sum(x * y));
      CHECK(difference(gradient(x), each([&](double, double b) { return i * b; })) < 1e-14);
    }
  }
  SECTION("two tapes see the same calls") {
    Tape second(*rank);
    second.watch(y);
    DistributedTensor loss = ops::sum(x * y);
    tape.backward(loss);
    second.backward(loss);
    CHECK(gradient(x) == vy);
    CHECK(values(second.gradient(y).local()) == vx);
    CHECK_FALSE(second.gradient(x).defined());
  }
  SECTION("NoGrad records nothing") {
    DistributedTensor h;
    {
      NoGrad scope(*rank);
      h = ops::square(x);
      NoGrad inner(*rank);
      CHECK_FALSE(tape.tracks(h));
    }
    CHECK(tape.nodes() == 0);
    tape.backward(ops::sum(h * x));
    CHECK(difference(gradient(x), each([](double a, double) { return a * a; })) < 1e-14);
    {
      NoGrad scope(*rank);
      h = ops::sum(x);
    }
    CHECK_THAT(error_of([&] { tape.backward(h); }), Contains("no watched value leads to the loss"));
  }
  SECTION("nothing is recorded without a watched value") {
    DistributedTensor h = ops::square(y) * y;
    CHECK(tape.nodes() == 0);
  }
}

TEST_CASE("law 1: a redistribution inside NoGrad is not part of the graph") {
  on_mesh("x=2", [](const DeviceMesh& m) {
    DistributedTensor x = DistributedTensor::distribute(f64({4, 2}, 1), m, {Shard(0)});
    Tape tape(m.rank_state());
    tape.watch(x);
    DistributedTensor detached;
    {
      NoGrad scope(m.rank_state());
      detached = x.redistribute({Replicate()});
    }
    check(!tape.tracks(detached), "a detached value is tracked");
    check(tape.tracks(x.redistribute({Replicate()})), "a redistributed value is not");
  });
}

TEST_CASE("backward frees each node as it leaves it") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  constexpr int64_t size = 4096 * 8;
  DistributedTensor x = DistributedTensor::distribute(f64({4096}, 1), m, whole);
  Tape tape(*rank);
  tape.watch(x);
  int64_t before = rank->allocator()->bytes_in_use();
  DistributedTensor loss;
  {
    DistributedTensor h = x;
    for (int i = 0; i < 10; ++i) h = ops::tanh(h);
    loss = ops::sum(h);
  }
  CHECK(tape.nodes() == 11);
  CHECK(rank->allocator()->bytes_in_use() >= before + 10 * size);  // tanh keeps its output
  rank->allocator()->reset_peak();
  tape.backward(loss);
  CHECK(tape.nodes() == 0);
  CHECK(rank->allocator()->bytes_in_use() <= before + size + 4096);  // the gradient
  CHECK(rank->allocator()->peak_bytes() <= before + 15 * size);      // not 10 values and 10 gradients
  CHECK_THAT(error_of([&] { tape.backward(loss); }), Contains("no watched value leads to the loss"));
}

TEST_CASE("a weight's gradient is added to the one that is there, in its place") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f32({2, 3}, 1), m, whole);
  DistributedTensor w = DistributedTensor::distribute(f32({4, 3}, 2), m, whole);
  Tape tape(*rank);
  tape.watch(w);
  tape.backward(total(ops::linear(x, w)));
  const std::byte* at = tape.gradient(w).local().bytes_data();
  std::vector<double> once = values(tape.gradient(w).local());
  auto times = [&](double n) {
    std::vector<double> v = once;
    for (double& e : v) e *= n;
    return v;
  };
  tape.backward(total(ops::linear(x, w)));
  CHECK(tape.gradient(w).local().bytes_data() == at);
  CHECK(values(tape.gradient(w).local()) == times(2));
  DistributedTensor held = tape.gradient(w);  // whoever has it sees it as it was
  tape.backward(total(ops::linear(x, w)));
  CHECK(held.id() != tape.gradient(w).id());
  CHECK(values(held.local()) == times(2));
  CHECK(difference(values(tape.gradient(w).local()), times(3)) < 1e-6);
}

TEST_CASE("errors of the tape") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole);
  Tape tape(*rank);
  tape.watch(x);
  auto backward = [&](const DistributedTensor& loss) { return error_of([&] { tape.backward(loss); }); };
  CHECK(backward(ops::square(x)) == "[backward] the loss f64[2,3] x=Replicate has 6 elements; it needs one");
  CHECK(backward(DistributedTensor::distribute(f64({}, 1), m, whole)) == "[backward] no watched value leads to the loss");
  CHECK(backward(ops::sum(call(ops::relu_backward_op, {&x, &x}))) == "[backward] relu_backward has no gradient");
  CHECK(backward(ops::sum(call(forgetful_op, {&x}))) == "[forgetful] the gradient asks for input 0, which the card does not keep");
  CHECK(backward(ops::sum(call(wrong_shape_op, {&x}))) ==
        "[backward] the gradient of wrong_shape gives f64[] x=Replicate for an input of shape [2,3]");
}

TEST_CASE("a failed backward pass leaves nothing behind") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole);
  Tape tape(*rank);
  tape.watch(x);
  error_of([&] { tape.backward(ops::sum(x + ops::maximum(x, x))); });
  CHECK(tape.nodes() == 0);
  tape.clear_gradients();
  tape.backward(ops::sum(x * 5));
  CHECK(values(tape.gradient(x).local()) == std::vector<double>(6, 5));
}

TEST_CASE("a value that was computed cannot be watched") {
  // Its gradient would stop there, and what it was computed from would silently get none.
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  DistributedTensor x = DistributedTensor::distribute(f64({2, 3}, 1), m, whole);
  Tape tape(*rank);
  tape.watch(x);
  tape.watch(x);  // twice is once
  DistributedTensor h = ops::square(x);
  CHECK_THAT(error_of([&] { tape.watch(h); }), Contains("[watch] f64[2,3] x=Replicate was computed from a watched value, whose gradient would end here: watch values before they are used"));
}
