#include "nn/parallel/activation_checkpoint.h"

#include <fmt/format.h>
#include <map>
#include <set>
#include <unordered_map>

#include "nn/parallel/json_place.h"
#include "ops/core/call.h"

namespace dtensor::nn {
namespace {

class KeepNothing : public CheckpointPolicy {
 public:
  bool keep(const CallEvent&) override { return false; }
  bool keep(const RedistributeEvent&) override { return false; }
};

// Results that cost much to make for their bytes. Source: torchtitan's selective checkpointing.
class KeepOps : public CheckpointPolicy {
 public:
  void begin_block() override { products_ = 0; }
  bool keep(const CallEvent& e) override {
    static const std::set<std::string_view> products = {"matmul", "linear", "linear_add", "linear_gelu", "einsum"};
    return e.op.name == "attention" || (products.contains(e.op.name) && ++products_ % 2 == 1);
  }
  bool keep(const RedistributeEvent& e) override {
    return std::ranges::any_of(e.plan.steps, [](const Step& s) { return s.kind == StepKind::reduce_scatter; });
  }

 private:
  int products_ = 0;
};

// Sizes are those of the first rank's part, the largest, so that all ranks choose alike.
int64_t elements_of(const DistributedTensor& x) {
  return local_box(x.mesh().shape(), x.shape(), x.layout(), 0).numel();
}

int64_t bytes_of(const DistributedTensor& x) { return elements_of(x) * itemsize(x.dtype()); }

// Multiply-adds, or elements: the product of all factors.
int64_t work_of(const CallEvent& e) {
  const DistributedTensor& out = e.outputs[0];
  double all = 1;
  for (const Context::FactorRange& f : e.factors) all *= double(f.size);
  double of_each = all / double(std::max(numel(out.shape()), int64_t(1)));
  return int64_t(double(elements_of(out)) * of_each / out.mesh().shape().product(out.layout().partial));
}

// A GPU does so many multiply-adds while it receives a byte from another.
constexpr int64_t work_per_byte = 500;

// The first pass keeps nothing and measures; from the second on, what was chosen is kept. Blocks share one of these.
class Budget {
 public:
  explicit Budget(int64_t bytes) : bytes_(bytes) {}

  // What is made in the blocks before is no concern of this one: its inputs are kept.
  void begin_block(bool first) {
    by_id_.clear();
    if (!first) return;
    if (!results_.empty() && kept_.empty()) choose();
    next_ = 0;
  }
  bool keep(const CallEvent& e) {
    if (!kept_.empty()) return next();
    Result r;
    for (const DistributedTensor* in : e.used)
      if (in) add_source(r, *in);
    for (int i : e.op.keeps.inputs)
      if (e.used[size_t(i)]) need(*e.used[size_t(i)]);
    r.needed = !e.op.keeps.outputs.empty();
    if (!e.op.view) {  // which has no bytes of its own, and costs no work
      for (const DistributedTensor& x : e.outputs) r.cost.bytes += bytes_of(x);
      r.cost.work = work_of(e);
    }
    for (const DistributedTensor& x : e.outputs) by_id_[x.id()] = results_.size();
    results_.push_back(std::move(r));
    return false;
  }
  bool keep(const RedistributeEvent& e) {
    if (!kept_.empty()) return next();
    Result r{.cost = {bytes_of(e.to), 0}};
    for (const Step& s : e.plan.steps) r.cost.work += s.bytes * work_per_byte;
    add_source(r, e.from);
    by_id_[e.to.id()] = results_.size();
    results_.push_back(std::move(r));
    return false;
  }

 private:
  struct Result {
    Keepable cost = {0, 0};
    std::vector<size_t> from = {};  // the results that it is made of
    bool needed = false;            // by a gradient, or to make what is needed
  };

  bool next() { return next_ < kept_.size() && kept_[next_++]; }
  void need(const DistributedTensor& x) {
    if (auto it = by_id_.find(x.id()); it != by_id_.end()) results_[it->second].needed = true;
  }
  void add_source(Result& r, const DistributedTensor& x) {
    if (auto it = by_id_.find(x.id()); it != by_id_.end()) r.from.push_back(it->second);
  }
  void choose() {
    for (size_t i = results_.size(); i-- > 0;)
      for (size_t from : results_[i].from)
        if (results_[i].needed) results_[from].needed = true;
    std::vector<Keepable> list;
    for (const Result& r : results_) list.push_back({r.cost.bytes, r.needed ? r.cost.work : 0});
    kept_ = choose_kept(list, bytes_);
  }

