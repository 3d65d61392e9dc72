#include "placement/redistribution.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>

#include "placement/move.h"

namespace dtensor {
namespace {

using namespace planning;

constexpr Picoseconds rounding = 100;  // of the sum of some steps' times

// Two ends of a plan, and what each mesh axis does between them. Fixed are the axes that stay Partial, and shards
// whose place in their dimension's order, counted from the outermost, stays the same. The others move.
struct Ends {
  Layout source, target, base;  // base: the fixed axes only
  size_t dims;
  AxisSet moving = 0, shard_s = 0, shard_t = 0, reduced = 0, made = 0;

  Ends(const Problem& p, const Layout& s, const Layout& t) : source(s), target(t), dims(size_t(p.shape.dims())) {
    base.partial = s.partial & t.partial;
    base.reduce = s.partial ? s.reduce : t.reduce;
    AxisSet fixed = base.partial;
    for (size_t d = 0; d < dims; ++d) {
      const AxisList &u = s.split[d], &v = t.split[d];
      for (size_t i = 0; i < u.count && i < v.count && u.axis[i] == v.axis[i]; ++i) base.split[d].push_back(u.axis[i]);
      fixed |= base.split[d].set();
    }
    moving = p.mesh.wide() & ~fixed;
    shard_s = s.sharded() & moving, shard_t = t.sharded() & moving;
    reduced = s.partial & moving, made = t.partial & moving;
  }

  // In every dimension: the fixed axes, those still at their source in source order, those already at their target in
  // target order, and in dimension `dim` the temporary ones.
  Layout layout(AxisSet at_source, AxisSet at_target, AxisSet partial, AxisSet temporary = 0, int dim = 0) const {
    Layout l = base;
    for (size_t d = 0; d < dims; ++d) {
      for (int a : source.split[d])
        if (has(shard_s & at_source, a)) l.split[d].push_back(a);
      for (int a : target.split[d])
        if (has(shard_t & at_target, a)) l.split[d].push_back(a);
    }
    for (int a = 0; a < max_axes; ++a)
      if (has(temporary, a)) l.split[size_t(dim)].push_back(a);
    l.partial |= partial;
    if (!l.partial) l.reduce = Reduce::sum;
    return l;
  }
};

template <class F>
void subsets(AxisSet set, F f) {
  for (AxisSet q = set;; q = (q - 1) & set) {
    f(q);
    if (!q) return;
  }
}

class Planner {
 public:
  explicit Planner(const Problem& p) : p_(p), fastest_(p.cost.link(0)) {
    for (int a = 1; a < p.mesh.axes(); ++a) {
      const Link& l = p.link(a);
      uneven_ |= l.mb_per_second != fastest_.mb_per_second;
      fastest_ = {std::min(fastest_.launch_ns, l.launch_ns), std::min(fastest_.hop_ns, l.hop_ns),
                  std::max(fastest_.mb_per_second, l.mb_per_second)};
    }
  }

  std::vector<Step> plan(const Layout& source, const Layout& target) {
    if (source == target || numel(p_.shape) == 0) return {};
    if (source.partial && target.partial && source.reduce != target.reduce) {  // one reduction per layout
      Layout between = target;
      between.partial = 0, between.reduce = Reduce::sum;
      std::vector<Step> steps = plan(source, between), rest = plan(between, target);
      steps.insert(steps.end(), rest.begin(), rest.end());
      return steps;
    }
    if (source.partial == target.partial) {
      Change c(p_, source, target);
      if (c.left && p_.fits(source, target))
        return {{StepKind::slice, c.left | c.joined, source, target, 0, slice_time}};
    }
    best_.clear(), best_time_ = INT64_MAX;
    Ends ends(p_, source, target);
    one_collective(ends);
    if (best_time_ > two_collectives(ends)) more_collectives(ends);
    return best_;
  }

