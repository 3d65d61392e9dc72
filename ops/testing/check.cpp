#include "ops/testing/check.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "ops/testing/simulation.h"

namespace dtensor::testing {
namespace {

constexpr double tolerance = 1e-9, tolerance_f32 = 1e-4;
constexpr Reduce reductions[] = {Reduce::sum, Reduce::avg, Reduce::max, Reduce::min, Reduce::product};

MeshShape line(int world) { return MeshShape({world}, {"x"}); }
uint64_t bit(int f) { return f < 0 ? 0 : uint64_t(1) << f; }
// Whether ranks can share the factor.
bool divides(const Factor& f, int world) { return !f.even || f.size % world == 0; }

// Why the parts of an output do not make `whole`; "" where they do.
std::string mismatch(std::span<const Tensor> parts, const Tensor& whole, Placement p, const MeshShape& mesh) {
  if (p.is_partial()) return difference(combined(parts, p.reduce), whole, tolerance);
  for (size_t r = 0; r < parts.size(); ++r) {
    std::string d = difference(parts[r], whole.part(local_box(mesh, whole.shape(), Layout{p}, int(r))), tolerance);
    if (!d.empty()) return fmt::format("rank {}'s part {}", r, d);
  }
  return "";
}

// "k", or "..." for a dimension of it.
std::string factor_name(char name) { return name <= 'Z' ? "..." : std::string(1, name); }

class Checker {
 public:
  Checker(const Op& op, const CheckOptions& options) : op_(op), options_(options) { report_.op = op.name; }

  Report run() {
    if (op_.sample.empty()) report_.failures.push_back("the card has no sample");
    try {
      std::vector<Case> cases = cases_of(op_, {0, 1, 4}, options_.seed);
      if (!op_.composite)
        for (const Case& c : cases) {
          try {
            check_case(c);
          } catch (const Error& e) {
            fail_case(c, e.what());
          }
        }
      if (report_.ok()) check_launched(op_, cases, options_, report_);
    } catch (const Error& e) {
      report_.failures.push_back(e.what());
    }
    report_.strategies = int(offered_.size());
    for (const auto& [key, sound] : searched_)
      if (sound) report_.not_offered.push_back(key);
    report_.other_bits.assign(other_bits_.begin(), other_bits_.end());
    return std::move(report_);
  }

 private:
  void fail_case(const Case& c, const std::string& what) {
    report_.failures.push_back(fmt::format("{}: {}", c.name, what));
  }

  void check_case(const Case& c) {
    Simulation s(c);
    std::vector<Tensor> whole = s.run_whole();
    check_whole(s, whole);
    std::vector<Strategy> offered = s.rule().strategies(reductions);
    for (const Strategy& strategy : offered)
      for (int world : options_.worlds)
        if (exists(c, strategy)) check_strategy(s, strategy, world, whole);
    check_f32(c, whole);
    if (c.derived) return;
    check_broadcast(c);
    if (options_.search) search(s, whole);
  }

  // The kernel writes every element, and takes strides where it says so.
  void check_whole(Simulation& s, const std::vector<Tensor>& whole) {
    std::vector<Tensor> again = s.run_whole(7e77);
    for (size_t o = 0; o < whole.size(); ++o)
      if (!same_bits(whole[o], again[o]))
        fail_case(s.of(), fmt::format("the kernel does not write all of output {}", o));
    if (!op_.strided) return;
    std::vector<Tensor> turned, repeated;
    for (const Tensor& t : s.of().inputs) {
      turned.push_back(t.defined() ? reversed(t) : t);
      repeated.push_back(t.defined() ? expanded(t, int(turned.size())) : t);
    }
    check_strided(s, turned, "turned");
    check_strided(s, repeated, "repeated");
  }

  void check_strided(Simulation& s, const std::vector<Tensor>& inputs, const char* how) {
    std::vector<Tensor> contiguous;
    for (const Tensor& t : inputs) contiguous.push_back(t.defined() ? t.clone() : t);
    std::vector<Tensor> expected = s.run(MeshShape(), 0, 0, contiguous), got;
    try {
      got = s.run(MeshShape(), 0, 0, inputs);
    } catch (const Error&) {
      if (op_.stays) return;  // a view that these strides do not allow
      throw;
    }
    for (size_t o = 0; o < got.size(); ++o) {
      std::string d = difference(got[o], expected[o], tolerance);
      if (!d.empty()) fail_case(s.of(), fmt::format("from strided inputs ({}), output {} {}", how, o, d));
    }
  }

