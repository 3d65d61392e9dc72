#include "nn/record.h"

#include <fmt/format.h>

#include "ops/pointwise/binary.h"
#include "ops/pointwise/cast.h"

namespace dtensor::nn {

// How to make values again that were not kept, and the values while somebody needs them.
class Record::Recipe {
 public:
  virtual ~Recipe() = default;
  const DistributedTensor& result(size_t i, std::string_view op) {
    if (results_.empty()) results_ = make(op);
    return results_[i];
  }

 private:
  virtual std::vector<DistributedTensor> make(std::string_view op) = 0;
  std::vector<DistributedTensor> results_;
};

// By the redistribution that made them, all of one call in one.
class Record::Redistributed : public Recipe {
 public:
  // Labels are those of where it was made first.
  Redistributed(Record& record, const std::string* module, const std::string* plan_line)
      : record_(record), module_(module), plan_line_(plan_line) {}
  // The index of the result. Of something that was redistributed itself, from its own source.
  size_t add(const Kept& source, const Layout& layout) {
    auto* before = dynamic_cast<Redistributed*>(source.recipe.get());
    sources_.push_back(before ? before->sources_[source.index] : source);
    layouts_.push_back(layout);
    return sources_.size() - 1;
  }
  // Starts it ahead of time. False: nothing to start, as it was started before, or its sources are to be made first.
  bool begin() {
    if (started_) return false;
    for (const Kept& k : sources_)
      if (k.recipe) return false;
    start("");
    return true;
  }

 private:
  void start(std::string_view op) {
    started_ = true;
    LabelScope module(record_.rank_, Label::Kind::module, *module_),
        plan(record_.rank_, Label::Kind::plan_line, *plan_line_);
    std::vector<DistributedTensor> from;
    for (const Kept& k : sources_) from.push_back(k.get(op));
    redistribution_ = Redistribution::begin(from, layouts_, {.reason = "remade for the gradient"});
  }
  std::vector<DistributedTensor> make(std::string_view op) override {
    if (!started_) start(op);
    std::vector<DistributedTensor> made = redistribution_.finish();
    record_.begin_next_remake();
    return made;
  }
  Record& record_;
  const std::string *module_, *plan_line_;
  std::vector<Kept> sources_;
  std::vector<Layout> layouts_;
  bool started_ = false;
  Redistribution redistribution_;
};

// By the call that made them.
class Record::Called : public Recipe {
 public:
  Called(const CallEvent& e, Record& record) : op_(e.lasting), attributes_(e.attributes) {
    if (e.options.wanted) wanted_ = *e.options.wanted;
    for (const DistributedTensor* in : e.used) inputs_.push_back(in ? record.keep(*in) : Kept{});
  }