 private:
  // The paths of "slice or pad, reduce, one exchange, slice or pad" that have one collective. A layout on the way is
  // named by what was done last.
  void one_collective(const Ends& e) {
    const Layout &s = e.source, &t = e.target;
    AxisSet slices = e.shard_t & ~e.shard_s & ~e.reduced;  // what the target splits besides, at no cost
    Layout sliced = e.layout(~0u, slices, e.reduced);
    attempt({s, t});  // one step
    if (slices) attempt({s, sliced, t});
    if (e.made) pad(e);
    if (!e.reduced) return;
    Layout reduced = e.layout(~0u, 0, 0), sliced_and_reduced = e.layout(~0u, slices, 0);
    attempt({s, reduced, t});
    attempt({s, sliced, sliced_and_reduced, t});
    if (e.made | e.shard_s) reduce_padded(e, slices);
  }

  // Axes that become Partial: the others' zeros are added first, or last, when a temporary shard has been exchanged.
  void pad(const Ends& e) {
    Layout padded = e.layout(~e.made, 0, e.reduced | e.made);
    attempt({e.source, padded, e.target});
    for (int d = 0; d < p_.shape.dims(); ++d) {
      Layout exchanged = e.layout(0, ~0u, 0, e.made, d);
      attempt({e.source, exchanged, e.target});
    }
  }

  // Shards are padded, so that the one collective is a reduction over all that moves.
  void reduce_padded(const Ends& e, AxisSet slices) {
    const Layout &s = e.source, &t = e.target;
    Layout padded = e.layout(0, 0, e.reduced | e.made | e.shard_s), reduced = e.layout(0, 0, e.made);
    attempt({s, padded, t});
    attempt({s, padded, reduced, t});
    if (!slices) return;
    Layout sliced = e.layout(0, slices, padded.partial & e.moving), sliced_and_reduced = e.layout(0, slices, e.made);
    attempt({s, padded, sliced, sliced_and_reduced, t});
  }

  // The least that two collectives can take: two launches, and where n contributions are reduced, a whole new piece
  // and a share of the other n - 2 contributions received.
  Picoseconds two_collectives(const Ends& e) const {
    int64_t n = p_.product(e.reduced), share = p_.bytes_of(e.base) / p_.product(e.moving);
    int64_t bytes = n > 1 && !e.made ? p_.bytes_of(e.target) + (n - 2) * share : 0;
    return 2 * one_message() + fastest_.transfer(bytes);
  }
  Picoseconds one_message() const { return 1000 * (fastest_.launch_ns + fastest_.hop_ns); }

  // Dimensions for temporary shards: those in use, and of the others the one that splits most evenly.
  std::vector<int> dimensions(const Ends& e) const {
    std::vector<int> dims;
    int other = -1;
    int64_t n = p_.product(e.moving), least = INT64_MAX;
    for (int d = 0; d < p_.shape.dims(); ++d) {
      int64_t padded = largest_piece(p_.shape[d], n) * n * 1024 / std::max<int64_t>(1, p_.shape[d]);
      if (e.source.split[size_t(d)].count || e.target.split[size_t(d)].count)
        dims.push_back(d);
      else if (padded < least)
        other = d, least = padded;
    }
    if (other >= 0) dims.push_back(other);
    return dims;
  }

