#include "nn/parallel/styles.h"

#include <fmt/format.h>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Two : Callable<std::tuple<DistributedTensor, DistributedTensor>(
                 const DistributedTensor&, const DistributedTensor&)> {  // two tensor inputs, two tensor outputs
  using Callable::Callable;
  std::string_view kind() const override { return "Two"; }
  std::tuple<DistributedTensor, DistributedTensor> forward(const DistributedTensor& a,
                                                           const DistributedTensor& b) override {
    return {a, b};
  }
};

Style style(Style::Kind kind, const std::vector<std::optional<Placement>>& in = {},
            const std::vector<std::optional<Placement>>& out = {}) {
  Style s;
  s.kind = kind;
  if (kind == Style::Kind::prepare_output)
    s.output_layouts = in, s.desired_output_layouts = out;
  else
    s.input_layouts = in, (kind == Style::Kind::prepare_input ? s.desired_input_layouts : s.output_layouts) = out;
  return s;
}

std::string line_of(const Style& s) { return "m: " + std::string(name(s.kind)); }

constexpr auto column = Style::Kind::colwise, row = Style::Kind::rowwise, sequence = Style::Kind::sequence;
const Placement R = Replicate(), S0 = Shard(0), S1 = Shard(1), S2 = Shard(2), last = Shard(-1);

}  // namespace

TEST_CASE("names of styles") {
  for (auto [kind, text] : {std::pair(column, "ColwiseParallel"),
                            {row, "RowwiseParallel"},
                            {sequence, "SequenceParallel"},
                            {Style::Kind::prepare_input, "PrepareModuleInput"},
                            {Style::Kind::prepare_output, "PrepareModuleOutput"}})
    CHECK(name(kind) == text);
}

TEST_CASE("styles place parameters and bring inputs and outputs") {
  struct Case {
    const char* module;
    Style style;
    Placement arrives, weight, bias, leaves;
    const char* forward;  // collectives
  };
  const Case cases[] = {
      {"Linear", style(column), R, S0, S0, S2, ""},
      {"Linear", style(column, {}, {R}), R, S0, S0, R, "all_gather 1"},
      {"Linear", style(column, {S1}), S1, S0, S0, S2, "all_gather 1"},
      {"Linear", style(column, {S1}, {S1}), S1, S0, S0, S1, "all_gather 1, all_to_all 1"},
      {"Linear", style(column, {std::nullopt}, {std::nullopt}), S0, S0, S0, S2,
       "all_gather 1"},  // nothing claimed, the output as it comes
      {"Linear", style(row), S2, S1, R, R, "all_reduce 1"},
      {"Linear", style(row, {last}, {S1}), S2, S1, R, S1, "reduce_scatter 1"},
      {"Linear", style(row, {R}), R, S1, R, R, "all_reduce 1"},  // slices its input
      {"Linear", style(row, {}, {Partial()}), S2, S1, R, Partial(), ""},
      {"Embedding", style(row), R, S0, R, R, "all_reduce 1"},
      {"Embedding", style(row, {R}, {S1}), R, S0, R, S1, "reduce_scatter 1"},
      {"Embedding", style(column), R, S1, R, S2, ""},
      {"Embedding", style(column, {}, {R}), R, S1, R, R, "all_gather 1"},
      {"RMSNorm", style(sequence), S1, R, R, S1, ""},
      {"RMSNorm", style(sequence), R, R, R, S1, ""},
      {"RMSNorm", style(sequence), Partial(), R, R, S1, "reduce_scatter 1"},
  };
  struct Result {
    std::string weight, bias, output, forward;
    std::vector<double> value;
  };
  auto run = [](const Case& c, const char* mesh, bool plain) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Root root(m);
                     std::unique_ptr<Linear> linear;
                     std::unique_ptr<Embedding> embedding;
                     std::unique_ptr<RMSNorm> norm;
                     std::string kind = c.module;
                     Module* module;
                     if (kind == "Linear")
                       module = (linear = std::make_unique<Linear>(root, "m", 7, 10, true, 0.3)).get();
                     else if (kind == "Embedding")
                       module = (embedding = std::make_unique<Embedding>(root, "m", 9, 10, 0.3)).get();
                     else
                       module = (norm = std::make_unique<RMSNorm>(root, "m", 7, 1e-5)).get();
                     int axis = m.shape().find("tp");
                     if (!plain) nn::apply(*module, axis, c.style, line_of(c.style));
                     materialize(root, 1);
                     Parameter* bias = module->find_parameter("bias");
                     if (bias)
                       bias->stored().copy_(DistributedTensor::distribute(f32({10}, 3), m, bias->stored().layout()));
                     // The batch is sharded over dp where there is such an axis; a style leaves that alone.
                     Layout in = m.shape().find("dp") >= 0 ? Layout().with(0, Shard(0)) : Layout();
                     if (!plain) in = in.with(axis, c.arrives);
                     Tensor ids = Tensor::of<int64_t>({2, 6}, {0, 8, 3, 3, 1, 2, 7, 4, 5, 6, 0, 8});
                     DistributedTensor x = DistributedTensor::distribute(embedding ? ids : f32({2, 6, 7}, 2), m, in), y;
                     CommLog log(m.rank_state());
                     {
                       PhaseScope phase(m.rank_state(), Phase::forward);
                       y = linear ? (*linear)(x) : embedding ? (*embedding)(x) : (*norm)(x);
                     }
                     std::string forward = counts(log.entries(), Phase::forward);
                     for (const auto& e : log.entries()) check(e.module == "m", "module {}", e.module);
                     Result r{to_string(module->find_parameter("weight")->stored().layout(), m.shape()),
                              bias ? to_string(bias->stored().layout(), m.shape()) : "",
                              to_string(y.layout(), m.shape()), forward, values(y.full_tensor())};
                     return r;
                   })
        .back();
  };
  for (const Case& c : cases) {
    std::vector<double> expected = run(c, "tp=1", true).value;
    for (const char* mesh : {"tp=2", "tp=3", "tp=4", "dp=2,tp=2"}) {
      bool dp = mesh[0] == 'd';
      if (dp && c.arrives == S0) continue;
      Result r = run(c, mesh, false);
      INFO(c.module << " " << name(c.style.kind) << " from " << to_string(c.arrives) << " on " << mesh);
      auto text = [&](Placement p, bool batch) {
        return fmt::format("{}tp={}", !dp ? "" : batch ? "dp=Shard(0) " : "dp=Replicate ", to_string(p));
      };
      CHECK(r.weight == text(c.weight, false));
      if (!r.bias.empty()) CHECK(r.bias == text(c.bias, false));
      CHECK(r.output == text(c.leaves, true));
      CHECK(r.forward == c.forward);
      CHECK(difference(r.value, expected) < 1e-6);
    }
    Result one = run(c, "tp=1", false);  // an axis of one rank: nothing happens
    CHECK(one.forward == "");
    CHECK(one.value == expected);
  }
}