 private:
  std::vector<DistributedTensor> make(std::string_view op) override {
    std::vector<DistributedTensor> from;
    std::vector<const DistributedTensor*> operands;
    for (const Kept& k : inputs_) from.push_back(k.defined() ? k.get(op) : DistributedTensor());
    for (const DistributedTensor& x : from) operands.push_back(x.defined() ? &x : nullptr);
    inputs_.clear();  // what this was made from may go now
    return call_all(*op_, operands, attributes_, {.wanted = wanted_ ? &*wanted_ : nullptr});
  }
  std::shared_ptr<const Op> op_;
  Attributes attributes_;
  std::optional<Layout> wanted_;
  std::vector<Kept> inputs_;
};

Record::Record(GradientStore& store, const RecordOptions& options)
    : store_(store), rank_(store.rank()), options_(options) {
  check(options.micro_batches >= 1, "[Record] {} micro-batches; at least one is needed", options.micro_batches);
  store_.records_.push_back(this);
}
Record::~Record() { std::erase(store_.records_, this); }

Record::Scope::Scope(Record& record)
    : rank_(record.rank_),
      outer_(rank_.recorder),
      outer_policy_(rank_.keep_policy),
      outer_micro_batches_(rank_.micro_batches) {
  record.start();
  rank_.recorder = &record, rank_.micro_batches = record.options_.micro_batches;
}
Record::Scope::~Scope() {
  rank_.recorder = outer_, rank_.keep_policy = outer_policy_, rank_.micro_batches = outer_micro_batches_;
}

Record::Tracked Record::find(uint64_t id) const {
  if (auto it = tracked_.find(id); it != tracked_.end()) return it->second;
  GradientStore::Leaf* leaf = store_.find(id);
  return leaf ? Tracked{id, leaf->value.version(), false, leaf} : Tracked{};
}

// An operand. What was written in place since it was recorded is another value, which has no gradient.
Record::Tracked Record::track(const DistributedTensor* x) {
  if (!x) return {};
  auto it = tracked_.find(x->id());
  if (it == tracked_.end()) {
    Tracked leaf = find(x->id());
    if (!leaf.leaf) return {};
    it = tracked_.emplace(x->id(), leaf).first;
  }
  check_version(*x, it->second);
  return it->second;
}

void Record::check_version(const DistributedTensor& x, const Tracked& seen) const {
  if (x.version() != seen.version)
    fail(
        "[Record] {} was written in place after it was recorded, so that it has no gradient any more: write to a new "
        "value, or before it is used, or start a new record",
        to_string(x));
}

void Record::watch(const DistributedTensor& input) {
  check(input.defined(), "[watch] the value is undefined");
  if (!is_floating(input.dtype())) fail("[watch] {} has no gradient: only floating types have one", to_string(input));
  start();
  if (inputs_.contains(input.id())) return;
  if (tracks(input))
    fail(
        "[watch] {} is watched by the store, or was computed from a watched value, whose gradient would end here: "
        "watch values before they are used",
        to_string(input));
  inputs_[input.id()] = {};
  tracked_[input.id()] = {input.id(), input.version(), true, nullptr};
}

DistributedTensor Record::gradient(const DistributedTensor& input) const {
  check(input.defined(), "[gradient] the value is undefined");
  auto it = inputs_.find(input.id());
  return it == inputs_.end() ? DistributedTensor() : it->second;
}

void Record::on_redistribute(const RedistributeEvent& e) {
  if (rank_.no_grad) return;
  Tracked from = track(&e.from);
  if (from.root) tracked_[e.to.id()] = {from.root, e.to.version(), from.from_input, from.leaf};
  if (!e.remake && (!rank_.keep_policy || rank_.keep_policy->keep(e))) return;
  if (e.batch != last_batch_) {
    last_recipe_ = std::make_shared<Redistributed>(*this, label(Label::Kind::module, last_module_),
                                                   label(Label::Kind::plan_line, last_plan_line_));
    last_batch_ = e.batch;
  }
  size_t index = last_recipe_->add(keep(e.from), e.to.layout());
  recipes_[e.to.id()] = {last_recipe_, index};
}

// A value that was written in place since is no longer what its recipe makes.
Record::Kept Record::keep(const DistributedTensor& x) {
  auto it = recipes_.find(x.id());
  if (it == recipes_.end() || x.version() != 0) return {x, x.version()};
  if (auto r = std::dynamic_pointer_cast<Redistributed>(it->second.first);
      r && (to_remake_.empty() || to_remake_.back().lock() != r))
    to_remake_.push_back(r);
  return {{}, 0, it->second.first, it->second.second};
}

// In turn, all ranks alike: from where the backward pass has come back towards the first node.
void Record::begin_next_remake() {
  while (!to_remake_.empty()) {
    std::shared_ptr<Redistributed> next = to_remake_.back().lock();
    to_remake_.pop_back();
    if (next && next->begin()) return;
  }
}

DistributedTensor Record::Kept::get(std::string_view op) const {
  if (recipe) return recipe->result(index, op);
  if (value.version() != version)
    fail("[backward] {}, which the gradient of {} needs, was written in place after it was used", to_string(value), op);
  return value;
}

const std::string* Record::label(Label::Kind kind, const std::string*& last) {
  std::string_view now = rank_.label(kind);
  if (!last || *last != now) last = &labels_.emplace_back(now);
  return last;
}

void Record::on_call(const CallEvent& e) {
  if (rank_.no_grad || !is_floating(e.outputs[0].dtype())) return;
  std::vector<Value> values;
  values.reserve(e.inputs.size() + e.outputs.size());
  bool tracked = false, from_input = false;
  for (const DistributedTensor* in : e.inputs) {
    Tracked t = track(in);
    tracked |= t.root != 0, from_input |= t.from_input;
    values.push_back({t, in ? &in->spec() : nullptr});
  }
  if (!tracked) return;
  for (const Value& in : values) {
    if (!in.tracked.leaf || in.tracked.leaf->group < 0) continue;
    uses_.resize(std::max(uses_.size(), size_t(in.tracked.leaf->group) + 1));
    ++uses_[size_t(in.tracked.leaf->group)];
  }
  for (const DistributedTensor& out : e.outputs) {
    Tracked t{out.id(), out.version(), from_input, nullptr};
    tracked_[out.id()] = t;
    values.push_back({t, &out.spec()});
  }
  if (rank_.keep_policy && e.op.writes.empty() && !rank_.keep_policy->keep(e)) {
    auto recipe = std::make_shared<Called>(e, *this);
    for (size_t o = 0; o < e.outputs.size(); ++o) recipes_[e.outputs[o].id()] = {recipe, o};
  }
  Node& node =
      nodes_.emplace_back(Node{e.lasting, e.attributes, label(Label::Kind::module, last_module_),
                               label(Label::Kind::plan_line, last_plan_line_), e.inputs.size(), std::move(values)});
  if (!e.op.gradient) return;  // backward() says so if it gets here
  node.kept.reserve(e.op.keeps.inputs.size() + e.op.keeps.outputs.size());
  for (int i : e.op.keeps.inputs) node.kept.push_back(e.used[size_t(i)] ? keep(*e.used[size_t(i)]) : Kept{});
  for (int o : e.op.keeps.outputs) node.kept.push_back(keep(e.outputs[size_t(o)]));
}

// What a card's gradient function sees of a node.
class Record::NodeGradient : public Gradient {
 public:
  NodeGradient(Record& record, GradientStore::Pass& pass, Of of, const Node& node,
               std::vector<DistributedTensor> of_outputs)
      : record_(record),
        pass_(pass),
        of_(of),
        node_(node),
        of_outputs_(std::move(of_outputs)),
        results(node.input_count) {
    kept_.resize(node.kept.size());
    for (const Value& v : node.inputs()) wanted_.push_back(v.spec ? target_of(*v.spec) : Layout());
  }