  struct Scatter {
    Picoseconds reducing, least;  // what reductions take at least; and all
    AxisSet arrived, temporary;
  };
  // A reduce_scatter leaves each rank a part: of the target, on the axes that have `arrived` there, or of a temporary
  // dimension. The rest is reduced by an all_reduce, before or after; then one exchange, and zeros where axes are made.
  void more_collectives(const Ends& e) {
    Layout exchanged = e.layout(0, ~e.reduced, e.reduced);
    attempt({e.source, exchanged, e.target});
    if (!e.reduced && !uneven_) return;
    AxisSet free = e.moving & ~e.shard_s;
    std::vector<Scatter> ways;
    subsets(free & e.shard_t, [&](AxisSet arrived) {
      subsets(free & ~arrived, [&](AxisSet temporary) {
        Picoseconds reducing = least_reducing(e, arrived | temporary), least = reducing;
        if ((e.shard_s | temporary) & ~e.made) least += one_message();  // what is elsewhere has to come
        if (least < best_time_) ways.push_back({reducing, least, arrived, temporary});
      });
    });
    std::stable_sort(ways.begin(), ways.end(), [](const Scatter& a, const Scatter& b) { return a.least < b.least; });
    const std::vector<int> dims = dimensions(e);
    for (const Scatter& w : ways)
      for (int d : dims)
        if (w.least < best_time_ && (w.temporary || d == dims[0])) try_scatter(e, w, d);
  }
  void try_scatter(const Ends& e, const Scatter& way, int dim) {
    const Layout &s = e.source, &t = e.target;
    const auto [reducing, _, arrived, temporary] = way;
    bool ends_by_zeros = !((e.shard_s | temporary) & ~e.made) && !(e.shard_t & ~arrived);  // in one step
    Layout reduced = e.layout(~0u, arrived, 0, temporary, dim), made_last = e.layout(0, ~0u, 0, e.made, dim);
    bool directly = (!e.made || ends_by_zeros) && reducing + least_step(reduced, t) < best_time_;
    bool made = e.made && reducing + least_step(reduced, made_last) < best_time_;
    if (!directly && !made) return;
    AxisSet later = e.reduced & ~arrived & ~temporary;  // what an all_reduce is for
    Layout scattered = e.layout(~0u, arrived, later, temporary, dim);
    if (directly) {
      Layout first = e.layout(~0u, 0, e.reduced & ~later);
      attempt({s, scattered, reduced, t});
      attempt({s, first, reduced, t});
    }
    if (made) attempt({s, scattered, reduced, made_last, t});
  }

  // The least that getting from one layout to the other in one step takes, in however many steps that is then done.
  Picoseconds least_step(const Layout& from, const Layout& to) {
    if (from == to) return 0;
    Node a = node(from), b = node(to);
    auto move = move_between(p_, a, b);
    return move ? least_time(*move, a, b) : INT64_MAX / 2;
  }

  // The least that launches and messages can take of collectives that together reduce over these axes, each over some
  // of them, where each rank of a group gets `messages` from every other: the smaller the groups, the fewer messages
  // and the more launches.
  int64_t least_latency(AxisSet axes, int messages) {
    int64_t& known = latencies_[axes][size_t(messages - 1)];
    if (known) return known;
    double least = INFINITY, n = p_.product(axes);
    for (int groups = 1; groups <= std::popcount(axes); ++groups) {
      double received = messages * (std::pow(n, 1.0 / groups) - 1);
      least = std::min(least, groups * (double(fastest_.launch_ns) + double(fastest_.hop_ns) * received));
    }
    return known = int64_t(least * (1 - 1e-12));
  }

  // The least that reductions can take where `joined` axes split meanwhile: at least that share of the source is
  // reduced, over the joined axes by a reduce_scatter and over the others by an all_reduce, in however many steps.
  Picoseconds least_reducing(const Ends& e, AxisSet joined) {
    int64_t share = p_.bytes_of(e.source) / p_.product(joined);
    int64_t scattered = p_.product(e.reduced & joined), rest = p_.product(e.reduced & ~joined);
    int64_t bytes = (scattered - 1) * share + 2 * (share - share / rest), ns = 0;
    if (scattered > 1) ns += least_latency(e.reduced & joined, 1);
    if (rest > 1) ns += least_latency(e.reduced & ~joined, 2);
    return ns * 1000 + fastest_.transfer(bytes) - rounding;
  }

  Node node(const Layout& l) const { return {l, largest_part(p_.mesh, p_.shape, l)}; }

  // Keeps the plan along `path` if every step exists and it is the cheapest so far.
  void attempt(std::initializer_list<Layout> path) {
    struct Stage {
      Node from, to;
      Move move;
    };
    std::array<Stage, 4> stages;
    size_t count = 0;
    Picoseconds least = 0;
    Node from = node(*path.begin());
    for (const Layout& l : path) {
      if (l == from.layout) continue;
      Node to = node(l);
      auto move = move_between(p_, from, to);
      if (!move) return;
      least += least_time(*move, from, to);
      if (least >= best_time_) return;
      stages[count++] = {from, to, *move};
      from = to;
    }
    plan_.clear(), time_ = 0, outermost_reduced_ = max_axes;
    for (size_t i = 0; i < count; ++i)
      if (!append(stages[i].move, stages[i].from, stages[i].to) || time_ >= best_time_) return;
    best_ = plan_, best_time_ = time_;
  }