TEST_CASE("PrepareModuleInput and PrepareModuleOutput bring the first tensors") {
  on_mesh("dp=2,tp=2", [](const DeviceMesh& m) {
    Root root(m);
    Two in(root, "in"), out(root, "out");
    nn::apply(in, 1, style(Style::Kind::prepare_input, {std::nullopt, S1}, {S0, R}));
    nn::apply(out, 1, style(Style::Kind::prepare_output, {S1}, {R}));
    auto make = [&](Placement p) { return DistributedTensor::distribute(f32({4, 4}, 1), m, {S0, p}); };
    auto texts = [](const auto& pair) { return to_string(std::get<0>(pair)) + ", " + to_string(std::get<1>(pair)); };
    std::string t = texts(in(make(S1), make(S1)));
    check(t == "f32[4,4] dp=Shard(0) tp=Shard(0), f32[4,4] dp=Shard(0) tp=Replicate", "{}", t);
    t = texts(out(make(S1), make(S1)));
    check(t == "f32[4,4] dp=Shard(0) tp=Replicate, f32[4,4] dp=Shard(0) tp=Shard(1)", "{}", t);
  });
}

TEST_CASE("collectives of a style carry its line") {
  Entries e = on_mesh("tp=2", [](const DeviceMesh& m) {
    Root root(m);
    Linear linear(root, "m", 6, 6, false, 0.1);
    nn::apply(linear, 0, style(row, {}, {R}), "m: RowwiseParallel");
    materialize(root, 1);
    m.rank_state().strict = true;
    CommLog log(m.rank_state());
    linear(DistributedTensor::distribute(f32({2, 6}, 1), m, {Shard(1)}));
    return log.entries();
  })[0];
  REQUIRE(e.size() == 1);
  CHECK(e[0].plan_line == "m: RowwiseParallel");
  CHECK(e[0].module == "m");
  CHECK(e[0].asked_for);
}

