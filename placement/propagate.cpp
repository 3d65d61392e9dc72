#include "placement/propagate.h"

#include <algorithm>
#include <cmath>
#include <compare>
#include <memory>
#include <tuple>
#include <unordered_map>

#include "placement/missing.h"

namespace dtensor {
namespace {

// What choices are compared by, and lower bounds of it.
struct Cost {
  int64_t bytes = 0, moves = 0, output_bytes = 0, output_moves = 0;
  friend auto operator<=>(const Cost&, const Cost&) = default;
};
constexpr Cost any_cost{INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};

Cost cost_of(const Choice& c) { return {c.bytes, c.moves, c.output_bytes, c.output_moves}; }

// Bytes of redistributions of one tensor: from its layout to others, or from others to the one wanted.
class Prices {
 public:
  Prices(const Propagation& p, const TensorSpec& end, bool is_source) : p_(p), end_(end), is_source_(is_source) {}

  const TensorSpec& end() const { return end_; }
  bool is_source() const { return is_source_; }

  int64_t exact(const Layout& other) {
    if (other == end_.layout) return 0;
    auto [it, is_new] = known_.try_emplace(other.code(), 0);
    if (is_new)
      it->second =
          plan_redistribution(p_.mesh, end_.shape, itemsize(end_.dtype), from(other), to(other), p_.cost).bytes();
    return it->second;
  }
  // No plan receives less than what a rank lacks in the end. Where n contributions are reduced, each of a rank's share
  // of the elements takes n - 1 more, and what the rank has in the end came by a reduction or an exchange.
  int64_t at_least(const Layout& other) const {
    if (other == end_.layout) return 0;
    auto it = known_.find(other.code());
    if (it != known_.end()) return it->second;
    const Layout &s = from(other), &t = to(other);
    if (t.partial & ~s.partial || (t.partial && s.reduce != t.reduce)) return 0;
    int64_t elements = most_missing(p_.mesh, end_.shape, s, t);
    if (int64_t n = p_.mesh.product(s.partial & ~t.partial); n > 1) {
      int64_t share = numel(end_.shape) / p_.mesh.world(), part = largest_part(p_.mesh, end_.shape, t);
      elements = (n - 1) * share + std::max(elements, part - share);
    }
    return elements * itemsize(end_.dtype);
  }

 private:
  const Layout& from(const Layout& other) const { return is_source_ ? end_.layout : other; }
  const Layout& to(const Layout& other) const { return is_source_ ? other : end_.layout; }