  // The same values, dimensions in memory the other way round.
  static Tensor reversed(const Tensor& t) {
    std::vector<int> order(size_t(t.dims()));
    std::iota(order.rbegin(), order.rend(), 0);
    return t.permute(order).clone().permute(order);
  }

  // "..." broadcasts as in NumPy, or the op refuses it.
  void check_broadcast(const Case& c) {
    BoundRule rule = Simulation(c).rule();
    for (size_t i = 0; i < c.inputs.size(); ++i)
      for (int d = 0; c.inputs[i].defined() && d < c.inputs[i].dims(); ++d) {
        int f = rule.inputs()[i].leading[size_t(d)];
        if (f < 0 || rule.factors()[size_t(f)].name > 'Z' || c.inputs[i].size(d) < 2) continue;
        bool shared = false;
        for (size_t k = 0; k < c.inputs.size(); ++k) shared |= k != i && rule.inputs()[k].dim_of(f) >= 0;
        if (!shared) continue;
        Case narrow = c, wide = c;
        narrow.inputs[i] = c.inputs[i].narrow(d, 0, 1).clone();
        wide.inputs[i] = expanded(c.inputs[i], d).clone();
        std::vector<Tensor> got;
        try {
          got = Simulation(narrow).run_whole();
        } catch (const Error&) {
          continue;
        }
        std::vector<Tensor> expected = Simulation(wide).run_whole();
        for (size_t o = 0; o < got.size(); ++o)
          if (std::string wrong = difference(got[o], expected[o], tolerance); !wrong.empty())
            fail_case(c, fmt::format("with dimension {} of input {} broadcast, output {} {}", d, i, o, wrong));
      }
  }

  // The first slice of a dimension again and again, as expand() shows it.
  static Tensor expanded(const Tensor& t, int dim) {
    if (t.numel() == 0 || t.dims() == 0) return t;
    Shape strides = t.strides();
    strides[dim % t.dims()] = 0;
    return t.as_strided(t.shape(), strides);
  }

  void check_strategy(Simulation& s, const Strategy& strategy, int world, const std::vector<Tensor>& whole) {
    if (strategy.factor >= 0 && !divides(s.rule().factors()[size_t(strategy.factor)], world)) return;
    offered_.insert(key(s, strategy.inputs, bit(strategy.factor)) + "->" +
                    key(s, strategy.outputs, s.rule().outputs()));
    MeshShape mesh = line(world);
    bool partial =
        std::any_of(strategy.inputs.begin(), strategy.inputs.end(), [](Placement p) { return p.is_partial(); });
    for (Contributions how : {Contributions::random, Contributions::identity}) {
      if (how == Contributions::identity && !partial) break;
      ++report_.cases;
      std::string failure;
      try {
        auto parts = s.run_parts(mesh, bit(strategy.factor), strategy.inputs, how, options_.seed);
        for (size_t o = 0; o < parts.size() && failure.empty(); ++o)
          if (std::string d = mismatch(parts[o], whole[o], strategy.outputs[o], mesh); !d.empty())
            failure = fmt::format("output {}: {}", o, d);
      } catch (const Error& e) {
        failure = e.what();
      }
      if (!failure.empty())
        fail_case(s.of(), fmt::format("{} on {} ranks is unsound: {}", to_string(strategy), world, failure));
    }
  }

  // Close to float64, and law 6 for sizes that 8 ranks share evenly.
  void check_f32(const Case& c, const std::vector<Tensor>& whole) {
    if (!std::any_of(c.inputs.begin(), c.inputs.end(),
                     [](const Tensor& t) { return t.defined() && t.dtype() == DType::f64; }))
      return;
    Case single = as_f32(c);
    Simulation s(single);
    std::vector<Tensor> out = s.run_whole();
    for (size_t o = 0; o < out.size(); ++o) {
      std::string d = difference(as_f64(out[o]), as_f64(whole[o]), tolerance_f32);
      if (!d.empty()) fail_case(single, fmt::format("in float32, output {} {}", o, d));
    }
    if (c.derived) return;
    for (int f = 0; f < int(s.rule().factors().size()); ++f)
      for (int64_t times : {8, 200}) {
        const Factor& factor = s.rule().factors()[size_t(f)];
        if (!factor.shardable) continue;
        if (auto large = with_size(c, f, factor.size * times, options_.seed)) check_bits(c, *large, f);
      }
  }

