#include "nn/module.h"

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Root : Module {
  using Module::Module;
  std::string_view kind() const override { return "Root"; }
};

// Takes tensors and others, gives a tuple of tensors and others.
struct Mixed : Callable<Mixed> {
  using Callable::Callable;
  std::string_view kind() const override { return "Mixed"; }
  std::tuple<DistributedTensor, int, DistributedTensor> forward(const DistributedTensor& a, int k, const DistributedTensor& b, std::string& note) {
    note = fmt::format("{} in {}", k, a.mesh().rank_state().label(Label::Kind::module));
    return {a + b, k + 1, a * b};
  }
};

struct Nested : Callable<Nested> {
  explicit Nested(const DeviceMesh& mesh) : Callable(mesh) {
    for (int i = 0; i < 2; ++i) blocks.emplace_back(3 + i, 2, false, 0.1);
  }
  std::string_view kind() const override { return "Nested"; }
  DistributedTensor forward(const DistributedTensor& x) { return blocks[0](x); }
  Parameter scale{*this, "scale", {2}, Init::ones()};
  ModuleList<Linear> blocks{*this, "blocks"};
  RMSNorm norm{*this, "norm", 5, 1e-5};
};

// The module label at each call.
struct Labels : Observer {
  explicit Labels(Rank& r) : rank(r) { rank.add(*this); }
  ~Labels() override { rank.remove(*this); }
  void on_call(const CallEvent& e) override { seen.push_back(fmt::format("{}:{}", rank.label(Label::Kind::module), e.op.name)); }
  Rank& rank;
  std::vector<std::string> seen;
};

DistributedTensor make(const DeviceMesh& m, const Shape& shape, int seed) { return DistributedTensor::distribute(f32(shape, seed), m, Layout()); }

}  // namespace

TEST_CASE("modules and parameters have paths, in the order of declaration") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Nested model(m);
  std::vector<std::string> modules, parameters;
  for (Module* x : model.modules()) modules.push_back(fmt::format("{}:{}", x->path(), x->kind()));
  for (Parameter* p : model.parameters()) parameters.push_back(p->path() + to_string(p->shape()));
  CHECK(modules == std::vector<std::string>{":Nested", "blocks:ModuleList", "blocks.0:Linear", "blocks.1:Linear", "norm:RMSNorm"});
  CHECK(parameters == std::vector<std::string>{"scale[2]", "blocks.0.weight[2,3]", "blocks.1.weight[2,4]", "norm.weight[5]"});
  CHECK(model.own_parameters().size() == 1);
  CHECK(model.find_parameter("scale") == &model.scale);
  CHECK(model.find_parameter("weight") == nullptr);
  CHECK(model.blocks[1].find_parameter("weight") == &model.blocks[1].weight);
  CHECK(model.blocks[1].find_parameter("blocks.1.weight") == nullptr);
  CHECK(model.blocks.size() == 2);
  for (auto& block : model.blocks) CHECK(block->kind() == "Linear");
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
  CHECK(labels.seen == std::vector<std::string>{"mixed:mul_scalar", "mixed:add_scalar", "mixed:add", "mixed:mul", "mixed:neg"});
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
    check(m.rank_state().allocator()->bytes_in_use() == 0, "{} bytes before materialize", m.rank_state().allocator()->bytes_in_use());
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
  struct Wide : Callable<Wide> {
    explicit Wide(const DeviceMesh& mesh) : Callable(mesh) {}
    std::string_view kind() const override { return "Wide"; }
    DistributedTensor forward(const DistributedTensor& x) { return second(first(x)); }
    Linear first{*this, "first", 37, 41, true, 0.02}, second{*this, "second", 41, 37, false, 0.5};
  };
  auto initial = [](const char* mesh, uint64_t seed, Placement a, Placement b) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      Wide model(m);
      for (int axis = 0; axis < m.shape().axes(); ++axis) {
        model.first.weight.place(axis, axis ? b : a);
        model.second.weight.place(axis, axis ? a : b);
      }
      materialize(model, seed);
      std::vector<std::vector<double>> v;
      for (Parameter* p : model.parameters()) v.push_back(values(p->stored().full()));
      return v;
    }).back();
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