  const Propagation& p_;
  TensorSpec end_;
  bool is_source_;
  std::unordered_map<uint64_t, int64_t> known_;
};

// The combinations there are: strategies jointly over the axes, and the sharding orders of factors that several axes
// split.
class Combinations {
 public:
  explicit Combinations(const Propagation& p) : p_(p) {
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

  // Calls found(choice) for those with a strategy for each of `axes`, in order; what they cost is left to the caller.
  template <class F>
  void each_order(const std::vector<int>& chosen, F found) const {
    Choice c;
    c.factors.resize(p_.rule.factors().size());
    for (size_t k = 0; k < chosen.size(); ++k)
      if (int factor = strategies[size_t(chosen[k])].factor; factor >= 0) c.factors[size_t(factor)].push_back(axes[k]);
    for (size_t f = 0; f < c.factors.size(); ++f)
      if (p_.rule.factors()[f].even && p_.rule.factors()[f].size % p_.mesh.product(c.factors[f].set())) return;
    order_of_factor(0, chosen, c, found);
  }

  std::vector<Strategy> strategies;
  std::vector<int> axes;
  std::vector<std::shared_ptr<Prices>> inputs, outputs;  // null: absent, nothing wanted

 private:
  // Equal tensors share what is known of their prices.
  std::shared_ptr<Prices> known(const TensorSpec& end, bool is_source) const {
    for (const auto& list : {inputs, outputs})
      for (const auto& p : list)
        if (p && p->is_source() == is_source && p->end() == end) return p;
    return std::make_shared<Prices>(p_, end, is_source);
  }

  // Mesh order, and every order in which an input has the factor's axes already.
  template <class F>
  void order_of_factor(size_t f, const std::vector<int>& chosen, Choice& c, F& found) const {
    while (f < c.factors.size() && c.factors[f].count < 2) ++f;
    if (f == c.factors.size()) {
      Choice complete = c;
      if (finish(chosen, complete)) found(std::move(complete));
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
  bool place(const Operand& operand, const std::vector<int>& chosen, const Choice& c, bool input, size_t i,
             Layout& layout) const {
    for (int d = 0; d < operand.shape.dims(); ++d)
      if (int f = operand.leading[size_t(d)]; f >= 0) layout.split[size_t(d)] = c.factors[size_t(f)];
    for (size_t k = 0; k < chosen.size(); ++k) {
      const Strategy& s = strategies[size_t(chosen[k])];
      Placement p = (input ? s.inputs : s.outputs)[i];
      if (!p.is_partial()) continue;
      if (layout.partial && layout.reduce != p.reduce) return false;
      layout.partial |= axis_bit(axes[k]);
      layout.reduce = p.reduce;
    }
    return true;
  }

  // Layouts and moves; false where reductions would mix.
  bool finish(const std::vector<int>& chosen, Choice& c) const {
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
    return true;
  }

  const Propagation& p_;
};

// What one strategy on one axis does to one tensor that is redistributed, or what strategies do on several axes. The
// new part is what a rank has in the end.
struct Effect {
  double divides = 1;  // the new part is at least the tensor divided by this
  double held = 1;     // at most this share of it is there before
  double alike = 1;    // the same for axes that split another dimension than before, of which only one counts
  double reduced = 1;  // contributions that are summed
  bool moves = false;

  Effect& operator*=(const Effect& e) {
    divides *= e.divides, held *= e.held, alike = std::min(alike, e.alike), reduced *= e.reduced, moves |= e.moves;
    return *this;
  }
};

// A best-first search over the strategies on each axis: what could be cheapest by lower bounds is looked at first, be
// it strategies on some axes or a choice not all of whose prices are known. So only what could beat the answer is
// priced. Finds the first `count` choices of an exhaustive search: by cost, then by the order of strategies.
class Search {
 public:
  explicit Search(const Propagation& p) : p_(p), all_(p) {
    for (size_t i = 0; i < all_.inputs.size(); ++i)
      if (all_.inputs[i]) add(*all_.inputs[i], [i](const Strategy& s) { return s.inputs[i]; });
    first_output_ = moves_.size();
    for (size_t o = 0; o < all_.outputs.size(); ++o)
      if (all_.outputs[o]) add(*all_.outputs[o], [o](const Strategy& s) { return s.outputs[o]; });
  }

  std::vector<Choice> run(size_t count) {
    push_root();
    std::vector<Choice> found;
    while (found.size() < count && !open_.empty()) {
      State state = pop();
      if (!state.candidate)
        expand(std::move(state));
      else if (state.candidate->priced == state.candidate->sure.size())
        found.push_back(std::move(state.candidate->choice));
      else
        price(std::move(state));
    }
    return found;
  }

 private:
  static constexpr int undecided = -1;

  // A tensor that a choice moves: an input, or an output with a wanted layout.
  struct Move {
    double elements, share;  // all; what each rank has where every axis splits
    int64_t itemsize;
    std::vector<std::vector<Effect>> effects;  // [axis][strategy]
    std::vector<double> may_divide;            // [axis]: by any strategy
  };
  // A choice, and of each tensor that it moves what it surely costs; of the first `priced` that is the price.
  struct Candidate {
    Choice choice;
    std::vector<int64_t> sure;
    size_t priced = 0;
  };
  // Choices of which some strategies are decided, or one choice.
  struct State {
    Cost cost;                    // at most that of all its choices
    std::vector<int> first;       // strategies by axis: of its choices none is before these in order
    size_t order = 0;             // among choices of the same strategies
    std::vector<int> strategy;    // by axis
    std::vector<Effect> effects;  // by move; axes that are undecided divide if they can
    std::unique_ptr<Candidate> candidate;
  };
  static bool later(const State& a, const State& b) {
    return std::tie(b.cost, b.first, b.order) < std::tie(a.cost, a.first, a.order);
  }

  template <class F>
  void add(const Prices& prices, F placement) {
    const TensorSpec& end = prices.end();
    Move m;
    m.elements = double(numel(end.shape)), m.share = m.elements / p_.mesh.product(p_.mesh.wide());
    m.itemsize = itemsize(end.dtype);
    for (int a : all_.axes) {
      m.effects.emplace_back();
      m.may_divide.push_back(1);
      for (const Strategy& s : all_.strategies) {
        Placement here = placement(s), there = end.layout[a];
        Effect e = prices.is_source() ? effect(end, a, there, here) : effect(end, a, here, there);
        m.effects.back().push_back(e);
        m.may_divide.back() = std::max(m.may_divide.back(), e.divides);
      }
    }
    moves_.push_back(std::move(m));
  }

  // Counted over all ranks: how many times the elements are held in the end and, there, before. The average of what
  // ranks lack is what the busiest rank lacks at least.
  Effect effect(const TensorSpec& end, int axis, Placement from, Placement to) const {
    double k = p_.mesh.size(axis);
    Effect e;
    e.moves = from != to;
    if (!e.moves) {
      if (to.is_shard()) e.divides = k;
      return e;
    }
    if (!to.is_replicate()) e.divides = k;  // Partial may be made of shards
    if (from.is_partial())
      e.reduced = k;
    else if (from.is_shard() && to.is_replicate())
      e.held = 1 / k;
    else if (from.is_shard() && to.is_shard())
      e.alike = largest_share(end, axis);
    return e;
  }

  // At most this share of the indices of the dimension that the axis splits in `end` falls to one coordinate.
  double largest_share(const TensorSpec& end, int axis) const {
    const AxisList& list = end.layout.split[size_t(end.layout[axis].dim)];
    int64_t n = std::max<int64_t>(1, end.shape[end.layout[axis].dim]), outer = 1, k = p_.mesh.size(axis);
    for (int a : list) {
      if (a == axis) break;
      outer *= p_.mesh.size(a);
    }
    if (n % (outer * k) == 0) return 1 / double(k);
    return std::min(1.0, 1 / double(k) + double(std::min(outer, n)) / double(n));  // each outer piece rounds up
  }

  static int64_t least_bytes(const Move& m, const Effect& e) {
    double part = m.elements / e.divides, elements = part * (1 - e.held * e.alike);
    if (e.reduced > 1) elements = (e.reduced - 1) * m.share + std::max(elements, part - m.share);  // see at_least
    return int64_t(std::ceil(elements * (1 - 1e-12))) * m.itemsize;
  }

  void push(State state) {
    open_.push_back(std::move(state));
    std::push_heap(open_.begin(), open_.end(), later);
  }
  State pop() {
    std::pop_heap(open_.begin(), open_.end(), later);
    State state = std::move(open_.back());
    open_.pop_back();
    return state;
  }

  void push_root() {
    State root;
    root.first.assign(all_.axes.size(), 0), root.strategy.assign(all_.axes.size(), undecided);
    root.effects.resize(moves_.size());
    for (size_t m = 0; m < moves_.size(); ++m)
      for (double d : moves_[m].may_divide) root.effects[m].divides *= d;
    push(std::move(root));
  }

  std::vector<Effect> effects_with(const State& state, size_t axis, int s) const {
    std::vector<Effect> effects = state.effects;
    for (size_t m = 0; m < moves_.size(); ++m)
      effects[m].divides /= moves_[m].may_divide[axis], effects[m] *= moves_[m].effects[axis][size_t(s)];
    return effects;
  }

  Cost least(const std::vector<Effect>& effects) const {
    Cost cost;
    for (size_t m = 0; m < moves_.size(); ++m) {
      (m < first_output_ ? cost.bytes : cost.output_bytes) += least_bytes(moves_[m], effects[m]);
      (m < first_output_ ? cost.moves : cost.output_moves) += effects[m].moves;
    }
    return cost;
  }

  // Decides the axis on which the cheapest strategy costs most, of several the one with the fewest such strategies.
  void expand(State state) {
    std::vector<State> children;
    size_t fewest = 0;
    Cost highest;
    for (size_t a = 0; a < all_.axes.size(); ++a) {
      if (state.strategy[a] != undecided) continue;
      std::vector<State> here = children_of(state, a);
      if (here.empty()) return;
      Cost least = any_cost;
      for (const State& c : here) least = std::min(least, c.cost);
      auto cheap = size_t(std::count_if(here.begin(), here.end(), [&](const State& c) { return c.cost == least; }));
      if (children.empty() || highest < least || (highest == least && cheap < fewest))
        children = std::move(here), highest = least, fewest = cheap;
    }
    if (children.empty()) return push_candidates(state);
    for (State& c : children) push(std::move(c));
  }

  std::vector<State> children_of(const State& state, size_t axis) const {
    std::vector<State> children;
    for (size_t s = 0; s < all_.strategies.size(); ++s) {
      if (!allowed(state, axis, int(s))) continue;
      std::vector<Effect> effects = effects_with(state, axis, int(s));
      State child{std::max(state.cost, least(effects)), state.first, 0, state.strategy, std::move(effects), nullptr};
      child.first[axis] = child.strategy[axis] = int(s);
      children.push_back(std::move(child));
    }
    return children;
  }

  void push_candidates(const State& state) {
    size_t order = 0;
    all_.each_order(state.strategy, [&](Choice choice) {
      auto candidate = std::make_unique<Candidate>(Candidate{std::move(choice), {}});
      Choice& c = candidate->choice;
      auto surely = [&](const auto& prices, const std::vector<Layout>& layouts, int64_t& bytes) {
        for (size_t i = 0; i < prices.size(); ++i) {
          candidate->sure.push_back(prices[i] ? prices[i]->at_least(layouts[i]) : 0);
          bytes += candidate->sure.back();
        }
      };
      surely(all_.inputs, c.inputs, c.bytes), surely(all_.outputs, c.outputs, c.output_bytes);
      push({cost_of(c), state.strategy, order++, {}, {}, std::move(candidate)});
    });
  }

  // Finds the price of one more tensor.
  void price(State state) {
    Candidate& c = *state.candidate;
    size_t i = c.priced++, inputs = all_.inputs.size();
    bool input = i < inputs;
    const auto& prices = input ? all_.inputs[i] : all_.outputs[i - inputs];
    if (prices) {
      const Layout& layout = input ? c.choice.inputs[i] : c.choice.outputs[i - inputs];
      (input ? c.choice.bytes : c.choice.output_bytes) += prices->exact(layout) - c.sure[i];
    }
    state.cost = cost_of(c.choice);
    push(std::move(state));
  }

  // Not where a product would be split unevenly, or reductions would mix.
  bool allowed(const State& state, size_t axis, int s) const {
    const Strategy& mine = all_.strategies[size_t(s)];
    int64_t ranks = p_.mesh.size(all_.axes[axis]);
    auto mix = [](const Placement& a, const Placement& b) {
      return a.is_partial() && b.is_partial() && a.reduce != b.reduce;
    };
    for (size_t a = 0; a < state.strategy.size(); ++a) {
      if (state.strategy[a] == undecided) continue;
      const Strategy& other = all_.strategies[size_t(state.strategy[a])];
      for (size_t i = 0; i < mine.inputs.size(); ++i)
        if (p_.inputs[i] && mix(mine.inputs[i], other.inputs[i])) return false;
      for (size_t o = 0; o < mine.outputs.size(); ++o)
        if (mix(mine.outputs[o], other.outputs[o])) return false;
      if (mine.factor >= 0 && mine.factor == other.factor) ranks *= p_.mesh.size(all_.axes[a]);
    }
    if (mine.factor < 0) return true;
    const Factor& f = p_.rule.factors()[size_t(mine.factor)];
    return !f.even || f.size % ranks == 0;
  }

  const Propagation& p_;
  Combinations all_;
  std::vector<Move> moves_;  // of inputs, then of outputs
  size_t first_output_ = 0;
  std::vector<State> open_;  // a heap, the first on top
};

}  // namespace

Choice choose(const Propagation& p) { return best_choices(p, 1)[0]; }  // all replicated is always among them

std::vector<Choice> best_choices(const Propagation& p, size_t count) { return Search(p).run(count); }

std::vector<Choice> all_choices(const Propagation& p) {
  std::vector<Choice> all;
  Combinations combinations(p);
  std::vector<int> chosen(combinations.axes.size());
  for (;;) {
    combinations.each_order(chosen, [&](Choice c) {
      for (size_t i = 0; i < c.inputs.size(); ++i)
        if (combinations.inputs[i]) c.bytes += combinations.inputs[i]->exact(c.inputs[i]);
      for (size_t o = 0; o < combinations.outputs.size(); ++o)
        if (combinations.outputs[o]) c.output_bytes += combinations.outputs[o]->exact(c.outputs[o]);
      all.push_back(std::move(c));
    });
    size_t a = chosen.size();  // the last axis runs fastest
    while (a > 0 && chosen[a - 1] + 1 == int(combinations.strategies.size())) chosen[--a] = 0;
    if (a == 0) break;
    ++chosen[a - 1];
  }
  std::stable_sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return cost_of(a) < cost_of(b); });
  return all;
}

}  // namespace dtensor