TEST_CASE("errors of styles name module, claim and fact") {
  struct Case {
    const char* module;
    Style style;
    Placement arrives;
    const char* error;
  };
  const Case cases[] = {
      {"Two", style(column), R, "[m] m: ColwiseParallel fits Linear and Embedding, not Two"},
      {"RMSNorm", style(row), R, "[m] m: RowwiseParallel fits Linear and Embedding, not RMSNorm"},
      {"Linear", style(column), S1,
       "[m] m: ColwiseParallel claims that input 0 arrives as tp=Replicate, but it is f32[2,4,6] tp=Shard(1): correct "
       "the claim, or prepare the input with a line before"},
      {"Linear", style(row), R,
       "[m] m: RowwiseParallel claims that input 0 arrives as tp=Shard(2), but it is f32[2,4,6] tp=Replicate: correct"},
      {"Linear", style(column, {Partial()}), R,
       "claims that input 0 arrives as tp=Partial(sum), but it is f32[2,4,6] tp=Replicate"},
      {"Linear", style(column, {R}, {Shard(3)}), R,
       "[m] m: ColwiseParallel: Shard(3) names no dimension of f32[2,4,10] tp=Shard(2)"},
      {"Linear", style(column, {Shard(-4)}), R,
       "[m] m: ColwiseParallel: Shard(-4) names no dimension of f32[2,4,6] tp=Replicate"},
      {"Linear", style(column, {R, R}), R,
       "[m] m: ColwiseParallel gives layouts of 2 inputs, but the module has 1 tensor inputs"},
      {"Linear", style(column, {R}, {R, R, R}), R,
       "[m] m: ColwiseParallel gives layouts of 3 outputs, but the module has 1 tensor outputs"},
      {"Two", style(Style::Kind::prepare_input, {R, R, R}, {R, R, R}), R,
       "[m] m: PrepareModuleInput gives layouts of 3 inputs, but the module has 2 tensor inputs"},
      {"Two", style(Style::Kind::prepare_output, {R, S1}, {R, R}), R,
       "[m] m: PrepareModuleOutput claims that output 1 arrives as tp=Shard(1), but it is f32[2,4,6] tp=Replicate: "
       "correct the claim, or prepare the output"},
      {"RMSNorm",
       [] {
         Style s = style(sequence);
         s.sequence_dim = 3;
         return s;
       }(),
       R, "[m] m: SequenceParallel: Shard(3) names no dimension of f32[2,4,6] tp=Replicate"},
  };
  for (const Case& c : cases) {
    INFO(c.module << " " << name(c.style.kind) << ": " << c.error);
    CHECK_THAT(error_of([&] {
                 on_mesh("tp=2", [&](const DeviceMesh& m) {
                   Root root(m);
                   Linear linear(root, std::string(c.module) == "Linear" ? "m" : "x", 6, 10, false, 0.1);
                   RMSNorm norm(root, std::string(c.module) == "RMSNorm" ? "m" : "y", 6, 1e-5);
                   Two two(root, std::string(c.module) == "Two" ? "m" : "z");
                   Module& module = linear.path() == "m" ? static_cast<Module&>(linear)
                                    : norm.path() == "m" ? static_cast<Module&>(norm)
                                                         : two;
                   nn::apply(module, 0, c.style, line_of(c.style));
                   materialize(root, 1);
                   DistributedTensor x = DistributedTensor::distribute(f32({2, 4, 6}, 1), m, {c.arrives});
                   if (linear.path() == "m")
                     linear(x);
                   else if (norm.path() == "m")
                     norm(x);
                   else
                     two(x, x);
                 });
               }),
               Contains(c.error));
  }
}

TEST_CASE("styles that do not fit a module, or name inputs that it has not, are errors") {
  auto rank = Rank::recorded(2);
  DeviceMesh m(*rank, "tp=2");
  Root root(m);
  RMSNorm norm(root, "norm", 7, 1e-5);
  Two two(root, "two");
  two.input_names = {"query", "key"};
  Style by_name{.kind = Style::Kind::prepare_input,
                .input_kwarg_layouts = {{"quary", S1}},
                .desired_input_kwarg_layouts = {{"quary", R}}};
  CHECK_THAT(
      error_of([&] { nn::apply(two, 0, by_name); }),
      Catch::StartsWith("[two] PrepareModuleInput: there is no tensor input \"quary\"; the nearest is \"query\""));
  Style twice{.kind = Style::Kind::prepare_input,
              .input_layouts = {S1},
              .desired_input_layouts = {R},
              .input_kwarg_layouts = {{"query", S1}},
              .desired_input_kwarg_layouts = {{"query", R}}};
  CHECK_THAT(error_of([&] { nn::apply(two, 0, twice); }),
             Catch::Contains("input \"query\" has a layout by its position too; keep one of them"));
  CHECK_THAT(error_of([&] { nn::apply(norm, 0, {.kind = Style::Kind::linear_loss}); }),
             Catch::StartsWith(
                 "[norm] LinearLossParallel fits LinearCrossEntropyLoss, the criterion of a model, not RMSNorm"));
  CHECK_THAT(error_of([&] { nn::apply(norm, 0, {.kind = Style::Kind::swiglu_linear}); }),
             Catch::StartsWith("[norm] SwiGLULinearParallel fits SwiGLULinear, not RMSNorm"));
}

TEST_CASE("inputs by keyword are brought as those by position are") {
  auto layouts = on_mesh("tp=2", [&](const DeviceMesh& m) {
    Root root(m);
    Two two(root, "two");
    two.input_names = {"query", "key"};
    nn::apply(two, 0,
              {.kind = Style::Kind::prepare_input_output,
               .output_layouts = {std::nullopt, R},
               .desired_output_layouts = {std::nullopt, S0},
               .input_kwarg_layouts = {{"key", S1}},
               .desired_input_kwarg_layouts = {{"key", R}}});
    auto x = DistributedTensor::distribute(f32({4, 4}, 1), m, Layout().with(0, S1));
    auto [a, b] = two(x, x);
    return to_string(a.layout(), m.shape()) + ", " + to_string(b.layout(), m.shape());
  })[0];
  CHECK(layouts == "tp=Shard(1), tp=Shard(0)");
}
