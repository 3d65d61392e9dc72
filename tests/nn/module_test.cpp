#include "nn/module.h"

#include <fmt/format.h>
#include <map>

#include "nn/parallel/fully_shard.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// Takes tensors and others, gives a tuple of tensors and others.
struct Mixed : Callable<std::tuple<DistributedTensor, int, DistributedTensor>(const DistributedTensor&, int,
                                                                              const DistributedTensor&, std::string&)> {
  using Callable::Callable;
  std::string_view kind() const override { return "Mixed"; }
  std::tuple<DistributedTensor, int, DistributedTensor> forward(const DistributedTensor& a, int k,
                                                                const DistributedTensor& b,
                                                                std::string& note) override {
    note = fmt::format("{} in {}", k, a.mesh().rank_state().label(Label::Kind::module));
    return {a + b, k + 1, a * b};
  }
};

struct Nested : Callable<DistributedTensor(const DistributedTensor&)> {
  explicit Nested(const DeviceMesh& mesh) : Callable(mesh) {
    for (int i = 0; i < 2; ++i) blocks.emplace_back(3 + i, 2, false, 0.1);
  }
  std::string_view kind() const override { return "Nested"; }
  DistributedTensor forward(const DistributedTensor& x) override { return blocks[0](x); }
  Parameter scale{*this, "scale", {2}, Init::ones()};
  ModuleList<Linear> blocks{*this, "blocks"};
  RMSNorm norm{*this, "norm", 5, 1e-5};
};

// The module label at each call.
struct Labels : Observer {
  explicit Labels(Rank& r) : rank(r) { rank.add(*this); }
  ~Labels() override { rank.remove(*this); }
  void on_call(const CallEvent& e) override {
    seen.push_back(fmt::format("{}:{}", rank.label(Label::Kind::module), e.op.name));
  }
  Rank& rank;
  std::vector<std::string> seen;
};

DistributedTensor make(const DeviceMesh& m, const Shape& shape, int seed) {
  return DistributedTensor::distribute(f32(shape, seed), m, Layout());
}

}  // namespace

TEST_CASE("modules and parameters have paths, in the order of declaration") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Nested model(m);
  std::vector<std::string> modules, parameters;
  for (Module* x : model.modules()) modules.push_back(fmt::format("{}:{}", x->path(), x->kind()));
  for (Parameter* p : model.parameters()) parameters.push_back(p->path() + to_string(p->shape()));
  CHECK(modules ==
        std::vector<std::string>{":Nested", "blocks:ModuleList", "blocks.0:Linear", "blocks.1:Linear", "norm:RMSNorm"});
  CHECK(parameters ==
        std::vector<std::string>{"scale[2]", "blocks.0.weight[2,3]", "blocks.1.weight[2,4]", "norm.weight[5]"});
  CHECK(model.own_parameters().size() == 1);
  CHECK(model.find_parameter("scale") == &model.scale);
  CHECK(model.find_parameter("weight") == nullptr);
  CHECK(model.blocks[1].find_parameter("weight") == &model.blocks[1].weight);
  CHECK(model.blocks[1].find_parameter("blocks.1.weight") == nullptr);
  CHECK(model.blocks.size() == 2);
  for (Linear& block : model.blocks) CHECK(block.kind() == "Linear");
}

TEST_CASE("a call runs before-hooks and after-hooks on its tensors, under its label") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Root root(m);
  Mixed mixed(root, "mixed");
  DistributedTensor a = make(m, {2}, 1), b = make(m, {2}, 2);
  std::vector<double> va = values(a.local()), vb = values(b.local());
  std::string order;
  mixed.add_before_hook([&](Module& x, std::vector<DistributedTensor*>& t) {
    order += fmt::format("before {} {};", x.path(), t.size());
    *t[0] = *t[0] * 2;
  });
  mixed.add_before_hook([&](Module&, std::vector<DistributedTensor*>& t) {
    order += "then;";
    *t[1] = *t[1] + 1;
  });
  mixed.add_after_hook([&](Module&, std::vector<DistributedTensor*>& t) {
    order += fmt::format("after {};", t.size());
    *t[1] = -*t[1];
  });
  std::string note;
  Labels labels(*rank);
  auto [sum, k, product] = mixed(a, 5, b, note);
  CHECK(order == "before mixed 2;then;after 2;");
  CHECK(note == "5 in mixed");
  CHECK(k == 6);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(values(sum.local())[i] == Approx(2 * va[i] + vb[i] + 1).epsilon(1e-6));
    CHECK(values(product.local())[i] == Approx(-2 * va[i] * (vb[i] + 1)).epsilon(1e-6));
  }
  CHECK(labels.seen ==
        std::vector<std::string>{"mixed:mul_scalar", "mixed:add_scalar", "mixed:add", "mixed:mul", "mixed:neg"});
  CHECK(values(a.local()) == va);  // the caller's handles are not replaced
  CHECK(values(b.local()) == vb);
  CHECK(rank->labels().empty());
}