  int64_t bytes_;
  std::vector<Result> results_;
  std::unordered_map<uint64_t, size_t> by_id_;  // of what this block made
  std::vector<bool> kept_;
  size_t next_ = 0;
};

class KeepWithin : public CheckpointPolicy {
 public:
  KeepWithin(std::shared_ptr<Budget> budget, bool first) : budget_(std::move(budget)), first_(first) {}
  void begin_block() override { budget_->begin_block(first_); }
  bool keep(const CallEvent& e) override { return budget_->keep(e); }
  bool keep(const RedistributeEvent& e) override { return budget_->keep(e); }

 private:
  std::shared_ptr<Budget> budget_;
  bool first_;  // of the blocks
};

// Equal results: so many of them can be kept.
struct Class {
  Keepable each;
  std::vector<size_t> members;  // in the list
  int64_t kept = 0;
};

// Branch and bound over the classes, the most work per byte first.
class Choice {
 public:
  Choice(std::vector<Class>& classes, int64_t budget) : classes_(classes) {
    take(0, budget, 0);
    for (size_t c = 0; c < classes_.size(); ++c) classes_[c].kept = best_[c];
  }

 private:
  static constexpr int most_tries = 200'000;

  // An upper bound of what the classes from c on can save.
  double bound(size_t c, int64_t bytes) const {
    double work = 0;
    for (; c < classes_.size(); ++c) {
      const auto& [each, members, kept] = classes_[c];
      double all = double(each.bytes) * double(members.size());
      if (all > double(bytes)) return work + double(each.work) * double(bytes) / double(each.bytes);
      bytes -= int64_t(all), work += double(each.work) * double(members.size());
    }
    return work;
  }

  void take(size_t c, int64_t bytes, int64_t work) {
    if (best_.empty() || work > best_work_) {
      best_work_ = work;
      best_.assign(classes_.size(), 0);
      for (size_t i = 0; i < c; ++i) best_[i] = classes_[i].kept;
    }
    if (c == classes_.size() || ++tries_ > most_tries || double(work) + bound(c, bytes) <= double(best_work_)) return;
    const Keepable& each = classes_[c].each;
    auto most = int64_t(classes_[c].members.size());
    if (each.bytes > 0) most = std::min(most, bytes / each.bytes);
    for (int64_t n = most; n >= 0; --n) {
      classes_[c].kept = n;
      take(c + 1, bytes - n * each.bytes, work + n * each.work);
    }
    classes_[c].kept = 0;
  }

