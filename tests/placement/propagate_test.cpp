#include "placement/propagate.h"

#include <catch2/catch.hpp>

#include <optional>

#include "tests/placement/cases.h"
#include "tests/placement/operands.h"
#include "tests/placement/plans.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

// An op on a mesh, with operands such as "f32[8,8] tp=Shard(0)"; "" is absent.
struct Question {
  MeshShape mesh;
  std::vector<std::optional<TensorSpec>> specs;
  BoundRule rule;
  std::vector<std::optional<Layout>> wanted;
  CostModel cost = {};

  Question(const char* mesh_text, Rule r, std::vector<const char*> operands,
           std::vector<const char*> wanted_layouts = {})
      : mesh(MeshShape::parse(mesh_text)), specs(parse(mesh, operands)), rule(bind(std::move(r), specs)) {
    for (size_t o = 0; o < wanted_layouts.size(); ++o)
      wanted.push_back(wanted_layouts[o]
                           ? std::optional(parse_layout(wanted_layouts[o], mesh, rule.outputs()[o].shape.dims()))
                           : std::nullopt);
  }
  Question(const MeshShape& m, const Operands& op, const std::vector<Layout>& layouts) : mesh(m), rule(op.bind()) {
    for (size_t i = 0; i < layouts.size(); ++i)
      specs.push_back(TensorSpec{DType::f32, rule.inputs()[i].shape, layouts[i]});
  }

  template <class F>
  auto ask(F f) const {
    std::vector<const TensorSpec*> inputs;
    std::vector<const Layout*> outputs;
    for (auto& s : specs) inputs.push_back(s ? &*s : nullptr);
    for (auto& w : wanted) outputs.push_back(w ? &*w : nullptr);
    return f(Propagation{rule, mesh, inputs, outputs, cost});
  }
  Choice best() const {
    return ask([](const Propagation& p) { return choose(p); });
  }
  std::vector<Choice> all() const {
    return ask([](const Propagation& p) { return all_choices(p); });
  }

 private:
  static std::vector<std::optional<TensorSpec>> parse(const MeshShape& mesh, const std::vector<const char*>& operands) {
    std::vector<std::optional<TensorSpec>> specs;
    for (const char* o : operands) specs.push_back(*o ? std::optional(parse_spec(o, mesh)) : std::nullopt);
    return specs;
  }
  static BoundRule bind(Rule r, const std::vector<std::optional<TensorSpec>>& specs) {
    std::vector<const Shape*> shapes;
    for (auto& s : specs) shapes.push_back(s ? &s->shape : nullptr);
    return BoundRule("op", std::move(r), shapes);
  }
};

// "tp=Shard(1), tp=Shard(0) -> tp=Partial(sum); 0 bytes, 0 moves"
std::string choice_text(const Question& q, const Choice& c) {
  std::string text;
  for (size_t i = 0; i < c.inputs.size(); ++i)
    text += (i ? ", " : "") + (q.specs[i] ? to_string(c.inputs[i], q.mesh) : std::string("-"));
  text += " -> ";
  for (size_t o = 0; o < c.outputs.size(); ++o) text += (o ? ", " : "") + to_string(c.outputs[o], q.mesh);
  return text + fmt::format("; {} bytes, {} moves", c.bytes, c.moves);
}

const Rule matmul{"...mk,...kn->...mn", {linear_in({0}), linear_in({1})}}, add{"...,...->...", {linear_in({0, 1})}},
    multiply{"...,...->...", {linear_in({0}), linear_in({1})}},
    linear{.text = "...k,nk,n->...n", .passes = {linear_in({0, 2}), linear_in({1, 2})}, .added = {2}},
    softmax{"...[n]->...[n]"}, relu{"...->...", {monotone_in({0})}}, embedding{"...,vd->...d", {linear_in({1})}},
    split_heads{.text = "s(hd)->shd", .passes = {linear_in({0})}, .sizes = {{'h', 3}}},
    max{.text = "...n->...", .reduce = {Reduce::max}};

struct Case {
  Question question;
  const char* choice;
};

