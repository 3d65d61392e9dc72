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

// Contributions that are summed, over some axes.
struct Reduction {
  double ranks = 1, steps = 0;  // steps: one less than the ranks of each axis, added up

  void add(int k) { ranks *= k, steps += k - 1; }
  void add(const Reduction& r) { ranks *= r.ranks, steps += r.steps; }

  // Elements that one rank receives at least, of whose new part of `part` elements `missing` were not there before.
  // `share` is what each rank has of the elements where all axes split them but those that stay Partial, which no plan
  // betters: the contributions to it come from all ranks, or if it is less than one element, one from every other rank
  // of each axis. What the rank has in the end came by this or by an exchange.
  double least(double share, double part, double missing) const {
    if (ranks == 1 || share == 0) return missing;
    return std::max((ranks - 1) * share, steps) + std::max(missing, part - std::max(share, 1.0));
  }
};

// The bytes of that many elements at least, whether they are reduced or only moved.
int64_t least_bytes(double elements, DType dtype) {
  return int64_t(std::ceil(elements * (1 - 1e-12))) * itemsize(dtype);
}

// Bytes of redistributions of one tensor: from its layout to others, or from others to the one wanted.
class Prices {
 public:
  Prices(const Propagation& p, const TensorSpec& end, bool is_source)
      : p_(p),
        end_(end),
        is_source_(is_source),
        plans_(p.mesh, end_.shape, end.dtype, p.cost, reduced_as(end.dtype, p.reduce_dtype)) {}

  const TensorSpec& end() const { return end_; }
  bool is_source() const { return is_source_; }

  int64_t exact(const Layout& other) {
    if (other == end_.layout) return 0;
    Price& price = known_.try_emplace(other.code()).first->second;
    if (!price.exact) price = {plans_.plan(from(other), to(other)).bytes(), true};
    return price.bytes;
  }
  // The price where it is known; a lower bound of it otherwise.
  int64_t at_least(const Layout& other) {
    if (other == end_.layout) return 0;
    auto [it, is_new] = known_.try_emplace(other.code());
    if (is_new) it->second.bytes = bound(from(other), to(other));
    return it->second.bytes;
  }

 private:
  struct Price {
    int64_t bytes = 0;
    bool exact = false;
  };

  const Layout& from(const Layout& other) const { return is_source_ ? end_.layout : other; }
  const Layout& to(const Layout& other) const { return is_source_ ? other : end_.layout; }

  // Ranks that differ on axes which become Partial have one new part together: what all of them lack of it, one of them
  // receives at least its share of.
  int64_t bound(const Layout& s, const Layout& t) const {
    if (s.partial && t.partial && s.reduce != t.reduce) return 0;
    AxisSet made = t.partial & ~s.partial;
    double together = p_.mesh.product(made);
    Reduction reduction;
    for (int a = 0; a < p_.mesh.axes(); ++a)
      if (has(s.partial & ~t.partial, a)) reduction.add(p_.mesh.size(a));
    double share = double(numel(end_.shape)) / p_.mesh.product(p_.mesh.wide() & ~(s.partial & t.partial));
    double part = double(largest_part(p_.mesh, end_.shape, t)) / together;
    double missing = double(most_missing(p_.mesh, end_.shape, held_together(s, made), t)) / together;
    return least_bytes(reduction.least(share, part, missing), end_.dtype);
  }

  // A layout in which each rank has all that those which differ from it on `axes` have under `layout`: dimensions are
  // split as far as the first of these axes.
  static Layout held_together(Layout layout, AxisSet axes) {
    for (AxisList& list : layout.split) {
      AxisList outer;
      for (int i = 0; i < list.count && !has(axes, list.axis[size_t(i)]); ++i) outer.push_back(list.axis[size_t(i)]);
      list = outer;
    }
    return layout;
  }

  const Propagation& p_;
  TensorSpec end_;
  bool is_source_;
  Redistributions plans_;
  std::unordered_map<uint64_t, Price> known_;
};