  std::vector<Class>& classes_;
  std::vector<int64_t> best_;
  int64_t best_work_ = 0;
  int tries_ = 0;
};

int64_t read_bytes(const JsonPlace& p) {
  static const std::map<std::string, double> units = {{"B", 1},        {"KiB", 0x1p10}, {"MiB", 0x1p20},
                                                      {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"kB", 1e3},
                                                      {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12}};
  std::string text = p.text();
  char* end = nullptr;
  double number = std::strtod(text.c_str(), &end);
  while (*end == ' ') ++end;
  auto unit = units.find(end);
  if (end == text.c_str() || unit == units.end() || !(number >= 0) || number * unit->second >= 0x1p62)
    p.error(fmt::format("\"{}\" is no amount of memory: a number and a unit, as in \"12GiB\" or \"800 MB\"", text));
  return int64_t(number * unit->second);
}

}  // namespace

void checkpoint(Module& block, std::shared_ptr<CheckpointPolicy> policy) {
  auto outer = std::make_shared<KeepPolicy*>(nullptr);
  block.add_before_hook([=](Module& m, std::vector<DistributedTensor*>&) {
    Rank& rank = m.mesh().rank_state();
    if (!rank.recorder || rank.no_grad) return;
    policy->begin_block();
    *outer = std::exchange(rank.keep_policy, policy.get());
  });
  block.add_after_hook([=](Module& m, std::vector<DistributedTensor*>& outputs) {
    Rank& rank = m.mesh().rank_state();
    if (!rank.recorder || rank.no_grad) return;
    rank.keep_policy = *outer;
    for (DistributedTensor* x : outputs)
      if (x->defined()) rank.recorder->on_keep(*x);
  });
}

std::vector<Module*> blocks_of(Module& model) {
  std::vector<Module*> blocks;
  std::string list;  // that we are in: its path, with a dot
  for (Module* m : model.modules()) {
    bool inside = !list.empty() && m->path().starts_with(list);
    if (inside && m->path().find('.', list.size()) == std::string::npos) blocks.push_back(m);
    if (!inside && m->kind() == "ModuleList") list = m->path() + ".";
  }
  return blocks;
}

std::vector<bool> choose_kept(const std::vector<Keepable>& list, int64_t budget) {
  std::map<std::pair<int64_t, int64_t>, std::vector<size_t>> equal;
  for (size_t i = 0; i < list.size(); ++i)
    if (list[i].work > 0) equal[{list[i].bytes, list[i].work}].push_back(i);
  std::vector<Class> classes;
  for (auto& [each, members] : equal) classes.push_back({{each.first, each.second}, std::move(members)});
  std::ranges::stable_sort(classes, [](const Class& a, const Class& b) {
    return double(a.each.work) * double(b.each.bytes) > double(b.each.work) * double(a.each.bytes);
  });
  Choice(classes, budget);
  std::vector<bool> kept(list.size());
  for (const Class& c : classes)
    for (int64_t i = 0; i < c.kept; ++i) kept[c.members[c.members.size() - 1 - size_t(i)]] = true;
  return kept;
}

ActivationCheckpointPlan ActivationCheckpointPlan::from_json(const JsonPlace& p) {
  p.fields({"mode", "option", "budget"});
  if (p.has("budget")) {
    for (const char* key : {"mode", "option"})
      if (p.has(key)) p.at(key).error("a budget says what is kept: remove one of them");
    return {.kind = Kind::budget, .budget = read_bytes(p.at("budget"))};
  }
  if (!p.has("mode")) p.error("\"mode\" or \"budget\" is missing");
  std::string mode = p.at("mode").text();
  if (mode != "none" && mode != "full" && mode != "selective")
    p.at("mode").error(fmt::format("\"{}\" is none of \"none\", \"full\" and \"selective\"", mode));
  if (mode != "selective") {
    if (p.has("option")) p.at("option").error("an option is for the mode \"selective\" alone: remove it");
    return {.kind = mode == "full" ? Kind::full : Kind::none};
  }
  if (!p.has("option")) p.error("the mode \"selective\" needs an \"option\": \"op\", or a number of blocks");
  if (p.at("option").value == "op") return {.kind = Kind::ops};
  return {.kind = Kind::full, .every = p.at("option").integer(1, 1 << 20)};
}

nlohmann::ordered_json ActivationCheckpointPlan::to_json() const {
  switch (kind) {
    case Kind::none:
      return {{"mode", "none"}};
    case Kind::ops:
      return {{"mode", "selective"}, {"option", "op"}};
    case Kind::budget:
      return {{"budget", fmt::format("{}B", budget)}};
    case Kind::full:
      break;
  }
  if (every == 1) return {{"mode", "full"}};
  return {{"mode", "selective"}, {"option", every}};
}

void ActivationCheckpointPlan::apply(Module& model) const {
  if (kind == Kind::none) return;
  std::vector<Module*> blocks = blocks_of(model);
  check(!blocks.empty(),
        "[plan] activation_checkpoint: the model has no blocks, the elements of a ModuleList: call nn::checkpoint() "
        "for its modules");
  auto shared = std::make_shared<Budget>(budget);
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (kind == Kind::ops) checkpoint(*blocks[i], std::make_shared<KeepOps>());
    if (kind == Kind::budget) checkpoint(*blocks[i], std::make_shared<KeepWithin>(shared, i == 0));
    if (kind == Kind::full && (i + 1) % size_t(every) == 0) checkpoint(*blocks[i], std::make_shared<KeepNothing>());
  }
}

}  // namespace dtensor::nn
