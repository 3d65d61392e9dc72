#include "nn/tape.h"

#include "dtensor/redistribute.h"
#include "ops/cast.h"
#include "ops/pointwise.h"

namespace dtensor::nn {

Tape::Tape(Rank& rank) : rank_(rank) { rank_.add(*this); }
Tape::~Tape() { rank_.remove(*this); }

void Tape::watch(const DistributedTensor& leaf, DType gradient) {
  check(
      leaves_.contains(leaf.id()) || !roots_.contains(leaf.id()),
      "[watch] {} was computed from a watched value, whose gradient would end here: watch values before they are used",
      to_string(leaf));
  leaves_[leaf.id()] = gradient;
  roots_.emplace(leaf.id(), leaf.id());
}

void Tape::watch_together(const std::vector<DistributedTensor>& leaves, const std::vector<std::string>& names,
                          std::optional<DType> gradient) {
  check(leaves.size() == names.size(), "[watch_together] {} leaves and {} names", leaves.size(), names.size());
  Group group{leaves, {}};
  for (size_t i = 0; i < leaves.size(); ++i) {
    watch(leaves[i], gradient.value_or(leaves[i].dtype()));
    group_of_.emplace(leaves[i].id(), groups_.size());
    group.reasons.push_back("gradient of " + names[i]);
  }
  groups_.push_back(std::move(group));
}

uint64_t Tape::root_of(const DistributedTensor* x) const {
  if (!x) return 0;
  auto it = roots_.find(x->id());
  return it == roots_.end() ? 0 : it->second;
}

DistributedTensor Tape::gradient(const DistributedTensor& leaf) const {
  auto it = gradients_.find(leaf.id());
  return it == gradients_.end() ? DistributedTensor() : it->second;
}

void Tape::on_redistribute(const RedistributeEvent& e) {
  if (rank_.no_grad) return;
  if (e.remake) {
    if (e.batch != last_batch_) last_recipe_ = std::make_shared<Recipe>(), last_batch_ = e.batch;
    auto it = recipes_.find(e.from.id());  // of something remade itself: from the first source
    last_recipe_->sources.push_back(it == recipes_.end() ? e.from : it->second.first->sources[it->second.second]);
    last_recipe_->layouts.push_back(e.to.layout());
    recipes_[e.to.id()] = {last_recipe_, last_recipe_->sources.size() - 1};
  }
  if (uint64_t root = root_of(&e.from)) roots_[e.to.id()] = root;
}

Tape::Kept Tape::keep(const DistributedTensor& x) const {
  auto it = recipes_.find(x.id());
  if (it == recipes_.end()) return {x, x.version(), nullptr};
  const DistributedTensor& source = it->second.first->sources[it->second.second];
  return {source, source.version(), it->second.first, it->second.second};
}

DistributedTensor Tape::Kept::get(std::string_view op) const {
  if (value.version() != version)
    fail("[backward] {}, which the gradient of {} needs, was written in place after it was used", to_string(value), op);
  if (!recipe) return value;
  if (recipe->results.empty()) {
    LabelScope reason(value.mesh().rank_state(), Label::Kind::reason, "remade for the gradient");
    recipe->results = redistribute(recipe->sources, recipe->layouts);
  }
  return recipe->results[index];
}

void Tape::on_call(const CallEvent& e) {
  if (rank_.no_grad || !is_floating(e.outputs[0].dtype())) return;
  bool tracked = false;
  for (const DistributedTensor* in : e.inputs) tracked |= root_of(in) != 0;
  if (!tracked) return;
  Node node{e.lasting,
            e.attributes,
            {},
            {},
            {},
            {},
            std::string(rank_.label(Label::Kind::module)),
            std::string(rank_.label(Label::Kind::plan_line))};
  for (const DistributedTensor* in : e.inputs) node.inputs.push_back({root_of(in), in ? &in->spec() : nullptr});
  for (const DistributedTensor& out : e.outputs) {
    roots_[out.id()] = out.id();
    node.outputs.push_back({out.id(), &out.spec()});
  }
  if (e.op.gradient) {  // without one, backward() says so if it gets here
    for (int i : e.op.keeps.inputs) node.kept_inputs.push_back(e.used[size_t(i)] ? keep(*e.used[size_t(i)]) : Kept{});
    for (int o : e.op.keeps.outputs) node.kept_outputs.push_back(keep(e.outputs[size_t(o)]));
  }
  count_uses(node, 1);
  nodes_.push_back(std::move(node));
}

void Tape::count_uses(const Node& node, int change) {
  for (const Value& in : node.inputs) {
    auto it = group_of_.find(in.root);
    if (it == group_of_.end()) continue;
    Group& group = groups_[it->second];
    group.uses += change;
    if (change < 0 && group.uses == 0) begin_reduce(group);
  }
}

// One group at a time is on its way.
void Tape::begin_reduce(const Group& group) {
  finish_reduce();
  std::vector<DistributedTensor> list;
  std::vector<Layout> layouts;
  std::vector<std::string> reasons;
  for (size_t i = 0; i < group.leaves.size(); ++i) {
    auto it = gradients_.find(group.leaves[i].id());
    if (it == gradients_.end()) continue;
    reduced_leaves_.push_back(it->first);
    list.push_back(it->second);
    layouts.push_back(group.leaves[i].layout());
    reasons.push_back(group.reasons[i]);
  }
  reducing_ = Redistribution::begin(list, layouts, {.reasons = reasons});
}

void Tape::finish_reduce() {
  if (!reducing_.defined()) return;
  std::vector<DistributedTensor> list = reducing_.finish();
  for (size_t i = 0; i < list.size(); ++i) gradients_[reduced_leaves_[i]] = list[i];
  reduced_leaves_.clear();
}

// What a card's gradient function sees of a node.
class Tape::NodeGradient : public Gradient {
 public:
  NodeGradient(Tape& tape, const Node& node, std::vector<DistributedTensor> of_outputs)
      : tape_(tape), node_(node), of_outputs_(std::move(of_outputs)), results(node.inputs.size()) {
    inputs_.resize(node.kept_inputs.size());
    outputs_.resize(node.kept_outputs.size());
    for (const Value& v : node.inputs) wanted_.push_back(v.spec ? target_of(*v.spec) : Layout());
  }

