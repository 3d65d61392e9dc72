#include "placement/combinations.h"

#include <algorithm>

namespace dtensor {

Combinations::Combinations(const Propagation& p) : p_(p) {
  std::vector<Reduce> reductions;
  for (const TensorSpec* in : p.inputs)
    if (in && in->layout.partial &&
        std::find(reductions.begin(), reductions.end(), in->layout.reduce) == reductions.end())
      reductions.push_back(in->layout.reduce);
  for (Strategy& s : p.rule.strategies(reductions)) {  // of those that place all operands alike the first counts
    bool is_new = std::none_of(strategies.begin(), strategies.end(),
                               [&](const Strategy& t) { return t.inputs == s.inputs && t.outputs == s.outputs; });
    if (is_new) strategies.push_back(std::move(s));
  }
  for (int a = 0; a < p.mesh.axes(); ++a)
    if (p.mesh.size(a) > 1) axes.push_back(a);
  for (const TensorSpec* in : p.inputs) inputs.push_back(in ? known(*in, true) : nullptr);
  for (size_t o = 0; o < std::min(p.rule.outputs().size(), p.wanted.size()); ++o)
    outputs.push_back(
        p.wanted[o] ? known({DType::f32, p.rule.outputs()[o].shape, strip_narrow_axes(p.mesh, *p.wanted[o])}, false)
                    : nullptr);
}

std::vector<Choice> Combinations::with(const Strategies& chosen) const {
  Choice c;
  c.factors.resize(p_.rule.factors().size());
  for (size_t k = 0; k < axes.size(); ++k)
    if (int factor = strategies[size_t(chosen[k])].factor; factor >= 0) c.factors[size_t(factor)].push_back(axes[k]);
  for (size_t f = 0; f < c.factors.size(); ++f)
    if (p_.rule.factors()[f].even && p_.rule.factors()[f].size % p_.mesh.product(c.factors[f].set())) return {};
  std::vector<Choice> found;
  order_factors(0, chosen, c, found);
  return found;
}

// Equal tensors share what is known of their prices.
std::shared_ptr<Prices> Combinations::known(const TensorSpec& end, bool is_source) const {
  for (const auto& list : {inputs, outputs})
    for (const auto& p : list)
      if (p && p->is_source() == is_source && p->end() == end) return p;
  return std::make_shared<Prices>(p_, end, is_source);
}

// Mesh order, and every order in which an input has the factor's axes already.
void Combinations::order_factors(size_t f, const Strategies& chosen, Choice& c, std::vector<Choice>& found) const {
  while (f < c.factors.size() && c.factors[f].count < 2) ++f;
  if (f == c.factors.size()) {
    Choice complete = c;
    if (finish(chosen, complete)) found.push_back(std::move(complete));
    return;
  }
  std::vector<AxisList> tried{c.factors[f]};
  for (size_t i = 0; i < p_.inputs.size(); ++i) {
    int d = p_.rule.inputs()[i].dim_of(int(f));
    if (!p_.inputs[i] || d < 0) continue;
    AxisList order;
    for (int a : p_.inputs[i]->layout.split[size_t(d)])
      if (has(tried[0].set(), a)) order.push_back(a);
    for (int a : tried[0])
      if (!has(order.set(), a)) order.push_back(a);
    if (std::find(tried.begin(), tried.end(), order) == tried.end()) tried.push_back(order);
  }
  for (const AxisList& order : tried) {
    c.factors[f] = order;
    order_factors(f + 1, chosen, c, found);
  }
  c.factors[f] = tried[0];
}

// The layouts of one operand; false where reductions would mix.
bool Combinations::place(const Operand& operand, const Strategies& chosen, const Choice& c, bool input, size_t i,
                         Layout& layout) const {
  for (int d = 0; d < operand.shape.dims(); ++d)
    if (int f = operand.leading[size_t(d)]; f >= 0) layout.split[size_t(d)] = c.factors[size_t(f)];
  for (size_t k = 0; k < axes.size(); ++k) {
    const Strategy& s = strategies[size_t(chosen[k])];
    Placement p = (input ? s.inputs : s.outputs)[i];
    if (!p.is_partial()) continue;
    if (layout.partial && layout.reduce != p.reduce) return false;
    layout.partial |= axis_bit(axes[k]);
    layout.reduce = p.reduce;
  }
  return true;
}

// Layouts and moves; false where reductions would mix, or what is written in place would move.
bool Combinations::finish(const Strategies& chosen, Choice& c) const {
  c.inputs.resize(p_.inputs.size());
  c.outputs.resize(p_.rule.outputs().size());
  for (size_t o = 0; o < c.outputs.size(); ++o)
    if (!place(p_.rule.outputs()[o], chosen, c, false, o, c.outputs[o])) return false;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    if (!p_.inputs[i]) continue;
    if (!place(p_.rule.inputs()[i], chosen, c, true, i, c.inputs[i])) return false;
    c.moves += c.inputs[i] != p_.inputs[i]->layout;
  }
  for (size_t o = 0; o < outputs.size(); ++o)
    if (outputs[o]) c.output_moves += c.outputs[o] != outputs[o]->end().layout;
  for (size_t o = 0; o < p_.in_place.size(); ++o) {
    auto i = size_t(p_.in_place[o]);
    if (c.inputs[i] != p_.inputs[i]->layout || c.outputs[o] != p_.inputs[i]->layout) return false;
  }
  return true;
}

}  // namespace dtensor