  bool append(const Move& move, const Node& from, const Node& to) {
    if (auto halves = split(move, from, to))
      return append(halves->first, from, halves->middle) && append(halves->second, halves->middle, to);
    if (AxisSet reduced = from.layout.partial & ~to.layout.partial) {  // innermost first
      if (int(std::bit_width(reduced)) > outermost_reduced_) return false;
      outermost_reduced_ = std::countr_zero(reduced);
    }
    plan_.push_back({move.kind, move.axes, from.layout, to.layout, move.bytes, move.time});
    time_ += move.time;
    return true;
  }

  bool may_split(const Move& whole, const Node& from, const Node& to) const {
    AxisSet axes = whole.axes;
    if (!(axes & (axes - 1))) return false;
    const Link& link = p_.slowest[axes];
    double messages = double(whole.messages), each = whole.kind == StepKind::all_reduce ? 2 : 1;  // from every other
    double halves =
        2 * (double(fastest_.launch_ns) + double(fastest_.hop_ns) * each * (std::sqrt(messages / each + 1) - 1));
    bool many = double(link.launch_ns) + double(link.hop_ns) * messages > halves;
    bool padded = whole.kind == StepKind::reduce_scatter && to.elements * p_.product(axes) > from.elements;
    return many || uneven_ || padded;
  }

  // The least that a step takes, in however many steps.
  Picoseconds least_time(const Move& whole, const Node& from, const Node& to) {
    if (!may_split(whole, from, to)) return whole.time;
    if (is_local(whole.kind)) return 0;
    int axes = std::popcount(whole.axes);
    int64_t n = p_.product(whole.axes), bytes = to.elements * p_.reduced(from.layout);
    if (whole.kind == StepKind::reduce_scatter)
      return least_latency(whole.axes, 1) * 1000 + fastest_.transfer(axes * bytes);
    if (whole.kind == StepKind::all_reduce)
      return least_latency(whole.axes, 2) * 1000 + fastest_.transfer(2 * (bytes - bytes / n)) - axes;
    bool gathers = whole.kind == StepKind::all_gather && !uneven_;  // and so do all steps that it may be split into
    int64_t ns = gathers ? least_latency(whole.axes, 1)
                         : std::min(fastest_.launch_ns + int64_t(double(fastest_.hop_ns) * whole.least_messages),
                                    2 * (fastest_.launch_ns + fastest_.hop_ns));
    return ns * 1000 + least_gathering(from.elements, to.elements) - rounding;
  }

  // The least that receiving takes where a rank has so many elements before and after: in exchanges, and slices between
  // them, a rank keeps no more than it had.
  Picoseconds least_gathering(int64_t before, int64_t after) const {
    return std::max<int64_t>(0, fastest_.transfer((after - before) * p_.least()) - rounding);
  }

  struct Halves {
    Node middle;
    Move first, second;
  };

  // Where two steps, each over a part of the axes, are cheaper than one: these, and the layout between them. Plans of
  // one tensor have most steps in common.
  std::optional<Halves> split(const Move& whole, const Node& from, const Node& to) {
    if (!may_split(whole, from, to)) return {};
    auto [it, is_new] = middles_[from.layout.code()].try_emplace(to.layout.code());
    if (is_new) it->second = find_middle(whole, from, to);
    const std::optional<Node>& middle = it->second;
    if (!middle) return {};
    return Halves{*middle, *move_between(p_, from, *middle), *move_between(p_, *middle, to)};
  }

