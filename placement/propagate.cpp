#include "placement/propagate.h"

#include <algorithm>
#include <compare>
#include <memory>
#include <tuple>

#include "placement/combinations.h"

namespace dtensor {
namespace {

// What choices are compared by, and lower bounds of it.
struct Cost {
  int64_t bytes = 0, moves = 0, output_bytes = 0, output_moves = 0;
  friend auto operator<=>(const Cost&, const Cost&) = default;
};
constexpr Cost any_cost{INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};

Cost cost_of(const Choice& c) { return {c.bytes, c.moves, c.output_bytes, c.output_moves}; }

// What one strategy on one axis does to one tensor that is redistributed, or what strategies do on several axes. The
// new part is what a rank has in the end.
struct Effect {
  double divides = 1;     // the new part is at least the tensor divided by this
  double held = 1;        // at most this share of it is there before
  double alike = 1;       // the same for axes that split another dimension than before, of which only one counts
  double kept = 1;        // contributions that stay Partial
  Contributions reduced;  // those that are summed
  bool moves = false;
  AxisSet left = 0, not_made = 0;  // axes that stop to split the dimension they did; axes that become no Partial
  uint32_t joined = 0;             // dimensions that more axes split than before

  Effect& operator*=(const Effect& e) {
    divides *= e.divides, held *= e.held, alike = std::min(alike, e.alike), kept *= e.kept, moves |= e.moves;
    left |= e.left, not_made |= e.not_made, joined |= e.joined;
    reduced.add(e.reduced);
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
      e.reduced.add(k);
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
    return least_bytes(e.reduced.least(m.share * e.kept, part, missing), m.dtype);
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
    for (Choice& choice : all_.with(state.strategy)) {
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
    }
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
    for (Choice& c : combinations.with(chosen)) {
      for (size_t i = 0; i < c.inputs.size(); ++i)
        if (combinations.inputs[i]) c.bytes += combinations.inputs[i]->exact(c.inputs[i]);
      for (size_t o = 0; o < combinations.outputs.size(); ++o)
        if (combinations.outputs[o]) c.output_bytes += combinations.outputs[o]->exact(c.outputs[o]);
      all.push_back(std::move(c));
    }
    size_t a = combinations.axes.size();  // the last axis runs fastest
    while (a > 0 && chosen[a - 1] + 1 == int(combinations.strategies.size())) chosen[--a] = 0;
    if (a == 0) break;
    ++chosen[a - 1];
  }
  std::stable_sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return cost_of(a) < cost_of(b); });
  return all;
}

}  // namespace dtensor