void check_choices(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    INFO(c.question.rule.rule().text);
    CHECK(choice_text(c.question, c.question.best()) == c.choice);
  }
}

}  // namespace

TEST_CASE("choices on one axis") {
  check_choices({
      // what fits is not moved
      {{"tp=4", matmul, {"f32[8,8] tp=Shard(1)", "f32[8,8] tp=Shard(0)"}},
       "tp=Shard(1), tp=Shard(0) -> tp=Partial(sum); 0 bytes, 0 moves"},
      {{"tp=4", matmul, {"f32[8,8]", "f32[8,8] tp=Shard(1)"}},
       "tp=Replicate, tp=Shard(1) -> tp=Shard(1); 0 bytes, 0 moves"},
      {{"tp=4", matmul, {"f32[8,8] tp=Shard(0)", "f32[8,8]"}},
       "tp=Shard(0), tp=Replicate -> tp=Shard(0); 0 bytes, 0 moves"},
      {{"tp=4", matmul, {"f32[8,8]", "f32[8,8]"}}, "tp=Replicate, tp=Replicate -> tp=Replicate; 0 bytes, 0 moves"},
      {{"tp=4", matmul, {"f32[8,8] tp=Partial", "f32[8,8]"}},
       "tp=Partial(sum), tp=Replicate -> tp=Partial(sum); 0 bytes, 0 moves"},
      {{"tp=4", add, {"f32[8,8] tp=Partial", "f32[8,8] tp=Partial"}},
       "tp=Partial(sum), tp=Partial(sum) -> tp=Partial(sum); 0 bytes, 0 moves"},
      {{"tp=4", relu, {"f32[8] tp=Partial(max)"}}, "tp=Partial(max) -> tp=Partial(max); 0 bytes, 0 moves"},
      {{"tp=4", max, {"f32[8,8] tp=Shard(1)"}}, "tp=Shard(1) -> tp=Partial(max); 0 bytes, 0 moves"},
      {{"tp=4", embedding, {"i64[8]", "f32[10,8] tp=Shard(0)"}},
       "tp=Replicate, tp=Shard(0) -> tp=Partial(sum); 0 bytes, 0 moves"},
      // local moves cost no bytes
      {{"tp=4", add, {"f32[8,8] tp=Partial", "f32[8,8]"}},
       "tp=Partial(sum), tp=Partial(sum) -> tp=Partial(sum); 0 bytes, 1 moves"},
      {{"tp=4", add, {"f32[8,8] tp=Shard(1)", "f32[8]"}}, "tp=Shard(1), tp=Shard(0) -> tp=Shard(1); 0 bytes, 1 moves"},
      {{"tp=4", matmul, {"f32[8,8] tp=Shard(1)", "f32[8,8]"}},
       "tp=Shard(1), tp=Shard(0) -> tp=Partial(sum); 0 bytes, 1 moves"},
      {{"tp=4", linear, {"f32[8,8] tp=Shard(1)", "f32[4,8] tp=Shard(1)", "f32[4]"}},
       "tp=Shard(1), tp=Shard(1), tp=Partial(sum) -> tp=Partial(sum); 0 bytes, 1 moves"},
      {{"tp=4", linear, {"f32[8,8] tp=Shard(1)", "f32[4,8] tp=Shard(1)", ""}},
       "tp=Shard(1), tp=Shard(1), - -> tp=Partial(sum); 0 bytes, 0 moves"},
      {{"tp=4", linear, {"f32[8,8]", "f32[4,8] tp=Shard(0)", "f32[4] tp=Shard(0)"}},
       "tp=Replicate, tp=Shard(0), tp=Shard(0) -> tp=Shard(1); 0 bytes, 0 moves"},
      // bytes are paid where they must
      {{"tp=4", multiply, {"f32[8,8] tp=Partial", "f32[8,8] tp=Partial"}},
       "tp=Partial(sum), tp=Replicate -> tp=Partial(sum); 384 bytes, 1 moves"},
      {{"tp=4", softmax, {"f32[8,8] tp=Shard(1)"}}, "tp=Shard(0) -> tp=Shard(0); 48 bytes, 1 moves"},
      {{"tp=4", softmax, {"f32[8] tp=Shard(0)"}}, "tp=Replicate -> tp=Replicate; 24 bytes, 1 moves"},
      {{"tp=4", relu, {"f32[8,8] tp=Partial"}}, "tp=Shard(0) -> tp=Shard(0); 192 bytes, 1 moves"},
      {{"tp=4", matmul, {"f32[8,64] tp=Shard(0)", "f32[64,8] tp=Shard(0)"}},
       "tp=Shard(1), tp=Shard(0) -> tp=Partial(sum); 384 bytes, 1 moves"},
      // axes of one rank
      {{"tp=1", matmul, {"f32[8,8]", "f32[8,8]"}}, "tp=Replicate, tp=Replicate -> tp=Replicate; 0 bytes, 0 moves"},
      // a product shards evenly or not at all
      {{"tp=3", split_heads, {"f32[4,6] tp=Shard(1)"}}, "tp=Shard(1) -> tp=Shard(1); 0 bytes, 0 moves"},
      {{"tp=2", split_heads, {"f32[4,6] tp=Shard(1)"}}, "tp=Shard(0) -> tp=Shard(0); 24 bytes, 1 moves"},
      {{"tp=2", split_heads, {"f32[4,6] tp=Partial"}}, "tp=Partial(sum) -> tp=Partial(sum); 0 bytes, 0 moves"},
  });
}

