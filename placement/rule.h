// Rules: one notation that says of any op how its dimensions may be sharded.
//
// Every dimension of every operand is named by a factor, a lower-case letter, einsum style:
//   "...mk,...kn->...mn"    k is on inputs only: sharded, it leaves the output Partial
//   "...[n]->...[n]"        a bracketed factor is whole on every rank
//   "s(hd)->shd"            a dimension may be a product; only its leading factor shards, and only evenly
//   "...[d],[d]->...[d],...n"  several outputs, each with its own fate for a sharded factor
// "..." stands for any dimensions, aligned from the right and broadcast as in NumPy. A factor that is on outputs only
// needs its size from the card. From the rule come shape inference, strategies and each rank's range of every factor.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "placement/placement.h"
#include "placement/shape.h"

namespace dtensor {

// What is wrong with a rule's text, or nullptr.
constexpr const char* rule_error(std::string_view text);

// A rule that stands in the source: a malformed one does not compile.
class RuleText {
 public:
  consteval RuleText(const char* text) : text_(text) {
    if (const char* error = rule_error(text_)) throw error;
  }
  constexpr std::string_view text() const { return text_; }

 private:
  std::string_view text_;
};

// What Partial an op passes: `inputs` may be Partial(from) together and leave outputs Partial(to), for each (from, to).
// That is, the op applied to each rank's contributions, then combined by `to`, is the op of what they combine to by
// `from`. Made by one of the functions below, whose names say why it is so.
struct Pass {
  std::vector<int> inputs;
  std::vector<std::pair<Reduce, Reduce>> reductions;
  std::vector<int> outputs = {};  // none: all

  // The same, but the other outputs do not depend on these inputs, and stay Replicate.
  Pass only_to(std::vector<int> some) const { return {inputs, reductions, std::move(some)}; }
};

// The op is jointly linear in these inputs: linear_in({0, 1}) for add, linear_in({0}) and linear_in({1}) for matmul.
inline Pass linear_in(std::vector<int> inputs) {
  return {std::move(inputs), {{Reduce::sum, Reduce::sum}, {Reduce::avg, Reduce::avg}}};
}
// An output element reads one element of each of these inputs, and never decreases with it.
inline Pass monotone_in(std::vector<int> inputs) {
  return {std::move(inputs), {{Reduce::max, Reduce::max}, {Reduce::min, Reduce::min}}};
}
// The same, but it never increases: negation passes max as min.
inline Pass antitone_in(std::vector<int> inputs) {
  return {std::move(inputs), {{Reduce::max, Reduce::min}, {Reduce::min, Reduce::max}}};
}
// Elements of these inputs are only moved, with zeros between them.
inline Pass moves(std::vector<int> inputs) {
  Pass any{std::move(inputs), {}};
  for (Reduce r : {Reduce::sum, Reduce::avg, Reduce::product, Reduce::min, Reduce::max})
    any.reductions.push_back({r, r});
  return any;
}
// For a reason of its own: a product passes products.
inline Pass passes(std::vector<int> inputs, Reduce reduce) { return {std::move(inputs), {{reduce, reduce}}}; }

struct Rule {
  std::string text;
  // What Partial the op passes: {linear_in({0, 1}), monotone_in({0}), monotone_in({1})}.
  std::vector<Pass> passes = {};
  // Inputs that are added, as a bias is: where a factor they lack is contracted and sharded they must be Partial.
  std::vector<int> added = {};
  // What a contracted, sharded factor leaves behind on each output; a sum where the list is shorter.
  std::vector<Reduce> reduce = {};
  // Sizes of factors that the input shapes do not tell.
  std::vector<std::pair<char, int64_t>> sizes = {};
};

struct Factor {
  char name;     // a dimension of "..." is named by a capital, 'A' the outermost
  int64_t size;  // global
  bool shardable = true;
  bool even = false;  // shards only where the ranks divide it: it leads a product
};

// An input or output of a bound rule.
struct Operand {
  bool present = true;
  Shape shape;
  std::array<int8_t, max_dims> leading{};  // per dimension, the factor that leads it; -1 where there is none
  uint64_t factors = 0;                    // bit f: it has factor f somewhere; 26 letters and 8 of "..." fit

  bool has_factor(int f) const { return factors >> f & 1; }
  // The dimension that factor f leads, or -1.
  int dim_of(int f) const;
};

// One way to run an op along one mesh axis.
struct Strategy {
  int factor = -1;  // the factor that is sharded, if any
  std::vector<Placement> inputs, outputs;
  friend bool operator==(const Strategy&, const Strategy&) = default;
};

// A rule and the shapes of its inputs.
class BoundRule {
 public:
  // `inputs`: a null pointer is an absent operand. `who` is the op's name for errors: sizes of a factor that differ,
  // a wrong number of operands or dimensions, a product that does not divide.
  BoundRule(std::string_view who, Rule rule, std::span<const Shape* const> inputs);

  const Rule& rule() const { return rule_; }
  const std::vector<Factor>& factors() const { return factors_; }
  const std::vector<Operand>& inputs() const { return inputs_; }
  const std::vector<Operand>& outputs() const { return outputs_; }
  // The factor of that name, or -1.
  int find(char name) const;

  // The candidates along one mesh axis. `reductions`: those of the inputs' Partial placements, each of which may pass.
  std::vector<Strategy> strategies(std::span<const Reduce> reductions) const;

 private:
  void strategies_by_factor(std::vector<Strategy>& found) const;

  Rule rule_;
  std::vector<Factor> factors_;
  std::vector<Operand> inputs_, outputs_;
};

constexpr const char* rule_error(std::string_view text) {
  size_t arrow = text.find("->");
  if (arrow == std::string_view::npos) return "a rule needs '->'";
  if (text.find("->", arrow + 2) != std::string_view::npos) return "a rule has one '->'";
  bool whole = false, group = false, dots = false;
  uint32_t seen = 0, grouped = 0;  // letters of this operand; letters of this group
  for (size_t i = 0; i <= text.size(); ++i) {
    bool end = i == text.size() || text[i] == ',' || i == arrow;
    if (end) {
      if (whole || group) return "an unclosed bracket";
      dots = false, seen = 0;
      if (i == arrow) ++i;
      continue;
    }
    char c = text[i];
    if (c == ' ') continue;
    if (c == '[') {
      if (whole || group) return "brackets do not nest";
      whole = true;
    } else if (c == ']') {
      if (!whole || group) return "an unmatched ']'";
      if (text[text.find_last_not_of(' ', i - 1)] == '[') return "an empty bracket";
      whole = false;
    } else if (c == '(') {
      if (group) return "products do not nest";
      group = true, grouped = 0;
    } else if (c == ')') {
      if (!group || !grouped) return "an unmatched ')' or an empty product";
      group = false;
    } else if (c == '.') {
      if (text.substr(i, 3) != "...") return "'...' has three dots";
      if (dots || group) return "'...' stands once in an operand, and in no product";
      dots = true, i += 2;
    } else if (c >= 'a' && c <= 'z') {
      uint32_t bit = uint32_t(1) << (c - 'a');
      if (seen & bit) return "a factor stands once in an operand";
      seen |= bit, grouped |= bit;
    } else {
      return "a factor is one lower-case letter";
    }
  }
  return nullptr;
}

}  // namespace dtensor