  static Tensor as_f64(const Tensor& t) {
    Tensor from = t.contiguous();
    std::vector<double> v;
    for (int64_t i = 0; i < t.numel(); ++i) v.push_back(element(from, i));
    return Tensor::of<double>(t.shape(), v);
  }

  void check_bits(const Case& sample, const Case& c, int f) {
    Case single = as_f32(c);
    Simulation s(single), threads(single, 2);
    std::vector<Tensor> whole = s.run_whole();
    for (const Strategy& strategy : s.rule().strategies({})) {
      if (strategy.factor != f) continue;
      for (int world : {2, 4, 8}) {
        if (s.rule().factors()[size_t(f)].size % world) continue;
        MeshShape mesh = line(world);
        auto parts = threads.run_parts(mesh, bit(f), strategy.inputs, Contributions::identity, 0);
        ++report_.cases;
        for (size_t o = 0; o < parts.size(); ++o)
          if (!bits_agree(parts[o], whole[o], strategy.outputs[o], mesh))
            other_bits_.insert(fmt::format("{} of {}: output {}", s.rule().factors()[size_t(f)].name, sample.name, o));
      }
    }
  }

  static bool bits_agree(std::span<const Tensor> parts, const Tensor& whole, Placement p, const MeshShape& mesh) {
    if (p.is_partial()) return same_bits(combined(parts, p.reduce), whole);
    for (size_t r = 0; r < parts.size(); ++r)
      if (!same_bits(parts[r], whole.part(local_box(mesh, whole.shape(), Layout{p}, int(r))))) return false;
    return true;
  }

  // Placements named by factors, the same for samples of other shapes: "Shard(k),Replicate".
  static std::string key(const Simulation& s, std::span<const Placement> placements,
                         const std::vector<Operand>& operands) {
    std::string text;
    for (size_t i = 0; i < placements.size(); ++i) {
      std::string p = dtensor::to_string(placements[i]);
      if (placements[i].is_shard()) {
        int f = operands[i].leading[size_t(placements[i].dim)];
        p = fmt::format("Shard({})", f < 0 ? "1" : factor_name(s.rule().factors()[size_t(f)].name));
      }
      text += (i ? "," : "") + p;
    }
    return text;
  }

  // Those of the inputs, and the sharded factors that are on outputs only.
  static std::string key(const Simulation& s, std::span<const Placement> inputs, uint64_t sharded) {
    std::string text = key(s, inputs, s.rule().inputs());
    for (size_t f = 0; f < s.rule().factors().size(); ++f) {  // only on outputs
      bool on_inputs = std::any_of(s.rule().inputs().begin(), s.rule().inputs().end(),
                                   [&](const Operand& o) { return o.has_factor(int(f)); });
      if ((sharded >> f & 1) && !on_inputs) text += fmt::format(" {} split", factor_name(s.rule().factors()[f].name));
    }
    return text;
  }

  // The reverse search. A factor is sharded on all inputs that have it, or kernels would see shapes that do not fit;
  // the others are Replicate or Partial(sum). Outputs follow the factors that they have; each of the others may be
  // anything.
  void search(Simulation& s, const std::vector<Tensor>& whole) {
    for (const Tensor& t : s.of().inputs)
      if (t.defined() && t.numel() < 2 && t.dims() > 0) return;  // too small to tell
    for (const Tensor& t : whole)
      if (t.numel() < 1) return;
    int n = int(s.rule().factors().size());
    for (int f = -1; f < n; ++f)
      for (int g = f < 0 ? -1 : f; g < n; ++g) {
        if (f < 0 && g >= 0) break;
        search_factors(s, whole, bit(f) | bit(g));
      }
  }

  // Whether the factors can be sharded together, for search.
  bool can_shard(const Simulation& s, uint64_t sharded) const {
    const BoundRule& rule = s.rule();
    for (int f = 0; f < int(rule.factors().size()); ++f) {
      const Factor& factor = rule.factors()[size_t(f)];
      if (!(sharded >> f & 1)) continue;
      if (factor.size < 2 || (op_.view && !factor.shardable) || !divides(factor, 2) || !divides(factor, 3))
        return false;
      for (const auto* side : {&rule.inputs(), &rule.outputs()})
        for (const Operand& o : *side)
          if (o.has_factor(f) && o.dim_of(f) < 0) return false;
    }
    for (const auto* side : {&rule.inputs(), &rule.outputs()})
      for (const Operand& o : *side)
        if (std::popcount(o.factors & sharded) > 1) return false;
    return true;
  }