  const Attributes& attributes() const override { return node_.attributes; }
  const DistributedTensor& input(int i) const override {
    return find(node_.op->keeps.inputs, node_.kept_inputs, inputs_, i, "input");
  }
  const DistributedTensor& output(int i) const override {
    return find(node_.op->keeps.outputs, node_.kept_outputs, outputs_, i, "output");
  }
  const TensorSpec& input_spec(int i) const override { return *node_.inputs[size_t(i)].spec; }
  const DistributedTensor& of_output(int i) const override { return of_outputs_[size_t(i)]; }
  DType dtype(int i) const override {
    auto leaf = tape_.leaves_.find(node_.inputs[size_t(i)].root);
    return leaf == tape_.leaves_.end() ? input_spec(i).dtype : leaf->second;
  }
  DistributedTensor* sum(int i) const override {
    uint64_t root = node_.inputs[size_t(i)].root;
    auto& sums = tape_.leaves_.contains(root) ? tape_.gradients_ : tape_.pending_;
    auto it = sums.find(root);
    return it == sums.end() ? nullptr : &it->second;
  }
  bool needs(int i) const override { return node_.inputs[size_t(i)].root != 0; }
  const Layout* wanted(int i) const override { return &wanted_[size_t(i)]; }
  void set(int i, DistributedTensor g) override {
    if (needs(i)) results[size_t(i)] = std::move(g);
  }

  // Where the sum of a value's gradients goes: its own placement, Replicate where it is Partial.
  static Layout target_of(const TensorSpec& spec) {
    Layout l = spec.layout;
    l.partial = 0, l.reduce = Reduce::sum;
    return l;
  }

