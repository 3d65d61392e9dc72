#include "placement/propagate.h"

#include <algorithm>
#include <tuple>

namespace dtensor {
namespace {

auto rank_of(const Choice& c) { return std::tuple(c.bytes, c.moves, c.output_bytes, c.output_moves); }

// Enumerates strategies jointly over the axes, and the sharding orders of factors that several axes split.
class Enumeration {
 public:
  explicit Enumeration(const Propagation& p) : p_(p) {
    std::vector<Reduce> reductions;
    for (const TensorSpec* in : p.inputs)
      if (in && in->layout.partial &&
          std::find(reductions.begin(), reductions.end(), in->layout.reduce) == reductions.end())
        reductions.push_back(in->layout.reduce);
    strategies_ = p.rule.strategies(reductions);
    for (int a = 0; a < p.mesh.axes(); ++a)
      if (p.mesh.size(a) > 1) axes_.push_back(a);
    prices_.resize(p.inputs.size());
  }

  template <class F>
  void each(F found) {
    std::vector<const Strategy*> chosen;
    axis(0, chosen, found);
  }

 private:
  template <class F>
  void axis(size_t at, std::vector<const Strategy*>& chosen, F& found) {
    if (at == axes_.size()) return orders(chosen, found);
    for (const Strategy& s : strategies_) {
      chosen.push_back(&s);
      axis(at + 1, chosen, found);
      chosen.pop_back();
    }
  }

  template <class F>
  void orders(const std::vector<const Strategy*>& chosen, F& found) {
    Choice c;
    c.factors.resize(p_.rule.factors().size());
    for (size_t i = 0; i < chosen.size(); ++i)
      if (chosen[i]->factor >= 0) c.factors[size_t(chosen[i]->factor)].push_back(axes_[i]);
    for (size_t f = 0; f < c.factors.size(); ++f)
      if (p_.rule.factors()[f].even && p_.rule.factors()[f].size % p_.mesh.product(c.factors[f].set())) return;
    order_of_factor(0, chosen, c, found);
  }

  // Mesh order, and every order in which an input has the factor's axes already.
  template <class F>
  void order_of_factor(size_t f, const std::vector<const Strategy*>& chosen, Choice& c, F& found) {
    while (f < c.factors.size() && c.factors[f].count < 2) ++f;
    if (f == c.factors.size()) {
      Choice complete = c;
      if (finish(chosen, complete)) found(complete);
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
      order_of_factor(f + 1, chosen, c, found);
    }
    c.factors[f] = tried[0];
  }

  // The layouts of one operand; false where reductions would mix.
  bool place(const Operand& operand, const std::vector<const Strategy*>& chosen, const Choice& c, bool input, size_t i,
             Layout& layout) {
    for (int d = 0; d < operand.shape.dims(); ++d)
      if (int f = operand.leading[size_t(d)]; f >= 0) layout.split[size_t(d)] = c.factors[size_t(f)];
    for (size_t k = 0; k < chosen.size(); ++k) {
      Placement p = (input ? chosen[k]->inputs : chosen[k]->outputs)[i];
      if (!p.is_partial()) continue;
      if (layout.partial && layout.reduce != p.reduce) return false;
      layout.partial |= axis_bit(axes_[k]);
      layout.reduce = p.reduce;
    }
    return true;
  }

  bool finish(const std::vector<const Strategy*>& chosen, Choice& c) {
    c.inputs.resize(p_.inputs.size());
    c.outputs.resize(p_.rule.outputs().size());
    for (size_t o = 0; o < c.outputs.size(); ++o)
      if (!place(p_.rule.outputs()[o], chosen, c, false, o, c.outputs[o])) return false;
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      if (!p_.inputs[i]) continue;
      if (!place(p_.rule.inputs()[i], chosen, c, true, i, c.inputs[i])) return false;
      c.bytes += price(i, c.inputs[i]);
      c.moves += c.inputs[i] != p_.inputs[i]->layout;
    }
    for (size_t o = 0; o < std::min(c.outputs.size(), p_.wanted.size()); ++o) {
      if (!p_.wanted[o]) continue;
      Layout wanted = strip_narrow_axes(p_.mesh, *p_.wanted[o]);
      c.output_bytes +=
          plan_redistribution(p_.mesh, p_.rule.outputs()[o].shape, 4, c.outputs[o], wanted, p_.cost).bytes();
      c.output_moves += c.outputs[o] != wanted;
    }
    return true;
  }

  int64_t price(size_t i, const Layout& to) {
    const TensorSpec& from = *p_.inputs[i];
    if (from.layout == to) return 0;
    uint64_t code = to.code();
    for (auto [known, bytes] : prices_[i])
      if (known == code) return bytes;
    int64_t bytes = plan_redistribution(p_.mesh, from.shape, itemsize(from.dtype), from.layout, to, p_.cost).bytes();
    prices_[i].emplace_back(code, bytes);
    return bytes;
  }

  const Propagation& p_;
  std::vector<Strategy> strategies_;
  std::vector<int> axes_;
  std::vector<std::vector<std::pair<uint64_t, int64_t>>> prices_;
};

}  // namespace

Choice choose(const Propagation& p) {
  Choice best;
  bool any = false;
  Enumeration(p).each([&](const Choice& c) {
    if (!any || rank_of(c) < rank_of(best)) best = c;
    any = true;
  });
  return best;  // all replicated is always among them
}

std::vector<Choice> all_choices(const Propagation& p) {
  std::vector<Choice> all;
  Enumeration(p).each([&](const Choice& c) { all.push_back(c); });
  std::stable_sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return rank_of(a) < rank_of(b); });
  return all;
}

}  // namespace dtensor
