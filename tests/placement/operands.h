// Rules with operands written as text.
#pragma once

#include "placement/notation.h"
#include "placement/rule.h"

namespace dtensor::testing {

// A rule and shapes such as "[5,7]"; "" is an absent operand.
struct Operands {
  Rule rule;
  std::vector<std::string> shapes;
  const char* who = "op";

  BoundRule bind() const {
    std::vector<Shape> known;
    for (const std::string& s : shapes) known.push_back(s.empty() ? Shape{} : parse_spec("f32" + s, MeshShape()).shape);
    std::vector<const Shape*> inputs;
    for (size_t i = 0; i < shapes.size(); ++i) inputs.push_back(shapes[i].empty() ? nullptr : &known[i]);
    return BoundRule(who, rule, inputs);
  }
};

inline std::vector<Operands> well_known_ops() {
  return {
      {{"...mk,...kn->...mn", {linear_in({0}), linear_in({1})}}, {"[2,5,8]", "[8,6]"}, "matmul"},
      {{"...,...->...", {linear_in({0, 1})}}, {"[8,5]", "[5]"}, "add"},
      {{"...,...->...", {linear_in({0}), linear_in({1})}}, {"[8,5]", "[8,1]"}, "multiply"},
      {{.text = "...k,nk,n->...n", .passes = {linear_in({0, 2}), linear_in({1, 2})}, .added = {2}},
       {"[5,8]", "[6,8]", "[6]"},
       "linear"},
      {{"...[n]->...[n]"}, {"[8,5]"}, "softmax"},
      {{.text = "...n->...", .passes = {linear_in({0})}, .reduce = {Reduce::max}}, {"[5,8]"}, "max"},
      {{"...->...", {monotone_in({0})}}, {"[5,8]"}, "relu"},
      {{"...,vd->...d", {linear_in({1})}}, {"[4,3]", "[10,8]"}, "embedding"},
      {{.text = "...d,...->vd", .passes = {linear_in({0})}, .sizes = {{'v', 10}}},
       {"[4,3,8]", "[4,3]"},
       "embedding_gradient"},
      {{"...[d],...[d],[d],...->...[d],[d]", {linear_in({0})}},
       {"[4,3,8]", "[4,3,8]", "[8]", "[4,3]"},
       "rms_norm_gradient"},
      {{.text = "s(hd)->shd", .passes = {linear_in({0})}, .sizes = {{'h', 4}}}, {"[3,8]"}, "split_heads"},
      {{"shd->s(hd)", {linear_in({0})}}, {"[3,3,2]"}, "join_heads"},
      {{"bs(gr)[d],b[t]g[d],b[t]g[e]->bs(gr)[e],b(gr)s"}, {"[2,5,8,3]", "[2,7,4,3]", "[2,7,4,5]"}, "attention"},
  };
}

inline std::string show(Placement p) {
  if (p.is_shard()) return fmt::format("S{}", p.dim);
  if (p.is_partial()) return p.reduce == Reduce::sum ? "P" : fmt::format("P({})", name(p.reduce));
  return "R";
}

// "k: S1,S0->P": the sharded factor, the inputs, the outputs.
inline std::string show(const BoundRule& rule, const Strategy& s) {
  std::string text = s.factor < 0 ? "" : fmt::format("{}: ", rule.factors()[size_t(s.factor)].name);
  for (size_t i = 0; i < s.inputs.size(); ++i) text += (i ? "," : "") + show(s.inputs[i]);
  text += "->";
  for (size_t o = 0; o < s.outputs.size(); ++o) text += (o ? "," : "") + show(s.outputs[o]);
  return text;
}

}  // namespace dtensor::testing