TEST_CASE("labels are those of the innermost module, also after an error") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Mlp mlp(m);
  materialize(mlp, 1);
  Labels labels(*rank);
  mlp(make(m, {2, 6}, 1));
  CHECK(labels.seen == std::vector<std::string>{"up:linear", ":gelu", "down:linear"});
  CHECK_THAT(error_of([&] { mlp(make(m, {2, 7}, 1)); }), Contains("[linear]"));
  CHECK(rank->labels().empty());
}

TEST_CASE("a parameter is born on meta, is placed, and gets values") {
  on_mesh("dp=2,tp=2", [](const DeviceMesh& m) {
    Nested model(m);
    Parameter& p = model.blocks[1].weight;
    check(p.stored().is_meta() && p.stored().layout() == Layout(), "{}", to_string(p.stored()));
    check(m.rank_state().allocator()->bytes_in_use() == 0, "{} bytes before materialize",
          m.rank_state().allocator()->bytes_in_use());
    p.place(1, Shard(-1));
    check(to_string(p.stored()) == "f32[2,4] dp=Replicate tp=Shard(1)", "{}", to_string(p.stored()));
    p.place(0, Shard(1));
    check(to_string(p.stored()) == "f32[2,4] dp=Shard(1) tp=Shard(1)", "{}", to_string(p.stored()));
    p.place(0, Replicate());
    check(p().id() == p.stored().id(), "used and stored alike are one value");
    std::string error = error_of([&] { p.place(1, Shard(2)); });
    check(error == "[Parameter::place] dimension 2 is out of range for 2 dimensions", "{}", error);
    materialize(model, 3);
    check(!p.stored().is_meta() && p.stored().local().shape() == Shape{2, 2}, "{}", to_string(p.stored()));
    check(values(model.norm.weight.stored().local()) == std::vector<double>(5, 1), "ones");
    error = error_of([&] { p.place(1, Replicate()); });
    check(error == "[Parameter] blocks.1.weight has values already: apply plans before materialize()", "{}", error);
  });
  SECTION("in a dry run it has none, but they are counted") {
    auto rank = Rank::recorded(2);
    DeviceMesh m(*rank, "tp=2");
    Nested model(m);
    CHECK(rank->allocator()->bytes_in_use() == 0);
    materialize(model, 3);
    CHECK(model.scale.stored().is_meta());
    int64_t bytes = 0;
    for (Parameter* p : model.parameters()) bytes += p->stored().local().bytes();
    CHECK(rank->allocator()->bytes_in_use() == bytes);
  }
}