TEST_CASE("choices on two axes are made jointly") {
  check_choices({
      {{"dp=2,tp=2", matmul, {"f32[8,8] dp=Shard(0)", "f32[8,8] tp=Shard(1)"}},
       "dp=Shard(0) tp=Replicate, dp=Replicate tp=Shard(1) -> dp=Shard(0) tp=Shard(1); 0 bytes, 0 moves"},
      {{"dp=2,tp=2", matmul, {"f32[8,8] dp=Shard(0) tp=Shard(1)", "f32[8,8] tp=Shard(0)"}},
       "dp=Shard(0) tp=Shard(1), dp=Replicate tp=Shard(0) -> dp=Shard(0) tp=Partial(sum); 0 bytes, 0 moves"},
      {{"dp=2,tp=2", matmul, {"f32[8,8] dp=Shard(1) tp=Shard(1)", "f32[8,8] dp=Shard(0) tp=Shard(0)"}},
       "dp=Shard(1) tp=Shard(1), dp=Shard(0) tp=Shard(0) -> dp=Partial(sum) tp=Partial(sum); 0 bytes, 0 moves"},
      // law 4: both operands take one order of k, that which is there already; the smaller operand moves
      {{"dp=2,tp=2", matmul, {"f32[8,8] tp=Shard(1) dp=Shard(1)", "f32[8,8] tp=Shard(0) dp=Shard(0)"}},
       "tp=Shard(1) dp=Shard(1), tp=Shard(0) dp=Shard(0) -> dp=Partial(sum) tp=Partial(sum); 0 bytes, 0 moves"},
      {{"dp=2,tp=2", matmul, {"f32[8,8] tp=Shard(1) dp=Shard(1)", "f32[8,4] dp=Shard(0) tp=Shard(0)"}},
       "tp=Shard(1) dp=Shard(1), tp=Shard(0) dp=Shard(0) -> dp=Partial(sum) tp=Partial(sum); 32 bytes, 1 moves"},
      {{"dp=2,tp=2", matmul, {"f32[4,8] tp=Shard(1) dp=Shard(1)", "f32[8,8] dp=Shard(0) tp=Shard(0)"}},
       "dp=Shard(1) tp=Shard(1), dp=Shard(0) tp=Shard(0) -> dp=Partial(sum) tp=Partial(sum); 32 bytes, 1 moves"},
      {{"dp=2,tp=2", add, {"f32[8] tp=Shard(0) dp=Shard(0)", "f32[8]"}},
       "tp=Shard(0) dp=Shard(0), tp=Shard(0) dp=Shard(0) -> tp=Shard(0) dp=Shard(0); 0 bytes, 1 moves"},
      // reductions do not mix
      {{"dp=2,tp=2", add, {"f32[8,8] dp=Partial", "f32[8,8] tp=Partial(avg)"}},
       "dp=Shard(0) tp=Shard(0), dp=Shard(0) tp=Shard(0) -> dp=Shard(0) tp=Shard(0); 128 bytes, 2 moves"},
      {{"dp=2,tp=2", max, {"f32[8,8] dp=Shard(1) tp=Shard(1)"}},
       "dp=Shard(1) tp=Shard(1) -> dp=Partial(max) tp=Partial(max); 0 bytes, 0 moves"},
      // heads over both axes: each alone divides 4, together they do not divide 6
      {{"dp=2,tp=2",
        {.text = "s(hd)->shd", .passes = {linear_in({0})}, .sizes = {{'h', 6}}},
        {"f32[8,12] dp=Shard(1) tp=Shard(1)"}},
       "dp=Shard(1) tp=Shard(0) -> dp=Shard(1) tp=Shard(0); 48 bytes, 1 moves"},
  });
}