  std::optional<Node> find_middle(const Move& whole, const Node& from, const Node& to) const {
    Ends e(p_, from.layout, to.layout);
    std::optional<Node> found;
    Picoseconds best = whole.time;
    auto consider = [&](const Layout& l) {
      if (l == from.layout || l == to.layout) return;
      Node middle = node(l);
      auto a = move_between(p_, from, middle);
      if (!a || a->time >= best) return;
      auto b = move_between(p_, middle, to);
      if (b && a->time + b->time < best) best = a->time + b->time, found = middle;
    };
    AxisSet sent = e.shard_s & ~e.made;
    Picoseconds least = 2 * one_message() + (e.reduced ? 0 : least_gathering(from.elements, to.elements));
    subsets(e.reduced | e.made | e.shard_s | e.shard_t, [&](AxisSet first) {
      AxisSet now = e.reduced & first, later = e.reduced & ~first;
      if (now && later && std::countr_zero(now) < int(std::bit_width(later))) return;  // innermost first
      if ((sent | e.reduced) & first && (sent | e.reduced) & ~first && least >= best) return;
      AxisSet partial = later | (e.made & first);
      consider(e.layout(~first, first, partial));
      if (e.shard_t & first) consider(e.layout(~first, 0, partial));
    });
    if (uneven_)  // cross the slow axis in small pieces, gather last
      for (int d = 0; d < p_.shape.dims(); ++d)
        subsets(e.shard_s & ~e.shard_t, [&](AxisSet later) { consider(e.layout(0, ~0u, 0, later, d)); });
    return found;
  }

  const Problem& p_;
  Link fastest_;
  bool uneven_ = false;
  std::array<std::array<int64_t, 2>, 1 << max_axes> latencies_{};
  std::unordered_map<uint64_t, std::unordered_map<uint64_t, std::optional<Node>>> middles_;  // by codes of both ends
  std::vector<Step> plan_, best_;
  Picoseconds time_ = 0, best_time_ = 0;
  int outermost_reduced_ = max_axes;
};

// The bytes of an exchange, exactly: what the busiest rank lacks. Where no rank lacks any, it is local.
void settle(const Problem& p, Step& step) {
  step.bytes = most_missing(p.mesh, p.shape, step.from, step.to) * p.moved(step.from);
  if (!step.bytes) step.kind = StepKind::slice, step.time = slice_time;
}

}  // namespace

struct Redistributions::State {
  Problem problem;
  Planner planner;

  State(const MeshShape& mesh, const Shape& shape, DType dtype, const CostModel& cost,
        std::optional<DType> reduce_dtype)
      : problem(mesh, shape, dtype, cost, reduce_dtype), planner(problem) {}
};

Redistributions::Redistributions(const MeshShape& mesh, const Shape& shape, DType dtype, const CostModel& cost,
                                 std::optional<DType> reduce_dtype)
    : state_(std::make_unique<State>(mesh, shape, dtype, cost, reduce_dtype)) {}
Redistributions::~Redistributions() = default;

Plan Redistributions::plan(const Layout& from, const Layout& to) {
  const Problem& p = state_->problem;
  Plan plan{state_->planner.plan(strip_narrow_axes(p.mesh, from), strip_narrow_axes(p.mesh, to))};
  for (Step& step : plan.steps)
    if (is_exchange(step.kind)) settle(p, step);
  return plan;
}

// By the forms that such plans have: an exchange after zeros were added on the axes that become Partial, or before that
// with these axes as shards of some dimension (Planner::pad).
int64_t Redistributions::least_without_sums(const Layout& from, const Layout& to) const {
  const Problem& p = state_->problem;
  Layout s = strip_narrow_axes(p.mesh, from), t = strip_narrow_axes(p.mesh, to), padded = s;
  AxisSet made = t.partial & ~s.partial;
  for (AxisList& list : padded.split)
    while (list.count && has(made, list.axis[size_t(list.count - 1)])) --list.count;
  bool innermost = !(padded.sharded() & made);
  int64_t least = innermost ? most_missing(p.mesh, p.shape, padded, t) : INT64_MAX;
  for (int d = 0; d < p.shape.dims() && least; ++d) {
    Layout exchanged = t;
    for (int a = 0; a < p.mesh.axes(); ++a)
      if (has(made, a)) exchanged.split[size_t(d)].push_back(a);
    least = std::min(least, most_missing(p.mesh, p.shape, s, exchanged));
  }
  return least == INT64_MAX ? 0 : least * p.moved(s);
}

Plan plan_redistribution(const MeshShape& mesh, const Shape& shape, DType dtype, const Layout& from, const Layout& to,
                         const CostModel& cost, std::optional<DType> reduce_dtype) {
  return Redistributions(mesh, shape, dtype, cost, reduce_dtype).plan(from, to);
}

}  // namespace dtensor
