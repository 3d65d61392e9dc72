#include "placement/rule.h"

#include <fmt/format.h>
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

// A rule brought together with the shapes of its inputs, step by step.
class Binding {
 public:
  Binding(std::string_view who, const Rule& rule, std::span<const Shape* const> shapes)
      : who_(who), rule_(rule), shapes_(shapes), parsed_(parse(rule.text)) {
    if (parsed_.inputs.empty() && shapes.size() == 1) parsed_.inputs.emplace_back();  // "->v" of one without dimensions
    check(parsed_.inputs.size() == shapes.size(), "[{}] takes {} operands, not {}", who, parsed_.inputs.size(),
          shapes.size());
    name_dimensions();
    find_sizes();
    for (size_t i = 0; i < shapes.size(); ++i) inputs.push_back(shapes[i] ? operand(terms_[i], shapes[i]) : absent());
    for (const Terms& out : parsed_.outputs) outputs.push_back(operand(expand(out, dots_, dots_), nullptr));
  }

  std::vector<Factor> factors;
  std::vector<Operand> inputs, outputs;

 private:
  // Which dimensions of each input "..." stands for, and with that the names of all of them.
  void name_dimensions() {
    std::vector<int> own(shapes_.size());
    for (size_t i = 0; i < shapes_.size(); ++i) {
      if (!shapes_[i]) continue;
      const Terms& terms = parsed_.inputs[i];
      bool open = has_dots(terms);
      int named = int(terms.size()) - open;
      check(open ? shapes_[i]->dims() >= named : shapes_[i]->dims() == named,
            "[{}] operand {} has {} dimensions, {}; it needs {}{} (rule {})", who_, i, shapes_[i]->dims(), *shapes_[i],
            open ? "at least " : "", named, rule_.text);
      if (open) dots_ = std::max(dots_, own[i] = shapes_[i]->dims() - named);
    }
    terms_.resize(shapes_.size());
    for (size_t i = 0; i < shapes_.size(); ++i)
      if (shapes_[i]) terms_[i] = expand(parsed_.inputs[i], own[i], dots_);
  }

  // The size of each factor: told by the card, or by the dimensions that have it.
  void find_sizes() {
    for (auto [name, size] : rule_.sizes) factors[size_t(factor(name))].size = size;
    for (bool last : {false, true})  // a product may need sizes that a later operand tells
      for (size_t i = 0; i < shapes_.size(); ++i)
        for (size_t d = 0; d < terms_[i].size(); ++d) learn(i, int(d), terms_[i][d].names, last);
  }

  // A dimension tells one factor that it has; a broadcast one tells nothing.
  void learn(size_t input, int d, const std::string& names, bool last) {
    const Shape& shape = *shapes_[input];
    int64_t size = shape[d], known = 1;
    int open = -1, count = 0;
    for (char c : names) {
      int f = factor(c);
      if (factors[size_t(f)].size == unknown)
        open = f, ++count;
      else
        known *= factors[size_t(f)].size;
    }
    if (count > 1) {
      check(!last, "[{}] the sizes of ({}) in {} cannot be told apart", who_, names, shape);
    } else if (count == 1) {
      check(known != 0 || size == 0, "[{}] dimension {} of {} does not divide", who_, d, shape);
      check(known == 0 || size % known == 0, "[{}] dimension {} of {} does not divide into pieces of {}", who_, d,
            shape, known);
      factors[size_t(open)].size = known ? size / known : 0;
    } else if (is_of_dots(names[0])) {
      int64_t& f = factors[size_t(factor(names[0]))].size;
      if (f == 1) f = size;
      check(size == f || size == 1, "[{}] sizes {} and {} of one dimension do not broadcast: operand {} is {}", who_, f,
            size, input, shape);
    } else if (size != known) {
      fail("[{}] sizes of {} differ: {} and {} in operands {} (rule {})", who_, names, known, size, list(shapes_),
           rule_.text);
    }
  }

  // An input of this shape, or an output, whose shape its factors tell.
  Operand operand(const Terms& dims, const Shape* shape) {
    check(dims.size() <= size_t(max_dims), "[{}] an output of {} dimensions; at most {} are supported (rule {})", who_,
          dims.size(), max_dims, rule_.text);
    Operand o = absent();
    o.present = true;
    for (size_t d = 0; d < dims.size(); ++d) {
      int64_t size = 1;
      bool first = true;
      for (char c : dims[d].names) {
        int f = factor(c);
        Factor& info = factors[size_t(f)];
        check(info.size != unknown, "[{}] the size of factor {} is not known (rule {})", who_, c, rule_.text);
        size *= info.size;
        bool broadcast = shape && is_of_dots(c) && (*shape)[int(d)] == 1 && info.size != 1;
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
  }

  static Operand absent() {
    Operand o;
    o.present = false;
    o.leading.fill(-1);
    return o;
  }
  static bool is_of_dots(char name) { return name <= 'Z'; }
  // The factor of that name, which may be new.
  int factor(char name) {
    for (size_t f = 0; f < factors.size(); ++f)
      if (factors[f].name == name) return int(f);
    factors.push_back({name, unknown});
    return int(factors.size()) - 1;
  }

  std::string_view who_;
  const Rule& rule_;
  std::span<const Shape* const> shapes_;
  Parsed parsed_;
  int dots_ = 0;              // of the operand in which "..." is the most dimensions
  std::vector<Terms> terms_;  // of the inputs, without "..."
};

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
  Binding bound(who, rule_, shapes);
  factors_ = std::move(bound.factors), inputs_ = std::move(bound.inputs), outputs_ = std::move(bound.outputs);
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