TEST_CASE("law 5: initial values belong to global indices") {
  struct Wide : Callable<DistributedTensor(const DistributedTensor&)> {
    explicit Wide(const DeviceMesh& mesh) : Callable(mesh) {}
    std::string_view kind() const override { return "Wide"; }
    DistributedTensor forward(const DistributedTensor& x) override { return second(first(x)); }
    Linear first{*this, "first", 37, 41, true, 0.02}, second{*this, "second", 41, 37, false, 0.5};
  };
  auto initial = [](const char* mesh, uint64_t seed, Placement a, Placement b) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Wide model(m);
                     for (int axis = 0; axis < m.shape().axes(); ++axis) {
                       model.first.weight.place(axis, axis ? b : a);
                       model.second.weight.place(axis, axis ? a : b);
                     }
                     materialize(model, seed);
                     std::vector<std::vector<double>> v;
                     for (Parameter* p : model.parameters()) v.push_back(values(p->stored().full_tensor()));
                     return v;
                   })
        .back();
  };
  auto one = initial("x=1", 5, Replicate(), Replicate());
  for (const char* mesh : {"x=2", "x=3", "x=4", "x=2,y=2", "x=3,y=2"})
    for (Placement a : {Replicate(), Shard(0), Shard(1)})
      for (Placement b : {Shard(0), Shard(1)}) {
        INFO(mesh << " " << to_string(a) << " " << to_string(b));
        CHECK(initial(mesh, 5, a, b) == one);
      }
  CHECK(initial("x=1", 6, Replicate(), Replicate())[0] != one[0]);
  CHECK(one[1] == std::vector<double>(41, 0));  // the bias
  double mean = 0, square = 0;
  for (double v : one[2]) mean += v, square += v * v;
  double n = double(one[2].size());
  CHECK(std::abs(mean / n) < 4 * 0.5 / std::sqrt(n));
  CHECK(std::sqrt(square / n) == Approx(0.5).epsilon(0.1));
  // Another path is another stream: scaled alike, the two weights share no value.
  int same = 0;
  for (size_t i = 0; i < one[0].size(); ++i) same += std::abs(one[0][i] / 0.02 - one[2][i] / 0.5) < 1e-6;
  CHECK(same == 0);
}

namespace {

// The output, and the gradients of all parameters for the sum of its squares; whole, by rank.
std::vector<std::vector<double>> output_and_gradients(Module& model, const std::function<DistributedTensor()>& call) {
  Autograd autograd(model.mesh().rank_state());
  watch_parameters(autograd, model.parameters());
  DistributedTensor y = call();
  autograd.backward(ops::sum(ops::square(y)).redistribute(Layout()));
  std::vector<std::vector<double>> all{values(y.full_tensor())};
  for (const DistributedTensor& g : reduce_gradients(autograd, model.parameters()))
    all.push_back(values(g.full_tensor()));
  return all;
}

bool near_to(const std::vector<std::vector<double>>& a, const std::vector<std::vector<double>>& b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = difference(a[i], b[i]) < 1e-6;
  return same;
}

// A gated network whose two first projections are two products, or one.
struct Gated : Callable<DistributedTensor(const DistributedTensor&)> {
  Gated(const DeviceMesh& mesh, bool joint) : Callable(mesh), joint_(joint) {}
  std::string_view kind() const override { return "Gated"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    if (!joint_) {
      DistributedTensor g = gate(x), u = up(x);
      return down(ops::swiglu(g, u));
    }
    DistributedTensor a = x, b = x;
    gate.run_before_hooks({&a});
    up.run_before_hooks({&b});
    DistributedTensor weights = ops::stack({gate.weight(), up.weight()});
    DistributedTensor both = ops::einsum("bsk,jok->jbso", {&a, &weights});
    DistributedTensor g = ops::select(both, 0, 0), u = ops::select(both, 0, 1);
    gate.run_after_hooks({&g});
    up.run_after_hooks({&u});
    return down(ops::swiglu(g, u));
  }
  bool joint_;
  Linear gate{*this, "gate", 6, 8, false, 0.5}, up{*this, "up", 6, 8, false, 0.5},
      down{*this, "down", 8, 6, false, 0.5};
};

}  // namespace

