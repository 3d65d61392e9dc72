#include "placement/rule.h"

#include <bit>

namespace dtensor {
namespace {

struct Term {         // one dimension, or "..."
  std::string names;  // its factors, outermost first
  bool dots = false, whole = false;
};
using Terms = std::vector<Term>;

struct Parsed {
  std::vector<Terms> inputs, outputs;
};

Parsed parse(std::string_view text) {
  Parsed p;
  std::vector<Terms>* side = &p.inputs;
  side->emplace_back();
  bool whole = false, group = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    Terms& operand = side->back();
    if (c == ' ') continue;
    if (c == ',')
      side->emplace_back();
    else if (c == '-')
      side = &p.outputs, side->emplace_back(), ++i;
    else if (c == '[' || c == ']')
      whole = c == '[';
    else if (c == '(')
      group = true, operand.push_back({"", false, whole});
    else if (c == ')')
      group = false;
    else if (c == '.')
      operand.push_back({"", true, whole}), i += 2;
    else if (group)
      operand.back().names += c;
    else
      operand.push_back({std::string(1, c), false, whole});
  }
  if (text.substr(0, text.find("->")).find_first_not_of(' ') == std::string_view::npos) p.inputs.clear();  // "->v"
  return p;
}

bool has_dots(const Terms& terms) {
  return std::any_of(terms.begin(), terms.end(), [](const Term& t) { return t.dots; });
}

// "..." becomes `own` of the rule's `dots` dimensions, named 'A' to 'H', the rightmost ones.
Terms expand(const Terms& terms, int own, int dots) {
  Terms out;
  for (const Term& t : terms) {
    if (!t.dots)
      out.push_back(t);
    else
      for (int d = dots - own; d < dots; ++d) out.push_back({std::string(1, char('A' + d)), false, t.whole});
  }
  return out;
}

constexpr int64_t unknown = -1;

// "[5,7], [6,3]"
std::string list(std::span<const Shape* const> shapes) {
  std::string text;
  for (const Shape* s : shapes) text += fmt::format("{}{}", text.empty() ? "" : ", ", s ? to_string(*s) : "absent");
  return text;
}

}  // namespace

int Operand::dim_of(int f) const {
  for (int d = 0; d < shape.dims(); ++d)
    if (leading[size_t(d)] == f) return d;
  return -1;
}

int BoundRule::find(char name) const {
  for (size_t f = 0; f < factors_.size(); ++f)
    if (factors_[f].name == name) return int(f);
  return -1;
}