TEST_CASE("reductions do not mix in a choice") {
  // Replicate, sharded, sum or avg on each axis, but not sum on one and avg on the other.
  CHECK(Question("dp=2,tp=2", add, {"f32[8] dp=Partial", "f32[8] tp=Partial(avg)"}).all().size() == 4 * 4 - 2);
  // A sharded contraction leaves a sum, which cannot stay beside a max.
  for (const Choice& c :
       Question("dp=2,tp=2", {"...n->...", {monotone_in({0})}}, {"f32[4,8] dp=Partial(max) tp=Shard(1)"}).all())
    CHECK((c.outputs[0].partial != 3 || (c.inputs[0].split[1].set() == 3) ||
           (c.inputs[0].partial == 3 && c.outputs[0].reduce == Reduce::max)));
}

TEST_CASE("among equals the wanted layout decides") {
  Rule gradient{.text = "...d,...->vd", .passes = {linear_in({0})}, .sizes = {{'v', 12}}};
  auto choice = [&](std::vector<const char*> operands, const char* wanted) {
    Question q("tp=4", gradient, operands, {wanted});
    return choice_text(q, q.best());
  };
  std::vector<const char*> whole{"f32[2,3,8]", "i64[2,3]"};
  CHECK(choice(whole, nullptr) == "tp=Replicate, tp=Replicate -> tp=Replicate; 0 bytes, 0 moves");
  CHECK(choice(whole, "tp=Shard(0)") ==
        "tp=Replicate, tp=Replicate -> tp=Shard(0); 0 bytes, 0 moves");  // built in vocabulary shards
  CHECK(choice(whole, "tp=Replicate") == "tp=Replicate, tp=Replicate -> tp=Replicate; 0 bytes, 0 moves");
  CHECK(choice({"f32[4,3,8] tp=Shard(0)", "i64[4,3] tp=Shard(0)"}, "tp=Shard(0)") ==
        "tp=Shard(0), tp=Shard(0) -> tp=Partial(sum); 0 bytes, 0 moves");
  Question q("tp=4", gradient, whole, {"tp=Shard(0)"});
  CHECK((q.best().output_bytes == 0 && q.best().output_moves == 0));
  Question two("tp=4", matmul, {"f32[8,8] tp=Shard(1)", "f32[8,8] tp=Shard(0)"}, {"tp=Replicate"});
  CHECK(two.best().output_bytes == 384);
}