TEST_CASE("a joint projection by the hooks of two Linears is the two calls under any plan") {
  const char* const plans[] = {
      R"({})",
      R"({"tensor_parallel": {"axis": "tp", "plan": {"gate": "ColwiseParallel", "up": "ColwiseParallel", "down": "RowwiseParallel"}}})",
      R"j({"tensor_parallel": {"axis": "tp", "plan": {"gate": {"style": "ColwiseParallel", "output_layouts": "Replicate"},
           "up": {"style": "ColwiseParallel", "output_layouts": "Replicate"}}}})j",
      R"({"tensor_parallel": {"axis": "tp", "plan": {"gate": "ColwiseParallel", "up": "ColwiseParallel", "down": "RowwiseParallel"}},
          "fully_shard": {"axis": "dp", "modules": ["gate", "up", ""]}})"};
  auto run = [](const char* mesh, const char* plan, bool joint) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     m.rank_state().strict = true;
                     Gated model(m, joint);
                     ParallelPlan::from_json(json(plan)).apply(model);
                     materialize(model, 1);
                     Layout rows = m.shape().find("dp") >= 0 ? Layout{Shard(0)} : Layout();
                     CommLog log(m.rank_state());
                     auto result = output_and_gradients(model, [&] {
                       return model(DistributedTensor::distribute(f32({4, 3, 6}, 2), m, rows));
                     });
                     std::string gathers;  // of the outputs: by the modules' own lines, under their own labels
                     for (const auto& e : log.entries())
                       if (e.plan_line.find("Colwise") != std::string::npos && e.phase != Phase::backward)
                         gathers += e.module + " " + e.plan_line + ";";
                     return std::pair(result, gathers);
                   })
        .back();
  };
  auto one = run("tp=1", plans[0], false).first;
  for (const char* plan : plans)
    for (const char* mesh : {"tp=2", "dp=2,tp=2"}) {
      if (std::string(plan).find("dp") != std::string::npos && mesh[0] != 'd') continue;
      INFO(plan << " on " << mesh);
      auto [joint, joint_gathers] = run(mesh, plan, true);
      auto [apart, apart_gathers] = run(mesh, plan, false);
      CHECK(near_to(joint, one));
      CHECK(near_to(apart, one));
      CHECK(joint_gathers == apart_gathers);
      CHECK(joint_gathers.empty() == (plan != plans[2]));
    }
}

TEST_CASE("a replaced forward runs between the hooks and gives the same values and gradients") {
  auto run = [](const char* mesh, bool replace) {
    return on_mesh(
               mesh,
               [&](const DeviceMesh& m) {
                 m.rank_state().strict = true;
                 Mlp mlp(m, true);
                 ParallelPlan::from_json(
                     json(
                         R"({"tensor_parallel": {"axis": "tp", "plan": {"up": "ColwiseParallel", "down": "RowwiseParallel"}}})"))
                     .apply(mlp);
                 materialize(mlp, 1);
                 int calls = 0;
                 if (replace)
                   for (Linear* linear : {&mlp.up, &mlp.down})
                     linear->replace_forward([linear, &calls](const DistributedTensor& x) {  // in two halves
                       ++calls;
                       std::vector<DistributedTensor> halves = ops::chunk(x, 2, 1);
                       return ops::cat({linear->forward(halves[0]), linear->forward(halves[1])}, 1);
                     });
                 Labels labels(m.rank_state());
                 auto result = output_and_gradients(mlp, [&] {
                   return mlp(DistributedTensor::distribute(f32({4, 4, 6}, 2), m, Layout()));
                 });
                 check(calls == (replace ? 2 : 0), "{} calls", calls);
                 if (replace)
                   check(std::find(labels.seen.begin(), labels.seen.end(), "up:cat") != labels.seen.end(), "no label");
                 return result;
               })
        .back();
  };
  auto one = run("tp=1", false);
  for (const char* mesh : {"tp=1", "tp=2", "tp=4"}) CHECK(near_to(run(mesh, true), one));

  // What is no tensor passes too, and hooks stay.
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Root root(m);
  Mixed mixed(root, "mixed");
  mixed.add_before_hook([](Module&, std::vector<DistributedTensor*>& t) { *t[0] = *t[0] * 2; });
  mixed.replace_forward([](const DistributedTensor& a, int k, const DistributedTensor& b, std::string& note) {
    note = "replaced";
    return std::tuple(a, 10 * k, b);
  });
  DistributedTensor a = make(m, {2}, 1);
  std::string note;
  auto [twice, k, same] = mixed(a, 5, a, note);
  CHECK((k == 50 && note == "replaced"));
  CHECK(values(twice.local())[0] == Approx(2 * values(a.local())[0]));
  CHECK(same.id() == a.id());
  CHECK(error_of([&] { mixed.replace_forward([](auto&& x, int i, auto&&, auto&&) { return std::tuple(x, i, x); }); }) ==
        "[replace_forward] the forward of mixed is replaced already");
}

