#include "placement/rule.h"

#include <fmt/format.h>
#include <catch2/catch.hpp>

#include "placement/notation.h"
#include "tests/placement/operands.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

namespace {

// A well-formed rule compiles, a malformed one does not.
constexpr bool well_formed(std::string_view text) { return rule_error(text) == nullptr; }
static_assert(RuleText("...mk,...kn->...mn").text() == "...mk,...kn->...mn");
static_assert(well_formed("->v"));
static_assert(well_formed("...,...->..."));
static_assert(well_formed("[...],... [n] -> [...]n,"));
static_assert(well_formed("s([hd])->shd") == false);
static_assert(!well_formed(""));
static_assert(!well_formed("mk,kn"));
static_assert(!well_formed("a->a->a"));
static_assert(!well_formed("..a->a"));

std::string error_of(const Operands& o) {
  try {
    o.bind();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string shapes_of(const Operands& o) {
  BoundRule r = o.bind();
  std::string text;
  for (const Operand& out : r.outputs()) text += to_string(out.shape);
  return text;
}

struct Strategies {
  Operands op;
  std::vector<std::string> want;
  std::vector<Reduce> reductions = {Reduce::sum};
};

void check_strategies(const Strategies& s) {
  BoundRule rule = s.op.bind();
  std::vector<std::string> got;
  for (const Strategy& found : rule.strategies(s.reductions)) got.push_back(show(rule, found));
  INFO(s.op.rule.text);
  CHECK(got == s.want);
}

}  // namespace

TEST_CASE("law 9: a malformed rule says what is wrong") {
  struct Case {
    const char *text, *error;
  };
  for (auto [text, error] : std::vector<Case>{
           {"", "a rule needs '->'"},
           {"ab", "a rule needs '->'"},
           {"a-b", "a rule needs '->'"},
           {"a->b->c", "a rule has one '->'"},
           {"[a->a", "an unclosed bracket"},
           {"(a->a", "an unclosed bracket"},
           {"[a,b]->a", "an unclosed bracket"},
           {"(a,b)->a", "an unclosed bracket"},
           {"a->(a", "an unclosed bracket"},
           {"[[a]]->a", "brackets do not nest"},
           {"([a])->a", "brackets do not nest"},
           {"a]->a", "an unmatched ']'"},
           {"[(a])->a", "an unmatched ']'"},
           {"[]->a", "an empty bracket"},
           {"a[ ]b->a", "an empty bracket"},
           {"->[]", "an empty bracket"},
           {"((ab)c)->a", "products do not nest"},
           {"a)->a", "an unmatched ')' or an empty product"},
           {"()a->a", "an unmatched ')' or an empty product"},
           {".a->a", "'...' has three dots"},
           {"..->a", "'...' has three dots"},
           {"......->a", "'...' stands once in an operand, and in no product"},
           {"(...)->a", "'...' stands once in an operand, and in no product"},
           {"aa->a", "a factor stands once in an operand"},
           {"a(ba)->a", "a factor stands once in an operand"},
           {"a->(aba)", "a factor stands once in an operand"},
           {"A->A", "a factor is one lower-case letter"},
           {"a1->a", "a factor is one lower-case letter"},
           {"a>b->c", "a factor is one lower-case letter"},
           {"a - > b->c", "a factor is one lower-case letter"},
       }) {
    INFO(text);
    REQUIRE(rule_error(text) != nullptr);
    CHECK_THAT(rule_error(text), Equals(error));
    CHECK(error_of({{text}, {}, "op"}) == fmt::format("[op] the rule \"{}\" is malformed: {}", text, error));
  }
  for (const char* text :
       {"a->", "->", "->a", ",->,", "a,b->b", "[ab](cd)...->...", " a b -> b a ", "[(ab)]c->c", "...->", "a,a->a,a"}) {
    INFO(text);
    CHECK(rule_error(text) == nullptr);
  }
}

TEST_CASE("shapes of outputs follow from those of inputs") {
  struct Case {
    Operands op;
    const char* outputs;
  };
  for (const Case& c : std::vector<Case>{
           {{{"...mk,...kn->...mn"}, {"[5,7]", "[7,3]"}}, "[5,3]"},
           {{{"...mk,...kn->...mn"}, {"[2,5,7]", "[7,3]"}}, "[2,5,3]"},
           {{{"...mk,...kn->...mn"}, {"[4,1,5,7]", "[6,7,3]"}}, "[4,6,5,3]"},
           {{{"...mk,...kn->...mn"}, {"[5,0]", "[0,3]"}}, "[5,3]"},
           {{{"...mk,...kn->...mn"}, {"[0,5,7]", "[1,7,0]"}}, "[0,5,0]"},
           {{{"...k,nk,n->...n"}, {"[5,7]", "[3,7]", "[3]"}}, "[5,3]"},
           {{{"...k,nk,n->...n"}, {"[7]", "[3,7]", ""}}, "[3]"},
           {{{"...,...->..."}, {"[5,1,3]", "[4,1]"}}, "[5,4,3]"},
           {{{"...,...->..."}, {"[]", "[4,1]"}}, "[4,1]"},
           {{{"...,...->..."}, {"[1]", "[0]"}}, "[0]"},
           {{{"...,...->..."}, {"[0]", "[1]"}}, "[0]"},
           {{{"...,...->..."}, {"[1,1]", "[1]"}}, "[1,1]"},
           {{{"...,...,...->..."}, {"[1]", "[5,1]", "[3]"}}, "[5,3]"},
           {{{"...,...->..."}, {"[3]", ""}}, "[3]"},
           {{{"...,...->..."}, {"", "[3]"}}, "[3]"},
           {{{"...[n]->..."}, {"[2,3,5]"}}, "[2,3]"},
           {{{"...[n]->...[n],..."}, {"[2,5]"}}, "[2,5][2]"},
           {{{"...->"}, {"[2,5]"}}, "[]"},
           {{{"ab->ba"}, {"[2,5]"}}, "[5,2]"},
           {{{.text = "s(hd)->shd", .sizes = {{'h', 4}}}, {"[3,8]"}}, "[3,4,2]"},
           {{{.text = "s(hd)->shd", .sizes = {{'d', 2}}}, {"[3,8]"}}, "[3,4,2]"},
           {{{.text = "s(hd)->shd", .sizes = {{'h', 4}}}, {"[0,0]"}}, "[0,4,0]"},
           {{{.text = "s(hd)->shd", .sizes = {{'h', 0}}}, {"[3,0]"}}, "[3,0,0]"},
           {{{"shd->s(hd)"}, {"[3,4,2]"}}, "[3,8]"},
           {{{.text = "(ab)(cd)->(ac)(bd)", .sizes = {{'a', 2}, {'d', 5}}}, {"[6,15]"}}, "[6,15]"},
           {{{"bs(gr)[d],b[t]g[d],b[t]g[e]->bs(gr)[e],b(gr)s"}, {"[2,5,6,8]", "[2,7,3,8]", "[2,7,3,4]"}},
            "[2,5,6,4][2,6,5]"},
           {{{"bs(gr)[d],b[t]g[d],b[t]g[e]->bs(gr)[e],b(gr)s"}, {"[2,0,3,8]", "[2,0,3,8]", "[2,0,3,8]"}},
            "[2,0,3,8][2,3,0]"},
           {{{"(gr),g->r"}, {"[6]", "[3]"}}, "[2]"},  // a later operand tells g
           {{{"...,vd->...d"}, {"[2,3]", "[10,4]"}}, "[2,3,4]"},
           {{{"...,vd->...d"}, {"[]", "[10,4]"}}, "[4]"},
           {{{.text = "...d,...->vd", .sizes = {{'v', 10}}}, {"[2,3,4]", "[2,3]"}}, "[10,4]"},
           {{{.text = "->v", .sizes = {{'v', 10}}}, {}}, "[10]"},
           {{{.text = "->v", .sizes = {{'v', 10}}}, {"[]"}}, "[10]"},  // of one operand without dimensions
           {{{"...[d],...[d],[d],...->...[d],[d]"}, {"[2,3,4]", "[2,3,4]", "[4]", "[2,3]"}}, "[2,3,4][4]"},
           {{{.text = "...->...[n]", .sizes = {{'n', 5}}}, {"[2]"}}, "[2,5]"},
       }) {
    INFO(c.op.rule.text << " of " << fmt::format("{}", fmt::join(c.op.shapes, ", ")));
    CHECK(shapes_of(c.op) == c.outputs);
  }
}

TEST_CASE("law 9: shapes that a rule does not take are errors that show them") {
  struct Case {
    Operands op;
    const char* error;
  };
  for (const Case& c : std::vector<Case>{
           {{{"...mk,...kn->...mn"}, {"[5,7]", "[6,3]"}, "matmul"},
            "[matmul] sizes of k differ: 7 and 6 in operands [5,7], [6,3] (rule ...mk,...kn->...mn)"},
           {{{.text = "...a->...ab", .sizes = {{'b', 2}}}, {"[1,1,1,1,1,1,1,1]"}, "op"},
            "[op] an output of 9 dimensions; at most 8 are supported (rule ...a->...ab)"},
           {{{"...mk,...kn->...mn"}, {"[5,1]", "[6,3]"}, "matmul"},  // only "..." broadcasts
            "[matmul] sizes of k differ: 1 and 6 in operands [5,1], [6,3] (rule ...mk,...kn->...mn)"},
           {{{"...mk,...kn->...mn"}, {"[5,7]"}, "matmul"}, "[matmul] takes 2 operands, not 1"},
           {{{"->v"}, {"[5]"}, "zeros"}, "[zeros] operand 0 has 1 dimensions, [5]; it needs 0 (rule ->v)"},
           {{{"->v"}, {"[5]", "[5]"}, "zeros"}, "[zeros] takes 0 operands, not 2"},
           {{{"...mk,...kn->...mn"}, {"[7]", "[7,3]"}, "matmul"},
            "[matmul] operand 0 has 1 dimensions, [7]; it needs at least 2 (rule ...mk,...kn->...mn)"},
           {{{"ab->ba"}, {"[5,7,3]"}, "t"}, "[t] operand 0 has 3 dimensions, [5,7,3]; it needs 2 (rule ab->ba)"},
           {{{"s(hd)->shd"}, {"[5,7,3]"}, "split"},
            "[split] operand 0 has 3 dimensions, [5,7,3]; it needs 2 (rule s(hd)->shd)"},
           {{{"...,...->..."}, {"[5,3]", "[4,3]"}, "add"},
            "[add] sizes 5 and 4 of one dimension do not broadcast: operand 1 is [4,3]"},
           {{{"...,...->..."}, {"[0]", "[3]"}, "add"},
            "[add] sizes 0 and 3 of one dimension do not broadcast: operand 1 is [3]"},
           {{{"...,...,...->..."}, {"[1]", "[3]", "[2]"}, "where"},
            "[where] sizes 3 and 2 of one dimension do not broadcast: operand 2 is [2]"},
           {{{.text = "s(hd)->shd", .sizes = {{'h', 3}}}, {"[5,8]"}, "split"},
            "[split] dimension 1 of [5,8] does not divide into pieces of 3"},
           {{{.text = "s(hd)->shd", .sizes = {{'h', 0}}}, {"[5,8]"}, "split"},
            "[split] dimension 1 of [5,8] does not divide"},
           {{{"s(hd)->shd"}, {"[5,8]"}, "split"}, "[split] the sizes of (hd) in [5,8] cannot be told apart"},
           {{{"s(hd),h,d->shd"}, {"[5,8]", "[4]", "[3]"}, "split"},
            "[split] sizes of hd differ: 12 and 8 in operands [5,8], [4], [3] (rule s(hd),h,d->shd)"},
           {{{"...d,...->vd"}, {"[2,3,4]", "[2,3]"}, "gradient"},
            "[gradient] the size of factor v is not known (rule ...d,...->vd)"},
           {{{"a,b->ab"}, {"[2]", ""}, "outer"}, "[outer] the size of factor b is not known (rule a,b->ab)"},
       }) {
    INFO(c.op.rule.text);
    CHECK(error_of(c.op) == c.error);
  }
}

TEST_CASE("factors know their sizes and where they stand") {
  BoundRule r = Operands{{"...s(hd),...h->...shd"}, {"[1,5,8]", "[6,4]"}}.bind();
  REQUIRE(r.factors().size() == 4);
  auto factor = [&](char c) { return r.factors()[size_t(r.find(c))]; };
  CHECK((factor('A').size == 6 && factor('s').size == 5 && factor('h').size == 4 && factor('d').size == 2));
  CHECK((factor('h').shardable && factor('h').even));
  CHECK_FALSE(factor('d').shardable);  // it stands behind h
  CHECK((factor('s').shardable && !factor('s').even));
  CHECK(r.find('x') == -1);
  CHECK(r.inputs()[0].dim_of(r.find('A')) == -1);  // broadcast: a dimension of one element for all six
  CHECK_FALSE(r.inputs()[0].has_factor(r.find('A')));
  CHECK(r.inputs()[1].dim_of(r.find('A')) == 0);
  CHECK(r.outputs()[0].dim_of(r.find('A')) == 0);
  CHECK(r.inputs()[0].dim_of(r.find('h')) == 2);
  CHECK(r.inputs()[0].dim_of(r.find('d')) == -1);
  CHECK(r.inputs()[0].has_factor(r.find('d')));
  CHECK(r.outputs()[0].dim_of(r.find('d')) == 3);

  BoundRule absent = Operands{{"...k,nk,n->...n"}, {"[5,7]", "[3,7]", ""}}.bind();
  CHECK(absent.inputs()[0].present);
  CHECK_FALSE(absent.inputs()[2].present);
  CHECK(absent.inputs()[2].dim_of(absent.find('n')) == -1);
}

TEST_CASE("strategies follow from the rule") {
  const std::vector<Reduce> none, sum{Reduce::sum}, avg{Reduce::avg}, max{Reduce::max}, product{Reduce::product};
  for (const Strategies& s : std::vector<Strategies>{
           {{{"...mk,...kn->...mn", {linear_in({0}), linear_in({1})}}, {"[5,7]", "[7,3]"}},
            {"R,R->R", "m: S0,R->S0", "k: S1,S0->P", "n: R,S1->S1", "P,R->P", "R,P->P"}},
           {{{"...mk,...kn->...mn", {linear_in({0}), linear_in({1})}}, {"[2,5,7]", "[7,3]"}},
            {"R,R->R", "A: S0,R->S0", "m: S1,R->S1", "k: S2,S0->P", "n: R,S1->S2"},
            none},
           {{{"...mk,...kn->...mn", {linear_in({0}), linear_in({1})}},
             {"[1,5,7]", "[4,7,3]"}},  // a broadcast dimension stays whole
            {"R,R->R", "A: R,S0->S0", "m: S1,R->S1", "k: S2,S1->P", "n: R,S2->S2"},
            none},
           {{{"...,...->...", {linear_in({0, 1})}}, {"[5,3]", "[3]"}},
            {"R,R->R", "A: S0,R->S0", "B: S1,S0->S1", "P,P->P"}},
           {{{"...,...->...", {linear_in({0, 1})}}, {"[3]", "[3]"}},
            {"R,R->R", "A: S0,S0->S0", "P(avg),P(avg)->P(avg)"},
            avg},
           {{{"...,...->...", {linear_in({0, 1})}}, {"[3]", "[3]"}}, {"R,R->R", "A: S0,S0->S0"}, product},
           {{{"...,...->...", {linear_in({0}), linear_in({1})}}, {"[3]", "[3]"}},
            {"R,R->R", "A: S0,S0->S0", "P,R->P", "R,P->P", "P(avg),R->P(avg)", "R,P(avg)->P(avg)"},
            {Reduce::sum, Reduce::avg}},
           {{{.text = "...k,nk,n->...n", .passes = {linear_in({0, 2}), linear_in({1, 2})}, .added = {2}},
             {"[5,7]", "[3,7]", "[3]"}},
            {"R,R,R->R", "A: S0,R,R->S0", "k: S1,S1,P->P", "n: R,S0,S0->S1", "P,R,P->P", "R,P,P->P"}},
           {{{.text = "...k,nk,n->...n", .passes = {linear_in({0, 2}), linear_in({1, 2})}, .added = {2}},
             {"[5,7]", "[3,7]", ""}},
            {"R,R,R->R", "A: S0,R,R->S0", "k: S1,S1,P->P", "n: R,S0,R->S1"},
            none},
           {{{"...[n]->...[n]"}, {"[5,7]"}}, {"R->R", "A: S0->S0"}},  // softmax
           {{{"[...]n->...n"}, {"[5,7]"}}, {"R->R", "n: S1->S1"}},
           {{{"...->...", {monotone_in({0})}}, {"[5]"}}, {"R->R", "A: S0->S0", "P(max)->P(max)"}, max},
           {{{"...->...", {monotone_in({0})}}, {"[5]"}}, {"R->R", "A: S0->S0"}},
           {{{"...->...", {antitone_in({0})}}, {"[5]"}}, {"R->R", "A: S0->S0", "P(max)->P(min)"}, max},
           {{{"...->...", {antitone_in({0})}}, {"[5]"}}, {"R->R", "A: S0->S0"}},
           {{{"...->...", {moves({0})}}, {"[5]"}},
            {"R->R", "A: S0->S0", "P->P", "P(product)->P(product)"},
            {Reduce::sum, Reduce::product}},
           {{{"...->...", {passes({0}, Reduce::avg)}}, {"[5]"}},
            {"R->R", "A: S0->S0", "P(avg)->P(avg)"},
            {Reduce::sum, Reduce::avg}},
           {{{"...,...->...,...", {linear_in({0}).only_to({1})}}, {"[5]", "[5]"}},
            {"R,R->R,R", "A: S0,S0->S0,S0", "P,R->R,P"}},
           {{{"...,...->...", {monotone_in({0, 1})}}, {"[5]", "[5]"}},
            {"R,R->R", "A: S0,S0->S0", "P(min),P(min)->P(min)"},
            {Reduce::min}},
           {{{.text = "...n->...", .passes = {linear_in({0})}, .reduce = {Reduce::max}}, {"[5,7]"}},
            {"R->R", "A: S0->S0", "n: S1->P(max)"},
            none},
           {{{"...->", {linear_in({0})}}, {"[5,7]"}}, {"R->R", "A: S0->P", "B: S1->P", "P->P"}},
           {{{"...,vd->...d", {linear_in({1})}}, {"[2,3]", "[10,4]"}},  // embedding
            {"R,R->R", "A: S0,R->S0", "B: S1,R->S1", "v: R,S0->P", "d: R,S1->S2", "R,P->P"}},
           {{{.text = "...d,...->vd", .passes = {linear_in({0})}, .sizes = {{'v', 10}}},
             {"[2,3,4]", "[2,3]"}},  // its gradient: v is on the output only
            {"R,R->R", "v: R,R->S0", "A: S0,S0->P", "B: S1,S1->P", "d: S2,R->S1", "P,R->P"}},
           {{{"...[d],...[d],[d],...->...[d],[d]", {linear_in({0})}},
             {"[2,3,4]", "[2,3,4]", "[4]", "[2,3]"}},  // gradient of rms_norm
            {"R,R,R,R->R,R", "A: S0,S0,R,S0->S0,P", "B: S1,S1,R,S1->S1,P", "P,R,R,R->P,P"}},
           {{{.text = "...n->...,n", .reduce = {Reduce::max, Reduce::min}}, {"[5,7]"}},
            {"R->R,R", "A: S0->S0,P(min)", "n: S1->P(max),S0"}},
           {{{.text = "a->a,v", .sizes = {{'v', 3}}}, {"[5]"}}, {"R->R,R", "v: R->R,S0", "a: S0->S0,P"}},
           {{{.text = "s(hd)->shd", .passes = {linear_in({0})}, .sizes = {{'h', 4}}}, {"[3,8]"}},
            {"R->R", "h: S1->S1", "s: S0->S0", "P->P"}},
           {{{"shd->s(hd)"}, {"[3,4,2]"}}, {"R->R", "s: S0->S0", "h: S1->S1"}},
           {{{"bs(gr)[d],b[t]g[d],b[t]g[e]->bs(gr)[e],b(gr)s"},
             {"[2,5,6,8]", "[2,7,3,8]", "[2,7,3,4]"}},  // grouped queries
            {"R,R,R->R,R", "b: S0,S0,S0->S0,S0", "s: S1,R,R->S1,S2", "g: S2,S2,S2->S2,S1"}},
           {{{"a,b->ab", {linear_in({0}), linear_in({1})}}, {"[2]", "[3]"}},
            {"R,R->R", "a: S0,R->S0", "b: R,S0->S1"},
            none},
           {{{.text = "->v", .sizes = {{'v', 3}}}, {}}, {"->R", "v: ->S0"}},
       })
    check_strategies(s);
}

// Along one axis a sharded factor splits every dimension that it leads, in every operand alike, and no other.
TEST_CASE("law 2: a strategy shards one factor of all operands") {
  for (const Operands& op : well_known_ops()) {
    BoundRule rule = op.bind();
    for (const Strategy& s : rule.strategies(std::vector<Reduce>{Reduce::sum, Reduce::max})) {
      auto fits = [&](const Operand& o, Placement p) {
        if (p.is_shard()) return s.factor >= 0 && o.leading[size_t(p.dim)] == s.factor;
        return s.factor < 0 || o.dim_of(s.factor) < 0;
      };
      for (size_t i = 0; i < rule.inputs().size(); ++i) REQUIRE(fits(rule.inputs()[i], s.inputs[i]));
      for (size_t o = 0; o < rule.outputs().size(); ++o) {
        REQUIRE(fits(rule.outputs()[o], s.outputs[o]));
        bool lost = s.factor >= 0 && rule.outputs()[o].dim_of(s.factor) < 0 &&
                    std::any_of(rule.inputs().begin(), rule.inputs().end(),
                                [&](const Operand& in) { return in.dim_of(s.factor) >= 0; });
        if (lost) REQUIRE(s.outputs[o].is_partial());
      }
      if (s.factor >= 0) REQUIRE(rule.factors()[size_t(s.factor)].shardable);
    }
  }
}