namespace {

Layout random_layout(Random& random, const std::vector<Layout>& layouts) {
  return layouts[size_t(random.below(int(layouts.size())))];
}

int64_t bytes_between(const Question& q, size_t input, const Layout& to) {
  return plan_redistribution(q.mesh, q.specs[input]->shape, DType::f32, q.specs[input]->layout, to, q.cost).bytes();
}

// What is wrong with a choice, if anything.
std::string fault(const Question& q, const Choice& c) {
  int64_t bytes = 0;
  int moves = 0;
  for (size_t i = 0; i < c.inputs.size(); ++i)
    bytes += bytes_between(q, i, c.inputs[i]), moves += c.inputs[i] != q.specs[i]->layout;
  if (bytes != c.bytes || moves != c.moves) return fmt::format("counts {} bytes and {} moves", bytes, moves);
  if (c.factors.size() != q.rule.factors().size()) return "not a list per factor";
  auto agrees = [&](const Operand& o, const Layout& l) {
    for (int d = 0; d < max_dims; ++d) {
      AxisList want;
      if (d < o.shape.dims() && o.leading[size_t(d)] >= 0) want = c.factors[size_t(o.leading[size_t(d)])];
      if (l.split[size_t(d)] != want) return false;
    }
    return !(l.partial & l.sharded());
  };
  for (size_t i = 0; i < c.inputs.size(); ++i)
    if (!agrees(q.rule.inputs()[i], c.inputs[i])) return "an input splits a factor otherwise";
  for (size_t o = 0; o < c.outputs.size(); ++o)
    if (!agrees(q.rule.outputs()[o], c.outputs[o])) return "an output splits a factor otherwise";
  for (size_t f = 0; f < c.factors.size(); ++f)
    if (q.rule.factors()[f].even && q.rule.factors()[f].size % q.mesh.product(c.factors[f].set()))
      return "a product is split unevenly";
  return "";
}

}  // namespace

TEST_CASE("law 4: all operands of a choice share one order and the first choice is the best") {
  Random random{3};
  size_t choices = 0;
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {3}, {2, 2}, {2, 1, 3}})
    for (const Operands& op : well_known_ops())
      for (int i = 0; i < (sizes.size() == 1 ? 60 : 12); ++i) {
        MeshShape mesh = mesh_of(sizes);
        std::vector<Layout> layouts;
        BoundRule rule = op.bind();
        for (const Operand& in : rule.inputs())
          layouts.push_back(
              strip_narrow_axes(mesh, random_layout(random, all_layouts(mesh.axes(), in.shape.dims(), true,
                                                                        random.below(4) ? Reduce::sum : Reduce::max))));
        Question q(mesh, op, layouts);
        std::vector<Choice> all = q.all();
        REQUIRE(!all.empty());
        REQUIRE(choice_text(q, all[0]) == choice_text(q, q.best()));
        bool replicated = false;
        for (size_t k = 0; k < all.size(); ++k, ++choices) {
          INFO(op.rule.text << " on " << to_string(mesh) << ": " << choice_text(q, all[k]));
          REQUIRE(fault(q, all[k]).empty());
          if (k) REQUIRE(std::pair(all[k - 1].bytes, all[k - 1].moves) <= std::pair(all[k].bytes, all[k].moves));
          bool r = true;
          for (const Layout& l : all[k].inputs) r &= l.is_replicated();
          for (const Layout& l : all[k].outputs) r &= l.is_replicated();
          replicated |= r;
        }
        REQUIRE(replicated);  // there is always a way
      }
  CHECK(choices > 10000);
}