using Strategies = std::array<int16_t, max_axes>;  // by axis: places in the list of strategies

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
  void each_order(const Strategies& chosen, F found) const {
    Choice c;
    c.factors.resize(p_.rule.factors().size());
    for (size_t k = 0; k < axes.size(); ++k)
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
  void order_of_factor(size_t f, const Strategies& chosen, Choice& c, F& found) const {
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
  bool place(const Operand& operand, const Strategies& chosen, const Choice& c, bool input, size_t i,
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
  bool finish(const Strategies& chosen, Choice& c) const {
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

  const Propagation& p_;
};

// What one strategy on one axis does to one tensor that is redistributed, or what strategies do on several axes. The
// new part is what a rank has in the end.
struct Effect {
  double divides = 1;   // the new part is at least the tensor divided by this
  double held = 1;      // at most this share of it is there before
  double alike = 1;     // the same for axes that split another dimension than before, of which only one counts
  double kept = 1;      // contributions that stay Partial
  Reduction reduction;  // those that are summed
  bool moves = false;
  AxisSet left = 0, not_made = 0;  // axes that stop to split the dimension they did; axes that become no Partial
  uint32_t joined = 0;             // dimensions that more axes split than before

  Effect& operator*=(const Effect& e) {
    divides *= e.divides, held *= e.held, alike = std::min(alike, e.alike), kept *= e.kept, moves |= e.moves;
    left |= e.left, not_made |= e.not_made, joined |= e.joined;
    reduction.add(e.reduction);
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
        expand(state);
      else if (state.candidate->priced == state.candidate->sure.size())
        found.push_back(std::move(state.candidate->choice));
      else
        price(std::move(state));
    }
    return found;
  }

 private:
  static constexpr int16_t undecided = -1;

  // A tensor that a choice moves: an input, or an output with a wanted layout.
  struct Move {
    double elements, share;  // all; what each rank has where every axis splits
    DType dtype;
    std::vector<std::vector<Effect>> effects;  // [axis][strategy]
    std::vector<double> may_divide;            // [axis]: by any strategy
    const Layout* even_source;                 // of an input whose sizes all axes together divide
  };
  // A choice, and of each tensor that it moves what it surely costs; of the first `priced` that is the price.
  struct Candidate {
    Choice choice;
    std::vector<int64_t> sure;
    size_t priced = 0;
  };
  // Choices of which some strategies are decided, or one choice.
  struct State {
    Cost cost;            // at most that of all its choices
    Strategies strategy;  // by axis
    size_t order = 0;     // among choices of the same strategies
    std::unique_ptr<Candidate> candidate = nullptr;

    // Of its choices none has strategies before these in order.
    Strategies first() const {
      Strategies f = strategy;
      for (int16_t& s : f) s = std::max<int16_t>(s, 0);
      return f;
    }
  };
  static bool later(const State& a, const State& b) {
    if (a.cost != b.cost) return b.cost < a.cost;
    return std::pair(b.first(), b.order) < std::pair(a.first(), a.order);
  }
  struct Child {
    int16_t strategy;
    Cost cost;
  };

  template <class F>
  void add(const Prices& prices, F placement) {
    const TensorSpec& end = prices.end();
    Move m;
    m.elements = double(numel(end.shape)), m.share = m.elements / p_.mesh.product(p_.mesh.wide());
    m.dtype = end.dtype;
    bool even = prices.is_source() && std::all_of(end.shape.begin(), end.shape.end(),
                                                  [&](int64_t n) { return n % p_.mesh.product(p_.mesh.wide()) == 0; });
    m.even_source = even ? &end.layout : nullptr;
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
    int k = p_.mesh.size(axis);
    Effect e;
    e.moves = from != to;
    if (from.is_partial() || !to.is_partial()) e.not_made = axis_bit(axis);
    if (from.is_shard() && e.moves && !to.is_partial()) e.left = axis_bit(axis);
    if (to.is_shard() && e.moves) e.joined = 1u << to.dim;
    if (!e.moves) {
      if (to.is_shard()) e.divides = k;
      if (to.is_partial()) e.kept = k;
      return e;
    }
    if (!to.is_replicate()) e.divides = k;  // Partial may be made of shards
    if (from.is_partial())
      e.reduction.add(k);
    else if (from.is_shard() && to.is_replicate())
      e.held = 1.0 / k;
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

  // Whether some rank has nothing of its new part before: a dimension gets another axis in place of one. Its
  // coordinates on these are the last there and the first here. Not where ranks hold more together, by an axis further
  // out that becomes Partial.
  static bool lacks_all(const Move& m, const Effect& e) {
    if (!m.even_source || !e.left || !e.joined) return false;
    for (int d = 0; d < max_dims; ++d) {
      if (!(e.joined >> d & 1)) continue;
      for (int a : m.even_source->split[size_t(d)]) {
        if (!has(e.not_made, a)) break;
        if (has(e.left, a)) return true;
      }
    }
    return false;
  }

  static int64_t bytes_of(const Move& m, const Effect& e) {
    double part = m.elements / e.divides, missing = lacks_all(m, e) ? part : part * (1 - e.held * e.alike);
    return least_bytes(e.reduction.least(m.share * e.kept, part, missing), m.dtype);
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
    State root{{}, {}};
    std::fill_n(root.strategy.begin(), all_.axes.size(), undecided);
    push(std::move(root));
  }

  // By move, of what is decided; axes that are undecided divide if they can.
  std::vector<Effect> effects_of(const State& state) const {
    std::vector<Effect> effects(moves_.size());
    for (size_t m = 0; m < moves_.size(); ++m)
      for (size_t a = 0; a < all_.axes.size(); ++a)
        if (state.strategy[a] == undecided)
          effects[m].divides *= moves_[m].may_divide[a];
        else
          effects[m] *= moves_[m].effects[a][size_t(state.strategy[a])];
    return effects;
  }

  // What choices cost at least when the axis is decided too.
  Cost least_with(const std::vector<Effect>& effects, size_t axis, size_t s) const {
    Cost cost;
    for (size_t m = 0; m < moves_.size(); ++m) {
      Effect e = effects[m];
      e.divides /= moves_[m].may_divide[axis], e *= moves_[m].effects[axis][s];
      (m < first_output_ ? cost.bytes : cost.output_bytes) += bytes_of(moves_[m], e);
      (m < first_output_ ? cost.moves : cost.output_moves) += e.moves;
    }
    return cost;
  }

  // Decides the axis on which the cheapest strategy costs most, of several the one with the fewest such strategies.
  void expand(const State& state) {
    const std::vector<Effect> effects = effects_of(state);
    std::vector<Child> children, here;
    size_t axis = 0, fewest = 0;
    Cost highest;
    for (size_t a = 0; a < all_.axes.size(); ++a) {
      if (state.strategy[a] != undecided) continue;
      here.clear();
      Cost least = any_cost;
      for (size_t s = 0; s < all_.strategies.size(); ++s) {
        if (!allowed(state, a, s)) continue;
        here.push_back({int16_t(s), std::max(state.cost, least_with(effects, a, s))});
        least = std::min(least, here.back().cost);
      }
      if (here.empty()) return;
      auto cheap = size_t(std::count_if(here.begin(), here.end(), [&](const Child& c) { return c.cost == least; }));
      if (children.empty() || highest < least || (highest == least && cheap < fewest))
        children.swap(here), axis = a, highest = least, fewest = cheap;
    }
    if (children.empty()) return push_candidates(state, effects);
    for (const Child& c : children) {
      State child{c.cost, state.strategy};
      child.strategy[axis] = c.strategy;
      push(std::move(child));
    }
  }

  void push_candidates(const State& state, const std::vector<Effect>& effects) {
    size_t order = 0;
    all_.each_order(state.strategy, [&](Choice choice) {
      auto candidate = std::make_unique<Candidate>(Candidate{std::move(choice), {}});
      Choice& c = candidate->choice;
      size_t m = 0;
      auto surely = [&](const auto& prices, const std::vector<Layout>& layouts, int64_t& bytes) {
        for (size_t i = 0; i < prices.size(); ++i) {
          int64_t least = 0;
          if (prices[i]) least = std::max(prices[i]->at_least(layouts[i]), bytes_of(moves_[m], effects[m])), ++m;
          candidate->sure.push_back(least), bytes += least;
        }
      };
      surely(all_.inputs, c.inputs, c.bytes), surely(all_.outputs, c.outputs, c.output_bytes);
      push({cost_of(c), state.strategy, order++, std::move(candidate)});
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

  // Not where a product would be split unevenly, reductions would mix, or what is written in place would move.
  bool allowed(const State& state, size_t axis, size_t s) const {
    const Strategy& mine = all_.strategies[s];
    int64_t ranks = p_.mesh.size(all_.axes[axis]);
    for (size_t o = 0; o < p_.in_place.size(); ++o) {
      auto i = size_t(p_.in_place[o]);
      Placement stays = p_.inputs[i]->layout[all_.axes[axis]];
      if (mine.inputs[i] != stays || mine.outputs[o] != stays) return false;
    }
    auto mix = [](const Placement& a, const Placement& b) {
      return a.is_partial() && b.is_partial() && a.reduce != b.reduce;
    };
    for (size_t a = 0; a < all_.axes.size(); ++a) {
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
  Strategies chosen{};
  for (;;) {
    combinations.each_order(chosen, [&](Choice c) {
      for (size_t i = 0; i < c.inputs.size(); ++i)
        if (combinations.inputs[i]) c.bytes += combinations.inputs[i]->exact(c.inputs[i]);
      for (size_t o = 0; o < combinations.outputs.size(); ++o)
        if (combinations.outputs[o]) c.output_bytes += combinations.outputs[o]->exact(c.outputs[o]);
      all.push_back(std::move(c));
    });
    size_t a = combinations.axes.size();  // the last axis runs fastest
    while (a > 0 && chosen[a - 1] + 1 == int(combinations.strategies.size())) chosen[--a] = 0;
    if (a == 0) break;
    ++chosen[a - 1];
  }
  std::stable_sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return cost_of(a) < cost_of(b); });
  return all;
}

}  // namespace dtensor