  const Attributes& attributes() const override { return node_.attributes; }
  const DistributedTensor& input(int i) const override { return find(node_.op->keeps.inputs, 0, i, "input"); }
  const DistributedTensor& output(int i) const override {
    return find(node_.op->keeps.outputs, node_.op->keeps.inputs.size(), i, "output");
  }
  const TensorSpec& input_spec(int i) const override { return *node_.inputs()[size_t(i)].spec; }
  const DistributedTensor& of_output(int i) const override { return of_outputs_[size_t(i)]; }
  DType dtype(int i) const override {
    const GradientStore::Leaf* leaf = node_.inputs()[size_t(i)].tracked.leaf;
    return leaf ? leaf->dtype : input_spec(i).dtype;
  }
  DistributedTensor* sum(int i) const override {
    DistributedTensor& sum = record_.sum(node_.inputs()[size_t(i)].tracked, pass_);
    return sum.defined() ? &sum : nullptr;
  }
  bool needs(int i) const override { return wants(node_.inputs()[size_t(i)].tracked, of_); }
  const Layout* wanted(int i) const override { return &wanted_[size_t(i)]; }
  void set(int i, DistributedTensor g) override {
    if (needs(i)) results[size_t(i)] = std::move(g);
  }

  static bool wants(const Tracked& t, Of of) {
    return t.root != 0 && (of == Of::all || t.from_input == (of == Of::inputs));
  }
  // Where the sum of a value's gradients goes: its own placement, Replicate where it is Partial.
  static Layout target_of(const TensorSpec& spec) {
    Layout l = spec.layout;
    l.partial = 0, l.reduce = Reduce::sum;
    return l;
  }