BoundRule::BoundRule(std::string_view who, Rule rule, std::span<const Shape* const> shapes) : rule_(std::move(rule)) {
  if (const char* error = rule_error(rule_.text)) fail("[{}] the rule \"{}\" is malformed: {}", who, rule_.text, error);
  Parsed parsed = parse(rule_.text);
  if (parsed.inputs.empty() && shapes.size() == 1) parsed.inputs.emplace_back();  // "->v" of one without dimensions
  check(parsed.inputs.size() == shapes.size(), "[{}] takes {} operands, not {}", who, parsed.inputs.size(),
        shapes.size());

  // How many dimensions "..." stands for in each operand.
  int dots = 0;
  std::vector<int> own(shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (!shapes[i]) continue;
    const Terms& terms = parsed.inputs[i];
    bool open = has_dots(terms);
    int named = int(terms.size()) - open;
    check(open ? shapes[i]->dims() >= named : shapes[i]->dims() == named,
          "[{}] operand {} has {} dimensions, {}; it needs {}{} (rule {})", who, i, shapes[i]->dims(),
          to_string(*shapes[i]), open ? "at least " : "", named, rule_.text);
    if (open) dots = std::max(dots, own[i] = shapes[i]->dims() - named);
  }

  auto factor = [&](char name) {
    int f = find(name);
    if (f >= 0) return f;
    factors_.push_back({name, unknown});
    return int(factors_.size()) - 1;
  };
  for (auto [name, size] : rule_.sizes) factors_[size_t(factor(name))].size = size;

  // Sizes of factors: a dimension tells one factor it has; a broadcast dimension tells nothing.
  std::vector<Terms> terms(shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i)
    if (shapes[i]) terms[i] = expand(parsed.inputs[i], own[i], dots);
  for (int pass = 0; pass < 2; ++pass)  // a product may need sizes that a later operand tells
    for (size_t i = 0; i < shapes.size(); ++i) {
      for (size_t d = 0; d < terms[i].size(); ++d) {
        const Term& t = terms[i][d];
        int64_t size = (*shapes[i])[int(d)], known = 1;
        int open = -1, count = 0;
        for (char c : t.names) {
          int f = factor(c);
          if (factors_[size_t(f)].size == unknown)
            open = f, ++count;
          else
            known *= factors_[size_t(f)].size;
        }
        bool broadcast = t.names[0] <= 'Z';
        if (count > 1) {
          check(pass == 0, "[{}] the sizes of ({}) in {} cannot be told apart", who, t.names, to_string(*shapes[i]));
        } else if (count == 1) {
          check(known != 0 || size == 0, "[{}] dimension {} of {} does not divide", who, d, to_string(*shapes[i]));
          check(known == 0 || size % known == 0, "[{}] dimension {} of {} does not divide into pieces of {}", who, d,
                to_string(*shapes[i]), known);
          factors_[size_t(open)].size = known ? size / known : 0;
        } else if (broadcast) {
          int64_t& f = factors_[size_t(find(t.names[0]))].size;
          if (f == 1) f = size;
          check(size == f || size == 1, "[{}] sizes {} and {} of one dimension do not broadcast: operand {} is {}", who,
                f, size, i, to_string(*shapes[i]));
        } else {
          check(size == known, "[{}] sizes of {} differ: {} and {} in operands {} (rule {})", who, t.names, known, size,
                list(shapes), rule_.text);
        }
      }
    }

  auto operand = [&](const Terms& dims, const Shape* shape) {
    check(dims.size() <= size_t(max_dims), "[{}] an output of {} dimensions; at most {} are supported (rule {})", who,
          dims.size(), max_dims, rule_.text);
    Operand o;
    o.leading.fill(-1);
    for (size_t d = 0; d < dims.size(); ++d) {
      int64_t size = 1;
      bool first = true;
      for (char c : dims[d].names) {
        int f = factor(c);
        Factor& info = factors_[size_t(f)];
        check(info.size != unknown, "[{}] the size of factor {} is not known (rule {})", who, c, rule_.text);
        size *= info.size;
        bool broadcast = shape && c <= 'Z' && (*shape)[int(d)] == 1 && info.size != 1;
        if (broadcast) continue;
        o.factors |= uint64_t(1) << f;
        if (dims[d].whole || !first) info.shardable = false;
        if (first && dims[d].names.size() > 1) info.even = true;
        if (first) o.leading[d] = int8_t(f);
        first = false;
      }
      o.shape.push_back(shape ? (*shape)[int(d)] : size);
    }
    return o;
  };
  for (size_t i = 0; i < shapes.size(); ++i) {
    inputs_.push_back(shapes[i] ? operand(terms[i], shapes[i]) : Operand{});
    inputs_.back().present = shapes[i] != nullptr;
    if (!shapes[i]) inputs_.back().leading.fill(-1);
  }
  for (const Terms& out : parsed.outputs) outputs_.push_back(operand(expand(out, dots, dots), nullptr));
}

void BoundRule::strategies_by_factor(std::vector<Strategy>& found) const {
  for (int f = 0; f < int(factors_.size()); ++f) {
    if (!factors_[size_t(f)].shardable) continue;
    Strategy s{f, {}, {}};
    bool on_inputs = false;
    for (const Operand& in : inputs_) {
      int d = in.dim_of(f);
      s.inputs.push_back(d < 0 ? Replicate() : Shard(d));
      on_inputs |= d >= 0;
    }
    bool contracted = false, used = on_inputs;
    for (size_t o = 0; o < outputs_.size(); ++o) {
      int d = outputs_[o].dim_of(f);
      Reduce reduce = o < rule_.reduce.size() ? rule_.reduce[o] : Reduce::sum;
      contracted |= d < 0 && on_inputs;
      used |= d >= 0;
      s.outputs.push_back(d >= 0 ? Shard(d) : on_inputs ? Partial(reduce) : Replicate());
    }
    if (!used) continue;
    if (contracted)
      for (int i : rule_.added)
        if (!inputs_[size_t(i)].has_factor(f)) s.inputs[size_t(i)] = Partial();
    found.push_back(std::move(s));
  }
}

std::vector<Strategy> BoundRule::strategies(std::span<const Reduce> reductions) const {
  std::vector<Placement> whole(inputs_.size(), Replicate());
  std::vector<Strategy> found{{-1, whole, std::vector<Placement>(outputs_.size(), Replicate())}};
  strategies_by_factor(found);
  auto pass = [&](const Pass& p, Reduce from, Reduce to) {
    Strategy s{-1, whole, std::vector<Placement>(outputs_.size(), p.outputs.empty() ? Partial(to) : Replicate())};
    for (int i : p.inputs) s.inputs[size_t(i)] = Partial(from);
    for (int o : p.outputs) s.outputs[size_t(o)] = Partial(to);
    found.push_back(std::move(s));
  };
  for (Reduce r : reductions)
    for (const Pass& p : rule_.passes)
      for (auto [from, to] : p.reductions)
        if (from == r) pass(p, from, to);
  return found;
}

}  // namespace dtensor