TEST_CASE("a class derived from a module is called as itself") {
  struct Twice : Linear {
    using Linear::Linear;
    std::string_view kind() const override { return "Twice"; }
    DistributedTensor forward(const DistributedTensor& x) override { return Linear::forward(x) * 2; }
  };
  struct Model : Callable<DistributedTensor(const DistributedTensor&)> {
    explicit Model(const DeviceMesh& mesh) : Callable(mesh) { list.emplace_back<Twice>(6, 8, false, 0.5); }
    std::string_view kind() const override { return "Model"; }
    DistributedTensor forward(const DistributedTensor& x) override { return list[0](x); }
    ModuleList<Linear> list{*this, "list"};
  };
  auto run = [](const char* mesh, const char* plan) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Model model(m);
                     ParallelPlan::from_json(json(plan)).apply(model);
                     materialize(model, 1);
                     DistributedTensor x = DistributedTensor::distribute(f32({4, 6}, 2), m, Layout());
                     DistributedTensor y = model(x);
                     check(difference(values(y.full_tensor()),
                                      values((ops::linear(x, model.list[0].weight()) * 2).full_tensor())) < 1e-6,
                           "called as Linear");
                     return std::pair(to_string(model.list[0].weight.stored().layout(), m.shape()),
                                      values(y.full_tensor()));
                   })
        .back();
  };
  // A plan's styles fit what is derived as they fit the base.
  auto [layout, sharded] = run("tp=2", R"({"tensor_parallel": {"axis": "tp", "plan": {"list.0": "ColwiseParallel"}}})");
  CHECK(layout == "tp=Shard(0)");
  CHECK(difference(sharded, run("tp=1", "{}").second) < 1e-6);
}

TEST_CASE("a module that can be called in several ways runs its hooks in each") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Root root(m);
  RMSNorm norm(root, "norm", 4, 1e-5);
  materialize(root, 1);
  std::string seen;
  norm.add_before_hook([&](Module&, std::vector<DistributedTensor*>& t) { seen += fmt::format("{} in,", t.size()); });
  norm.add_after_hook([&](Module&, std::vector<DistributedTensor*>& t) { seen += fmt::format("{} out;", t.size()); });
  DistributedTensor x = make(m, {3, 4}, 1);
  norm(x);
  auto [normed, sum] = norm(x, x);
  CHECK(seen == "1 in,1 out;2 in,2 out;");
  CHECK(difference(values(sum.local()), values((x * 2).local())) < 1e-6);
}

TEST_CASE("what a constructor that throws has made is forgotten, and its name is free") {
  struct Failing : Callable<DistributedTensor(const DistributedTensor&)> {
    Failing(Module& parent, std::string name, bool fails) : Callable(parent, std::move(name)) {
      check(!fails, "[test] no");
    }
    std::string_view kind() const override { return "Failing"; }
    DistributedTensor forward(const DistributedTensor& x) override { return x; }
    Linear inner{*this, "inner", 2, 2, true, 0.1};
    Parameter weight{*this, "weight", {2}, Init::ones()};
  };
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Root root(m);
  ModuleList<Failing> list(root, "list");
  auto paths = [&] {
    std::vector<std::string> all;
    for (Module* x : root.modules()) all.push_back(x->path());
    for (Parameter* p : root.parameters()) all.push_back(p->path());
    return all;
  };
  const std::vector<std::string> before{"", "list"};
  CHECK(error_of([&] { Failing(root, "child", true); }) == "[test] no");
  CHECK(error_of([&] { list.emplace_back(true); }) == "[test] no");
  CHECK(error_of([&] { Parameter(root, "scale", Shape{-1}, Init::ones()); }) != "");
  CHECK(paths() == before);
  CHECK(list.size() == 0);
  {
    Failing child(root, "child", false);
    Parameter scale(root, "scale", {2}, Init::ones());
    list.emplace_back(false);
    CHECK(paths() == std::vector<std::string>{"", "list", "list.0", "list.0.inner", "child", "child.inner", "scale",
                                              "list.0.weight", "list.0.inner.weight", "list.0.inner.bias",
                                              "child.weight", "child.inner.weight", "child.inner.bias"});
  }
  CHECK(paths().size() == 4 + 3);  // what has left its scope is gone too
}