 private:
  // Taken, or remade, when it is asked for the first time.
  const DistributedTensor& find(const std::vector<int>& names, size_t first, int i, const char* what) const {
    for (size_t k = 0; k < names.size(); ++k) {
      if (names[k] != i) continue;
      DistributedTensor& value = kept_[first + k];
      if (!value.defined() && node_.kept[first + k].defined()) {
        LabelScope reason(record_.rank_, Label::Kind::reason, "remade for the gradient");
        value = node_.kept[first + k].get(node_.op->name);
      }
      return value;
    }
    fail("[{}] the gradient asks for {} {}, which the card does not keep", node_.op->name, what, i);
  }

  Record& record_;
  GradientStore::Pass& pass_;
  Of of_;
  const Node& node_;
  std::vector<DistributedTensor> of_outputs_;
  mutable std::vector<DistributedTensor> kept_;
  std::vector<Layout> wanted_;

 public:
  std::vector<DistributedTensor> results;
};

// What has come for a value so far in this pass.
DistributedTensor& Record::sum(const Tracked& of, GradientStore::Pass& pass) {
  if (of.leaf) return pass.sum(*of.leaf);
  auto input = inputs_.find(of.root);
  return input != inputs_.end() ? input->second : pending_[of.root];
}

void Record::contribute(const Tracked& to, DistributedTensor gradient, GradientStore::Pass& pass) {
  if (to.leaf) gradient = ops::cast(gradient, to.leaf->dtype);
  DistributedTensor& s = sum(to, pass);
  s = s.defined() ? ops::add(s, gradient) : std::move(gradient);
}

// Whether the node is needed again, by the pass of the weights.
bool Record::run(Node& node, GradientStore::Pass& pass, Of of) {
  if (of == Of::inputs && !node.outputs()[0].tracked.from_input) return true;
  LabelScope module(rank_, Label::Kind::module, *node.module), plan(rank_, Label::Kind::plan_line, *node.plan_line);
  std::vector<DistributedTensor> of_outputs = std::move(node.of_outputs);
  if (of_outputs.empty()) {
    bool any = false;
    for (const Value& out : node.outputs()) {
      DistributedTensor& g = of_outputs.emplace_back();
      if (auto it = pending_.find(out.tracked.root); it != pending_.end())
        g = std::move(it->second), pending_.erase(it);
      if (!g.defined()) continue;
      any = true;
      LabelScope reason(rank_, Label::Kind::reason, fmt::format("gradient of {}", node.op->name));
      g = g.redistribute(NodeGradient::target_of(*out.spec));
    }
    if (!any) return false;
  }
  check(node.op->gradient, "[backward] {} has no gradient", node.op->name);
  auto wanted = [&](Of pass_of) {
    return std::any_of(node.inputs().begin(), node.inputs().end(),
                       [&](const Value& in) { return NodeGradient::wants(in.tracked, pass_of); });
  };
  NodeGradient gradient(*this, pass, of, node, of_outputs);
  {
    LabelScope op(rank_, Label::Kind::op, fmt::format("gradient of {}", node.op->name));
    node.op->gradient(gradient);
  }
  for (size_t i = 0; i < node.input_count; ++i) {
    DistributedTensor& g = gradient.results[i];
    if (!g.defined()) continue;
    if (g.shape() != node.inputs()[i].spec->shape)
      fail("[backward] the gradient of {} gives {} for an input of shape {}", node.op->name, to_string(g),
           to_string(node.inputs()[i].spec->shape));
    contribute(node.inputs()[i].tracked, std::move(g), pass);
  }
  if (of != Of::inputs || !wanted(Of::weights)) return false;
  node.of_outputs = std::move(of_outputs);
  return true;
}

// From the last node to the first; those that the weights' pass needs stay.
void Record::run_all(GradientStore::Pass& pass, Of of) {
  std::vector<Node> later;
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    if (run(node, pass, of)) {
      later.push_back(std::move(node));
      continue;
    }
    node.kept.clear();
    for (const Value& in : node.inputs()) {
      if (!in.tracked.leaf || in.tracked.leaf->group < 0) continue;
      if (of == Of::inputs)
        --uses_[size_t(in.tracked.leaf->group)];
      else
        pass.passed(*in.tracked.leaf);
    }
  }
  nodes_.assign(std::make_move_iterator(later.rbegin()), std::make_move_iterator(later.rend()));
}