TEST_CASE("the choice is that of an exhaustive search") {
  auto same = [](const Choice& a, const Choice& b) {
    return a.inputs == b.inputs && a.outputs == b.outputs && a.factors == b.factors &&
           std::tuple(a.bytes, a.moves, a.output_bytes, a.output_moves) ==
               std::tuple(b.bytes, b.moves, b.output_bytes, b.output_moves);
  };
  Random random{17};
  auto layout_of = [&](const MeshShape& mesh, int dims, bool partial, Reduce reduce) {
    Layout l;
    for (int a = 0; a < mesh.axes(); ++a) {
      int d = random.below(dims + 2);
      if (d < dims)
        l.split[size_t(d)].insert(random.below(l.split[size_t(d)].count + 1), a);
      else if (partial && d > dims)
        l.partial |= axis_bit(a), l.reduce = reduce;
    }
    return l;
  };
  std::vector<Operands> ops = well_known_ops();  // and some of sizes that all axes divide
  ops.push_back({multiply, {"[48,96]", "[48,96]"}, "multiply"});
  ops.push_back({matmul, {"[48,48]", "[48,96]"}, "matmul"});
  ops.push_back({relu, {"[48,48,48]"}, "relu"});
  for (const std::vector<int>& sizes :
       std::vector<std::vector<int>>{{2}, {5}, {2, 2}, {3, 2}, {2, 1, 4}, {2, 2, 2}, {2, 4, 3}, {2, 2, 2, 2}})
    for (const Operands& op : ops)
      for (int i = 0; i < (sizes.size() == 4 ? 2 : sizes.size() == 3 ? 8 : 40); ++i) {
        MeshShape mesh = mesh_of(sizes);
        BoundRule rule = op.bind();
        bool partial = random.below(2);
        Reduce reduce = random.below(3) ? Reduce::sum : Reduce::max;
        std::vector<Layout> layouts;
        for (const Operand& in : rule.inputs())
          layouts.push_back(strip_narrow_axes(mesh, layout_of(mesh, in.shape.dims(), partial, reduce)));
        Question q(mesh, op, layouts);
        if (random.below(2)) q.wanted = {layout_of(mesh, rule.outputs()[0].shape.dims(), partial, reduce)};
        if (random.below(2)) q.cost = bytes_only;
        std::vector<Choice> all = q.all();
        std::vector<Choice> best = q.ask([](const Propagation& p) { return best_choices(p, 5); });
        INFO(op.who << " on " << to_string(mesh) << ": " << choice_text(q, all[0]) << " but "
                    << choice_text(q, q.best()));
        REQUIRE(same(q.best(), all[0]));
        REQUIRE(best.size() == std::min<size_t>(5, all.size()));
        for (size_t k = 0; k < best.size(); ++k) REQUIRE(same(best[k], all[k]));
      }
}

TEST_CASE("what is written in place stays, in the first choice of all that leave it there") {
  Random random{5};
  const std::vector<int> writes{0};
  int found = 0, none = 0;
  for (const Operands& op : well_known_ops()) {
    BoundRule rule = op.bind();
    if (rule.inputs()[0].shape != rule.outputs()[0].shape) continue;
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {2, 3}, {2, 2, 2}})
      for (int i = 0; i < 10; ++i) {
        MeshShape mesh = mesh_of(sizes);
        std::vector<Layout> layouts;
        for (const Operand& in : rule.inputs())
          layouts.push_back(random_layout(random, all_layouts(mesh.axes(), in.shape.dims())));
        Question q(mesh, op, layouts);
        std::vector<Choice> all = q.all(), best = q.ask([&](Propagation p) {
          p.in_place = writes;
          return best_choices(p, 1);
        });
        auto first = std::find_if(all.begin(), all.end(), [&](const Choice& c) {
          return c.inputs[0] == layouts[0] && c.outputs[0] == layouts[0];
        });
        INFO(op.who << " on " << to_string(mesh) << ": " << choice_text(q, all[0]));
        REQUIRE(best.empty() == (first == all.end()));
        if (!best.empty()) REQUIRE(choice_text(q, best[0]) == choice_text(q, *first));
        ++(best.empty() ? none : found);
      }
  }
  CHECK((found > 20 && none > 20));
}

TEST_CASE("on one axis no strategy receives less than the choice") {
  for (const Operands& op : well_known_ops())
    for (int n : {2, 3}) {
      MeshShape mesh = mesh_of({n});
      BoundRule rule = op.bind();
      std::vector<std::vector<Layout>> combinations{{}};
      for (const Operand& in : rule.inputs()) {
        std::vector<std::vector<Layout>> next;
        for (auto& c : combinations)
          for (const Layout& l : all_layouts(1, in.shape.dims())) next.push_back(c), next.back().push_back(l);
        combinations = std::move(next);
      }
      for (auto& layouts : combinations) {
        Question q(mesh, op, layouts);
        int64_t least = INT64_MAX;
        std::vector<Reduce> reductions;
        for (const Layout& l : layouts)
          if (l.partial) reductions = {Reduce::sum};
        for (const Strategy& s : rule.strategies(reductions)) {
          if (s.factor >= 0 && rule.factors()[size_t(s.factor)].even && rule.factors()[size_t(s.factor)].size % n)
            continue;
          int64_t bytes = 0;
          for (size_t i = 0; i < layouts.size(); ++i) bytes += bytes_between(q, i, Layout{s.inputs[i]});
          least = std::min(least, bytes);
        }
        REQUIRE(q.best().bytes == least);
      }
    }
}