TEST_CASE("parent, children and parameters may be destroyed in any order") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  auto parent = std::make_unique<Root>(m);
  auto child = std::make_unique<Linear>(*parent, "child", 2, 2, false, 0.1);
  auto scale = std::make_unique<Parameter>(*parent, "scale", Shape{2}, Init::ones());
  SECTION("children first") {
    child.reset(), scale.reset();
    CHECK(parent->modules().size() == 1);
    CHECK(parent->parameters().empty());
  }
  SECTION("the parent first") {
    parent.reset();
    CHECK(child->path() == "child");
    materialize(*child, 1);
    CHECK((*child)(make(m, {3, 2}, 1)).shape() == Shape{3, 2});
    CHECK(scale->path() == "scale");
  }
}

TEST_CASE("two parts of one name, and names that are none, are errors") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Root root(m);
  Root model(root, "model");
  RMSNorm norm(model, "norm", 4, 1e-5);
  Parameter scale(model, "scale", {2}, Init::ones());
  auto child = [&](const char* name) { return error_of([&] { RMSNorm(model, name, 4, 1e-5); }); };
  auto parameter = [&](const char* name) { return error_of([&] { Parameter(model, name, {2}, Init::ones()); }); };
  for (const char* name : {"norm", "scale"}) {
    std::string error =
        fmt::format("[Module] there is a model.{} already: give this child or parameter another name", name);
    CHECK(child(name) == error);
    CHECK(parameter(name) == error);
  }
  for (const char* name : {"", "a.b", "."}) {
    std::string error =
        fmt::format("[Module] \"{}\" is no name for a part of model: a name has letters, and no dots", name);
    CHECK(child(name) == error);
    CHECK(parameter(name) == error);
  }
  CHECK(child("other") == "");
  CHECK(model.modules().size() == 2);
  CHECK(model.parameters().size() == 2);
}

TEST_CASE("a list that begins at another index has the names and initial values of the whole one's part") {
  auto values_of = [](int64_t first, int64_t count) {
    auto rank = Rank::single();
    DeviceMesh m(*rank, "x=1");
    Root root(m);
    ModuleList<Linear> layers(root, "layers", first);
    for (int64_t i = 0; i < count; ++i) layers.emplace_back(4, 3, false, 0.3);
    materialize(root, 7);
    CHECK((layers.first_index() == first && layers.end_index() == first + count && int64_t(layers.size()) == count));
    std::map<std::string, std::vector<double>> all;
    int64_t index = first;
    for (Linear& layer : layers) {
      CHECK(&layer == &layers[index]);
      CHECK(layer.path() == fmt::format("layers.{}", index++));
      all[layer.weight.path()] = values(layer.weight.stored().local());
    }
    CHECK(index == first + count);
    std::string none = fmt::format("[ModuleList] there is no layers.{}: the list has {} of them, from {} on",
                                   first + count, count, first);
    CHECK(error_of([&] { layers[first + count]; }) == none);
    CHECK_THAT(error_of([&] { layers[first - 1]; }), Contains(fmt::format("there is no layers.{}", first - 1)));
    return all;
  };
  auto whole = values_of(0, 6);
  for (auto [first, count] : {std::pair(0, 6), {2, 3}, {5, 1}, {6, 0}})
    for (const auto& [path, v] : values_of(first, count)) CHECK(v == whole.at(path));
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Root root(m);
  CHECK(error_of([&] { ModuleList<Linear>(root, "layers", -1); }) ==
        "[ModuleList] the first index of layers is -1, which is negative");
}

namespace {

// Data and one scale for all of it, as float8 has them.
ParameterForm data_and_scale() {
  return {.names = {"data", "scale"}, .make = [](const DistributedTensor& w) {
            DistributedTensor scale = ops::amax(ops::abs(w)).redistribute(Layout());
            return std::vector{w / scale, scale};
          }};
}

struct Scaled : Callable<DistributedTensor(const DistributedTensor&)> {
  Scaled(const DeviceMesh& mesh, bool scaled) : Callable(mesh), scaled_(scaled) {
    if (scaled) weight.compute_with(data_and_scale());
  }
  std::string_view kind() const override { return "Scaled"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    DistributedTensor y = ops::linear(x, weight());
    return scaled_ ? y * weight("scale") : y;
  }
  bool scaled_;
  Parameter weight{*this, "weight", {8, 6}, Init::normal(0.5)};
};

}  // namespace