// f(), after which the record is empty, but for what a pass of the weights will need; after an error it is empty.
template <class F>
void Record::guarded(F f) {
  NoGrad scope(rank_);
  PhaseScope phase(rank_, Phase::backward);
  struct MicroBatches {
    Rank& rank;
    int outer;
    ~MicroBatches() { rank.micro_batches = outer; }
  } outer{rank_, std::exchange(rank_.micro_batches, options_.micro_batches)};
  try {
    recipes_.clear();  // from here on only nodes hold them
    last_recipe_.reset();
    f();
  } catch (...) {
    forget();
    inputs_.clear();
    throw;
  }
  if (nodes_.empty() && of_leaves_.empty()) forget();
}

void Record::backward(const std::vector<DistributedTensor>& outputs, const std::vector<DistributedTensor>& gradients,
                      const BackwardOptions& options) {
  check(outputs.size() == gradients.size(), "[backward] {} outputs and {} gradients", outputs.size(), gradients.size());
  check(options.of != Of::weights,
        "[backward] the gradients of the weights alone are backward_weights()'s, after a pass "
        "of the inputs");
  std::vector<Tracked> to;
  for (size_t i = 0; i < outputs.size(); ++i) {
    check(outputs[i].defined(), "[backward] output {} is undefined", i);
    to.push_back(track(&outputs[i]));
    if (!to[i].root)
      fail("[backward] no watched value leads to {}", outputs.size() == 1 ? "the loss" : fmt::format("output {}", i));
    if (gradients[i].defined() &&
        (gradients[i].shape() != outputs[i].shape() || gradients[i].dtype() != outputs[i].dtype()))
      fail("[backward] the gradient of output {} is {}, not of the output's shape and type, {}", i,
           to_string(gradients[i]), to_string(outputs[i]));
  }
  guarded([&] {
    GradientStore::Pass pass(store_, options.of == Of::inputs ? std::vector<int>() : std::move(uses_), options.reduce);
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!gradients[i].defined()) continue;
      if (to[i].leaf && options.of == Of::inputs)
        of_leaves_.emplace_back(to[i], gradients[i]);
      else
        contribute(to[i], gradients[i], pass);
    }
    run_all(pass, options.of);
    if (options.of == Of::all) pass.commit();
  });
}

void Record::backward(const DistributedTensor& loss, const BackwardOptions& options) {
  check(loss.defined(), "[backward] the loss is undefined");
  if (numel(loss.shape()) != 1)
    fail("[backward] the loss {} has {} elements; it needs one, or give the gradients of the outputs", to_string(loss),
         numel(loss.shape()));
  DistributedTensor one =
      DistributedTensor::empty(loss.mesh(), loss.mesh().intern({loss.dtype(), loss.shape(), {}}),
                               Tensor(rank_.allocator(), loss.dtype(), loss.shape(), loss.local().device()));
  fill(one.local_for_writing(), 1);
  backward({loss}, {one}, options);
}

void Record::backward_weights(bool reduce) {
  guarded([&] {
    GradientStore::Pass pass(store_, std::move(uses_), reduce);
    for (auto& [to, gradient] : of_leaves_) contribute(to, gradient, pass);
    run_all(pass, Of::weights);
    pass.commit();
  });
}

// The gradients of inputs that a pass left are readable until the next begins.
void Record::start() {
  if (finished_) inputs_.clear(), finished_ = false;
}

void Record::forget() {
  finished_ = true;
  nodes_.clear(), labels_.clear(), tracked_.clear(), recipes_.clear(), pending_.clear(), of_leaves_.clear(),
      uses_.clear();
  last_recipe_.reset();
  to_remake_.clear();
  last_module_ = last_plan_line_ = nullptr;
}

}  // namespace dtensor::nn