namespace {

// A program of layouts only, which counts the collectives that its ops need.
struct Program {
  MeshShape mesh;
  int collectives = 0;

  struct Value {
    Shape shape;
    Layout layout;
  };
  Value value(const char* text) const {
    TensorSpec s = parse_spec(text, mesh);
    return {s.shape, s.layout};
  }
  Value redistribute(const Value& v, const Layout& to) {
    collectives += plan_redistribution(mesh, v.shape, DType::f32, v.layout, to).collectives();
    return {v.shape, to};
  }
  Value call(const Rule& r, const std::vector<Value>& in) {
    std::vector<const Shape*> shapes;
    std::vector<TensorSpec> specs;
    std::vector<const TensorSpec*> inputs;
    for (const Value& v : in) shapes.push_back(&v.shape), specs.push_back({DType::f32, v.shape, v.layout});
    for (const TensorSpec& s : specs) inputs.push_back(&s);
    BoundRule rule("op", r, shapes);
    Choice c = choose({rule, mesh, inputs, {}, CostModel{}});
    for (size_t i = 0; i < in.size(); ++i) redistribute(in[i], c.inputs[i]);
    return {rule.outputs()[0].shape, c.outputs[0]};
  }
  Value transposed(const Value& v) { return call({"mn->nm", {linear_in({0})}}, {v}); }
  std::string layout(const Value& v) const { return to_string(v.layout, mesh); }
};

}  // namespace

// Megatron's counts fall out of plain gradient formulas: one all-reduce forward, one backward.
TEST_CASE("a tensor-parallel MLP needs one collective forward and one backward") {
  struct Setting {
    const char *mesh, *x, *w1, *w2, *sum_of_w1, *sum_of_w2;
  };
  for (const Setting& s :
       {Setting{"tp=4", "f32[64,128]", "f32[128,512] tp=Shard(1)", "f32[512,128] tp=Shard(0)", "tp=Shard(1)",
                "tp=Shard(0)"},
        Setting{"dp=2,tp=4", "f32[64,128] dp=Shard(0)", "f32[128,512] tp=Shard(1)", "f32[512,128] tp=Shard(0)",
                "dp=Partial(sum) tp=Shard(1)", "dp=Partial(sum) tp=Shard(0)"}}) {
    Program p{MeshShape::parse(s.mesh)};
    auto x = p.value(s.x), w1 = p.value(s.w1), w2 = p.value(s.w2);
    auto h = p.call(matmul, {x, w1}), a = p.call({"...->..."}, {h}), y = p.call(matmul, {a, w2});
    auto z = p.redistribute(p.call(add, {x, y}), x.layout);
    CHECK(p.collectives == 1);

    p.collectives = 0;
    auto dz = z, da = p.call(matmul, {dz, p.transposed(w2)}), dw2 = p.call(matmul, {p.transposed(a), dz});
    auto dh = p.call(multiply, {da, p.call({"...->..."}, {h})}), dx = p.call(matmul, {dh, p.transposed(w1)});
    auto dw1 = p.call(matmul, {p.transposed(x), dh});
    p.redistribute(p.call(add, {dz, dx}), x.layout);
    CHECK(p.collectives == 1);
    CHECK(p.layout(dw1) == s.sum_of_w1);  // where the weights are, summed over dp by whoever stores them
    CHECK(p.layout(dw2) == s.sum_of_w2);
  }
}

TEST_CASE("data parallelism needs no collective but its gradient's") {
  Program p{MeshShape::parse("dp=4")};
  auto x = p.value("f32[64,128] dp=Shard(0)"), w = p.value("f32[128,512]");
  auto y = p.call(matmul, {x, w}), dw = p.call(matmul, {p.transposed(x), y}), dx = p.call(matmul, {y, p.transposed(w)});
  CHECK(p.collectives == 0);
  CHECK(p.layout(dw) == "dp=Partial(sum)");
  CHECK(p.layout(dx) == "dp=Shard(0)");
}