 private:
  // Taken, or remade, when it is asked for the first time.
  const DistributedTensor& find(const std::vector<int>& names, const std::vector<Kept>& kept,
                                std::vector<DistributedTensor>& values, int i, const char* what) const {
    for (size_t k = 0; k < names.size(); ++k) {
      if (names[k] != i) continue;
      if (!values[k].defined() && kept[k].value.defined()) values[k] = kept[k].get(node_.op->name);
      return values[k];
    }
    fail("[{}] the gradient asks for {} {}, which the card does not keep", node_.op->name, what, i);
  }

  Tape& tape_;
  const Node& node_;
  std::vector<DistributedTensor> of_outputs_;
  mutable std::vector<DistributedTensor> inputs_, outputs_;
  std::vector<Layout> wanted_;

 public:
  std::vector<DistributedTensor> results;
};

void Tape::contribute(uint64_t root, DistributedTensor gradient) {
  auto leaf = leaves_.find(root);
  if (leaf != leaves_.end()) gradient = ops::cast(gradient, leaf->second);
  DistributedTensor& sum = leaf == leaves_.end() ? pending_[root] : gradients_[root];
  sum = sum.defined() ? ops::add(sum, gradient) : std::move(gradient);
}

void Tape::run(Node& node) {
  LabelScope module(rank_, Label::Kind::module, node.module), plan(rank_, Label::Kind::plan_line, node.plan_line);
  std::vector<DistributedTensor> of_outputs;
  bool any = false;
  for (const Value& out : node.outputs) {
    auto it = pending_.find(out.root);
    of_outputs.push_back(it == pending_.end() ? DistributedTensor() : std::move(it->second));
    if (it == pending_.end()) continue;
    pending_.erase(it);
    any = true;
    LabelScope reason(rank_, Label::Kind::reason, fmt::format("gradient of {}", node.op->name));
    of_outputs.back() = of_outputs.back().redistribute(NodeGradient::target_of(*out.spec));
  }
  if (!any) return;
  check(node.op->gradient, "[backward] {} has no gradient", node.op->name);
  NodeGradient gradient(*this, node, std::move(of_outputs));
  {
    LabelScope op(rank_, Label::Kind::op, fmt::format("gradient of {}", node.op->name));
    node.op->gradient(gradient);
  }
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    DistributedTensor& g = gradient.results[i];
    if (!g.defined()) continue;
    if (g.shape() != node.inputs[i].spec->shape)
      fail("[backward] the gradient of {} gives {} for an input of shape {}", node.op->name, to_string(g),
           to_string(node.inputs[i].spec->shape));
    contribute(node.inputs[i].root, std::move(g));
  }
}

void Tape::backward(const DistributedTensor& loss) {
  check(numel(loss.shape()) == 1, "[backward] the loss {} has {} elements; it needs one", to_string(loss),
        numel(loss.shape()));
  uint64_t root = root_of(&loss);
  check(root, "[backward] no watched value leads to the loss");
  NoGrad scope(rank_);
  PhaseScope phase(rank_, Phase::backward);
  DistributedTensor one =
      DistributedTensor::empty(loss.mesh(), loss.mesh().intern({loss.dtype(), loss.shape(), {}}),
                               Tensor(rank_.allocator(), loss.dtype(), loss.shape(), loss.local().device()));
  fill(one.local_for_writing(), 1);
  struct End {  // of the record, also after an error
    Tape& tape;
    ~End() { tape.forget(); }
  } end{*this};
  contribute(root, one);
  recipes_.clear();  // from here on only nodes hold them
  last_recipe_.reset();
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    run(node);
    node.kept_inputs.clear(), node.kept_outputs.clear();
    count_uses(node, -1);
  }
  finish_reduce();
}

void Tape::forget() {
  nodes_.clear();
  for (Group& group : groups_) group.uses = 0;
  reducing_ = {}, reduced_leaves_.clear();
  pending_.clear();
  recipes_.clear();
  roots_.clear();
  for (const auto& [leaf, type] : leaves_) roots_.emplace(leaf, leaf);
}

}  // namespace dtensor::nn