  void search_factors(Simulation& s, const std::vector<Tensor>& whole, uint64_t sharded) {
    if (!can_shard(s, sharded)) return;
    std::vector<Placement> inputs(s.rule().inputs().size());
    std::vector<size_t> open;  // inputs that may be Partial
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Operand& o = s.rule().inputs()[i];
      for (int f = 0; f < int(s.rule().factors().size()); ++f)
        if ((sharded >> f & 1) && o.has_factor(f)) inputs[i] = Shard(o.dim_of(f));
      if (o.present && inputs[i].is_replicate() && s.of().inputs[i].dtype() == DType::f64) open.push_back(i);
    }
    for (uint32_t partial = 0; partial < 1u << open.size(); ++partial) {
      if (!sharded && !partial) continue;  // all replicated
      for (size_t k = 0; k < open.size(); ++k) inputs[open[k]] = partial >> k & 1 ? Partial() : Replicate();
      search_inputs(s, whole, sharded, inputs);
    }
  }

  void search_inputs(Simulation& s, const std::vector<Tensor>& whole, uint64_t sharded,
                     const std::vector<Placement>& inputs) {
    std::vector<Placement> outputs(whole.size(), Partial(Reduce::product));  // nothing found yet
    bool sound = true;
    for (int world : {2, 3}) {
      MeshShape mesh = line(world);
      std::vector<std::vector<Tensor>> parts;
      try {
        parts = s.run_parts(mesh, sharded, inputs, Contributions::random, options_.seed);
      } catch (const Error&) {
        sound = false;
      }
      for (size_t o = 0; sound && o < whole.size(); ++o)
        sound = search_output(s, whole, sharded, parts[o], o, mesh, outputs[o]);
      if (!sound) break;
    }
    std::string inputs_key = key(s, inputs, sharded), text = inputs_key + "->" + key(s, outputs, s.rule().outputs());
    if (!sound) {  // whatever other samples say
      for (auto& [known, ok] : searched_)
        if (known.starts_with(inputs_key + "->")) ok = false;
      unsound_.insert(inputs_key);
      return;
    }
    for (const Strategy& have : s.rule().strategies(std::span(reductions, 1)))
      if (same(s, have.inputs, inputs) && have.outputs == outputs) return;
    searched_.emplace(text, !unsound_.contains(inputs_key));
  }

  // Placements of absent inputs mean nothing.
  static bool same(const Simulation& s, const std::vector<Placement>& a, const std::vector<Placement>& b) {
    for (size_t i = 0; i < a.size(); ++i)
      if (s.rule().inputs()[i].present && a[i] != b[i]) return false;
    return true;
  }

  // Finds the placement for which an output is right, the same for every number of ranks.
  bool search_output(Simulation& s, const std::vector<Tensor>& whole, uint64_t sharded, std::span<const Tensor> parts,
                     size_t o, const MeshShape& mesh, Placement& found) {
    std::vector<Placement> tried{Replicate(), Partial(Reduce::max)};
    if (whole[o].dtype() != DType::boolean) tried.insert(tried.begin() + 1, Partial(Reduce::sum));
    const Operand& operand = s.rule().outputs()[o];
    for (int f = 0; f < int(s.rule().factors().size()); ++f)
      if ((sharded >> f & 1) && operand.has_factor(f)) tried = {Shard(operand.dim_of(f))};
    for (Placement p : tried) {
      if (found != Partial(Reduce::product) && found != p) continue;
      if (!mismatch(parts, whole[o], p, mesh).empty()) continue;
      found = p;
      return true;
    }
    return false;
  }

  const Op& op_;
  const CheckOptions& options_;
  Report report_;
  std::set<std::string> offered_, other_bits_;
  std::map<std::string, bool> searched_;  // strategies that are sound in some sample, and whether in all
  std::set<std::string> unsound_;         // inputs of those that are not
};

}  // namespace

Report check(const Op& card, const CheckOptions& options) { return Checker(card, options).run(); }

std::string to_string(const Report& r) {
  std::string text =
      fmt::format("{}: {} strategies, {} cases, {} failures", r.op, r.strategies, r.cases, r.failures.size());
  constexpr size_t shown = 8;
  for (size_t i = 0; i < std::min(r.failures.size(), shown); ++i) text += "\n  " + r.failures[i];
  if (r.failures.size() > shown) text += fmt::format("\n  and {} more", r.failures.size() - shown);
  for (const auto& s : r.not_offered) text += "\n  sound, not offered: " + s;
  for (const auto& s : r.other_bits) text += "\n  other bits: " + s;
  return text;
}

}  // namespace dtensor::testing