TEST_CASE("a parameter's form for computing may be several tensors") {
  auto run = [](const char* mesh, bool scaled, bool shard) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Scaled model(m, scaled);
                     Parameter& w = model.weight;
                     if (shard) {
                       w.place(m.shape().axis("tp"), Shard(0));
                       fully_shard(model, {{m.shape().axis("dp")}, true});
                     }
                     materialize(model, 3);
                     auto is_made_of_stored = [&] {
                       double scale = w("scale").item();
                       std::vector<double> data = values(w.value().full_tensor()),
                                           stored = values(w.stored().full_tensor());
                       for (double& v : data) v *= scale;
                       double most = 0;
                       for (double v : stored) most = std::max(most, std::abs(v));
                       return scale == most && difference(data, stored) < 1e-6;
                     };
                     if (scaled) {
                       check(w.value().layout() == w.stored().layout() && w.value().id() != w.stored().id(),
                             "data lies as stored");
                       check(w().layout() == w.used_layout() && w("data").layout() == w.used_layout(), "data for use");
                       check(w("scale").layout().is_replicated() && is_made_of_stored(), "scale");
                     }
                     uint64_t id = w.value().id();
                     uint32_t version = w.value().version();
                     DistributedTensor x = DistributedTensor::distribute(f32({4, 6}, 2), m, Layout());
                     std::vector<double> output = values(model(x).full_tensor());
                     w.stored().copy_(w.stored() * 3);
                     w.renew();
                     check(w.value().id() == id, "another value: tapes watch the first");
                     check(w.value().version() > version, "the version stays");
                     if (scaled) check(is_made_of_stored(), "not renewed");
                     for (double v : values(model(x).full_tensor())) output.push_back(v);
                     // An optimizer renews it too; its gradient is the first tensor's.
                     auto gradients = output_and_gradients(model, [&] { return model(x); });
                     AdamW(model.parameters(), {})
                         .step({DistributedTensor::distribute(f32({8, 6}, 5), m, w.stored().layout())}, 0.1);
                     if (scaled) check(is_made_of_stored(), "not renewed by the optimizer");
                     for (double v : values(model(x).full_tensor())) output.push_back(v);
                     check(gradients.at(1).size() == 48, "{} elements of a gradient", gradients.at(1).size());
                     return output;
                   })
        .back();
  };
  auto plain = run("dp=1,tp=1", false, false);
  CHECK(difference(run("dp=1,tp=1", true, false), plain) < 1e-6);
  CHECK(difference(run("dp=2,tp=2", true, true), plain) < 1e-6);
  CHECK(difference(run("dp=3,tp=2", true, true), plain) < 1e-6);
}

TEST_CASE("errors of a parameter's form") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Scaled model(m, true), plain(m, false);
  CHECK(error_of([&] { model.weight("scale"); }) == "[Parameter] weight has no values yet: materialize() it first");
  CHECK(error_of([&] { model.weight("zero"); }) ==
        "[Parameter] weight is not computed with a tensor \"zero\"; its form has [data, scale]");
  CHECK(error_of([&] { plain.weight("scale"); }) ==
        "[Parameter] weight is not computed with a tensor \"scale\"; its form has []");
  CHECK(error_of([&] { model.weight.compute_with({}); }) ==
        "[Parameter] weight: a form needs names and a function that makes its tensors");
  model.weight.compute_with({.names = {"a", "b"}, .make = [](const DistributedTensor& w) { return std::vector{w}; }});
  CHECK(error_of([&] { materialize(model, 1); }) ==
        "[Parameter] weight: its form makes 1 tensors, but has the names [a, b]");
  plain.weight.compute_with(
      {.names = {"a"}, .make = [](const DistributedTensor& w) { return std::vector{ops::sum(w)}; }});
  CHECK(error_of([&] { materialize(plain, 1); }) ==
        "[Parameter] weight: the first tensor of its form is f32[] x=Replicate; it needs the shape and layout of "
        "f32[8,6] x=Replicate");
  CHECK(error_of([&] { plain.weight.compute_with(data_and_scale()); }) ==
        "[Parameter] weight has values already: choose its form before materialize()");
  CHECK(error_of([&] { plain.weight.offload(); }) ==
        "[Parameter] weight has values already: offload it before materialize()");
}
