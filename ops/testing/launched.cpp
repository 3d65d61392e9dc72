#include <fmt/format.h>
#include <cmath>
#include <mutex>
#include <set>

#include "dtensor/launch.h"
#include "ops/core/call.h"
#include "ops/testing/simulation.h"

namespace dtensor::testing {
namespace {

constexpr double launch_tolerance = 1e-9, tolerance_difference = 1e-6;

std::vector<const DistributedTensor*> pointers(const std::vector<DistributedTensor>& list) {
  std::vector<const DistributedTensor*> p;
  for (const DistributedTensor& x : list) p.push_back(x.defined() ? &x : nullptr);
  return p;
}

template <class T>
bool contains(const std::vector<T>& list, T i) {
  return std::find(list.begin(), list.end(), i) != list.end();
}

// Not Partial: a value's gradient is brought there.
Layout gradient_layout(const Layout& l) {
  Layout g = l;
  g.partial = 0, g.reduce = Reduce::sum;
  return g;
}

// A call of the card, and what its kernel saw.
class Call : public Observer {
 public:
  Call(const Op& op, const Attributes& attributes, std::vector<DistributedTensor> inputs)
      : op_(op), given(std::move(inputs)) {
    Rank& rank = mesh().rank_state();
    rank.add(*this);
    try {
      outputs = call_all(op, pointers(given), attributes);
    } catch (...) {
      rank.remove(*this);
      throw;
    }
    rank.remove(*this);
  }

  void on_call(const CallEvent& e) override {
    if (&e.op != &op_) return;
    used.clear();
    for (const DistributedTensor* x : e.used) used.push_back(x ? *x : DistributedTensor());
  }

 private:
  DeviceMesh mesh() const {
    for (const DistributedTensor& x : given)
      if (x.defined()) return x.mesh();
    return {};
  }
  const Op& op_;

 public:
  std::vector<DistributedTensor> given, used, outputs;
};

// What of .keeps was read, over all calls of a card.
struct KeepsRead {
  std::set<int> inputs, outputs;
};

// Serves what the card keeps, and nothing else.
class Kept : public Gradient {
 public:
  Kept(const Op& op, const Attributes& attributes, const Call& call, std::vector<DistributedTensor> dy,
       std::vector<bool> needed, KeepsRead& read)
      : op_(op), attributes_(attributes), call_(call), dy_(std::move(dy)), needed_(std::move(needed)), read_(read) {
    for (const DistributedTensor& x : call.given)
      wanted_.push_back(x.defined() ? gradient_layout(x.layout()) : Layout());
    gradients.resize(call.given.size());
  }

  const Attributes& attributes() const override { return attributes_; }
  const DistributedTensor& input(int i) const override {
    dtensor::check(contains(op_.keeps.inputs, i), "[{}] the gradient reads input {}, which is not in .keeps", op_.name,
                   i);
    read_.inputs.insert(i);
    return call_.used[size_t(i)];
  }
  const DistributedTensor& output(int i) const override {
    dtensor::check(contains(op_.keeps.outputs, i), "[{}] the gradient reads output {}, which is not in .keeps",
                   op_.name, i);
    read_.outputs.insert(i);
    return call_.outputs[size_t(i)];
  }
  const TensorSpec& input_spec(int i) const override { return call_.used[size_t(i)].spec(); }
  const DistributedTensor& of_output(int i) const override { return dy_[size_t(i)]; }
  bool needs(int i) const override { return needed_[size_t(i)]; }
  const Layout* wanted(int i) const override { return needed_[size_t(i)] ? &wanted_[size_t(i)] : nullptr; }
  void set(int i, DistributedTensor gradient) override {
    if (needed_[size_t(i)]) gradients[size_t(i)] = std::move(gradient);
  }

  std::vector<DistributedTensor> gradients;

 private:
  const Op& op_;
  const Attributes& attributes_;
  const Call& call_;
  std::vector<DistributedTensor> dy_;
  std::vector<bool> needed_;
  std::vector<Layout> wanted_;
  KeepsRead& read_;
};

// The unsharded outputs of a case; the weights of sum(output x weight), whose gradients are these.
struct Reference {
  const Case& of;
  std::vector<Tensor> outputs, weights, gradients;  // undefined where there is none
  bool has_gradient = false;
};

// An input to differentiate.
bool differentiable(const Tensor& t) { return t.defined() && t.dtype() == DType::f64; }

class OneRank {
 public:
  Call call(const Case& c, const std::vector<Tensor>& inputs) {
    std::vector<DistributedTensor> in;
    for (const Tensor& t : inputs)
      in.push_back(t.defined() ? DistributedTensor::distribute(t, mesh_, Layout()) : DistributedTensor());
    return Call(c.op, c.attributes, std::move(in));
  }
  DistributedTensor tensor(const Tensor& t) {
    return t.defined() ? DistributedTensor::distribute(t, mesh_, Layout()) : DistributedTensor();
  }

 private:
  std::shared_ptr<Rank> rank_ = Rank::single();
  DeviceMesh mesh_{*rank_, "x=1"};
};

class GradientCheck {
 public:
  GradientCheck(const Op& op, const CheckOptions& options, Report& report)
      : op_(op), options_(options), report_(report) {}

  void run(const std::vector<Case>& cases) {
    for (const Case& c : cases) {
      try {
        references_.push_back(reference(c));
      } catch (const Error& e) {
        fail_case(c, e.what());
      }
    }
    if (!op_.gradient || !report_.ok()) return;
    for (int i : op_.keeps.inputs)
      if (!read_.inputs.contains(i))
        report_.failures.push_back(fmt::format("keeps input {}, which the gradient never reads", i));
    for (int i : op_.keeps.outputs)
      if (!read_.outputs.contains(i))
        report_.failures.push_back(fmt::format("keeps output {}, which the gradient never reads", i));
  }

  const std::vector<Reference>& references() const { return references_; }

 private:
  void fail_case(const Case& c, const std::string& what) {
    report_.failures.push_back(fmt::format("{}: {}", c.name, what));
  }

  Reference reference(const Case& c) {
    Reference r{c, {}, {}, {}, false};
    Call call = one_.call(c, c.inputs);
    Random random(options_.seed + 77);
    for (size_t o = 0; o < call.outputs.size(); ++o) {
      r.outputs.push_back(call.outputs[o].local().contiguous());
      bool wanted = r.outputs[o].dtype() == DType::f64 && (o == 0 || !contains(op_.keeps.outputs, int(o)));
      std::vector<double> w;
      for (int64_t i = 0; wanted && i < r.outputs[o].numel(); ++i) w.push_back(random.uniform(-1, 1));
      r.weights.push_back(wanted ? Tensor::of<double>(r.outputs[o].shape(), w) : Tensor());
    }
    ++report_.cases;
    std::vector<bool> all;
    for (const Tensor& t : c.inputs) all.push_back(differentiable(t));
    r.has_gradient = op_.gradient && contains(all, true) &&
                     std::any_of(r.weights.begin(), r.weights.end(), [](const Tensor& w) { return w.defined(); });
    if (!r.has_gradient) return r;
    r.gradients = gradients(c, call, r.weights, all);
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i]) continue;
      Tensor numeric = differences(c, i, r.weights);
      if (!r.gradients[i].defined()) {
        r.gradients[i] = Tensor::zeros(numeric.allocator(), DType::f64, numeric.shape());
        if (!difference(r.gradients[i], numeric, tolerance_difference).empty())
          fail_case(c, fmt::format("the gradient of input {} is never set", i));
        continue;
      }
      std::string d = difference(r.gradients[i], numeric, tolerance_difference);
      if (!d.empty()) fail_case(c, fmt::format("the gradient of input {} {} (by differences)", i, d));
      std::vector<bool> one(all.size());
      one[i] = true;
      d = difference(gradients(c, call, r.weights, one)[i], r.gradients[i], launch_tolerance);
      if (!d.empty()) fail_case(c, fmt::format("the gradient of input {}, when it alone is needed, {}", i, d));
    }
    return r;
  }

  std::vector<Tensor> gradients(const Case& c, const Call& call, const std::vector<Tensor>& weights,
                                const std::vector<bool>& needed) {
    std::vector<DistributedTensor> dy;
    for (const Tensor& w : weights) dy.push_back(one_.tensor(w));
    Kept g(op_, c.attributes, call, dy, needed, read_);
    op_.gradient(g);
    std::vector<Tensor> list;
    for (const DistributedTensor& x : g.gradients) list.push_back(x.defined() ? x.local().contiguous() : Tensor());
    return list;
  }

  double weighted(const Case& c, const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights) {
    std::vector<Tensor> out;
    if (op_.composite) {
      for (const DistributedTensor& y : one_.call(c, inputs).outputs) out.push_back(y.local());
    } else {
      Case shifted = c;
      shifted.inputs = inputs;
      out = Simulation(shifted).run_whole();
    }
    double sum = 0;
    for (size_t o = 0; o < out.size(); ++o) {
      Tensor y = out[o].contiguous();
      for (int64_t i = 0; weights[o].defined() && i < y.numel(); ++i) sum += element(y, i) * element(weights[o], i);
    }
    return sum;
  }

  Tensor differences(const Case& c, size_t input, const std::vector<Tensor>& weights) {
    constexpr double h = 1e-5;
    std::vector<Tensor> inputs = c.inputs;
    inputs[input] = inputs[input].clone();
    double* x = inputs[input].data<double>();
    std::vector<double> d;
    for (int64_t i = 0; i < inputs[input].numel(); ++i) {
      double middle = x[i];
      x[i] = middle + h;
      double above = weighted(c, inputs, weights);
      x[i] = middle - h;
      double below = weighted(c, inputs, weights);
      x[i] = middle;
      d.push_back((above - below) / (2 * h));
    }
    return Tensor::of<double>(inputs[input].shape(), d);
  }

  const Op& op_;
  const CheckOptions& options_;
  Report& report_;
  OneRank one_;
  KeepsRead read_;
  std::vector<Reference> references_;
};

// A call on launched ranks whose inputs lie so.
struct Job {
  const Reference* reference;
  std::vector<Layout> layouts;
  Contributions contributions;
  uint64_t seed;
  bool refusable;  // a card that moves nothing, or not what it writes, may refuse the layouts
};

class Jobs {
 public:
  Jobs(const Op& op, MeshShape mesh, Report& report) : op_(op), mesh_(std::move(mesh)), report_(report) {}

  void add(const Reference& r, std::vector<Layout> layouts, Random& random, bool any = true) {
    Contributions how = random.below(2) ? Contributions::random : Contributions::identity;
    jobs_.push_back({&r, std::move(layouts), how, random.next(), op_.stays || (any && !op_.writes.empty())});
  }

  void run() {
    std::string now = "before the first case";
    try {
      launch(mesh_.world(),
             [&](Rank& rank) {
               DeviceMesh mesh(rank, mesh_);
               for (const Job& job : jobs_) {
                 if (rank.rank() == 0) now = describe(job);
                 run_job(mesh, job);
               }
             },
             {std::chrono::seconds(60), 1});
    } catch (const Error& e) {
      failures_.insert(fmt::format("{}: {}", now, e.what()));
    }
    report_.cases += int(jobs_.size());
    report_.failures.insert(report_.failures.end(), failures_.begin(), failures_.end());
  }

 private:
  std::string describe(const Job& job) const {
    std::string text = fmt::format("{} on {}:", job.reference->of.name, dtensor::to_string(mesh_));
    for (const Layout& l : job.layouts) text += fmt::format(" [{}]", dtensor::to_string(l, mesh_));
    return text;
  }

  void compare(const Job& job, const std::string& what, const Tensor& got, const Tensor& expected) {
    std::string d = difference(got, expected, launch_tolerance);
    if (d.empty()) return;
    std::lock_guard lock(mutex_);
    failures_.insert(fmt::format("{} {} {}", describe(job), what, d));
  }

  void run_job(const DeviceMesh& mesh, const Job& job) {
    const Case& c = job.reference->of;
    std::vector<DistributedTensor> in;
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      if (!c.inputs[i].defined()) {
        in.emplace_back();
        continue;
      }
      Tensor local = part(c.inputs[i], c.kinds[i], mesh_, job.layouts[i], mesh.rank(), job.contributions, job.seed + i);
      in.push_back(DistributedTensor::from_local(local, mesh, job.layouts[i], c.inputs[i].shape()));
    }
    std::optional<Call> call;
    try {
      call.emplace(op_, c.attributes, in);
    } catch (const Error&) {
      if (job.refusable) return;  // all ranks refuse it, before anything is communicated
      throw;
    }
    for (size_t o = 0; o < call->outputs.size(); ++o)
      compare(job, fmt::format("output {}", o), call->outputs[o].full_tensor(), job.reference->outputs[o]);
    if (job.reference->has_gradient) run_gradient(mesh, job, *call);
  }

  void run_gradient(const DeviceMesh& mesh, const Job& job, const Call& call) {
    const Case& c = job.reference->of;
    std::vector<DistributedTensor> dy;
    for (size_t o = 0; o < call.outputs.size(); ++o) {
      const Tensor& w = job.reference->weights[o];
      dy.push_back(w.defined() ? DistributedTensor::distribute(w, mesh, gradient_layout(call.outputs[o].layout()))
                               : DistributedTensor());
    }
    std::vector<bool> needed;
    for (const Tensor& t : c.inputs) needed.push_back(differentiable(t));
    KeepsRead read;
    Kept g(op_, c.attributes, call, dy, needed, read);
    op_.gradient(g);
    for (size_t i = 0; i < needed.size(); ++i)
      if (needed[i] && g.gradients[i].defined())
        compare(job, fmt::format("gradient of input {}", i), g.gradients[i].full_tensor(), job.reference->gradients[i]);
  }

  const Op& op_;
  MeshShape mesh_;
  Report& report_;
  std::vector<Job> jobs_;
  std::mutex mutex_;
  std::set<std::string> failures_;
};

// Any layout: both sharding orders, reductions that the tensor's type has.
Layout random_layout(const MeshShape& mesh, const Tensor& t, Random& random) {
  constexpr Reduce some[] = {Reduce::sum, Reduce::sum, Reduce::avg, Reduce::max};
  Reduce reduce = some[random.below(4)];
  std::vector<int> axes(size_t(mesh.axes()));
  for (int a = 0; a < mesh.axes(); ++a) axes[size_t(a)] = a;
  if (random.below(2)) std::reverse(axes.begin(), axes.end());
  Layout l;
  for (int a : axes) {
    int kind = random.below(4);
    if (kind == 0 && t.dtype() == DType::f64)
      l = l.with(a, Partial(reduce));
    else if (kind >= 2 && t.dims() > 0)
      l = l.with_innermost(a, random.below(t.dims()));
  }
  return l;
}

// Inputs as each strategy has them.
void add_strategies(const Reference& r, const MeshShape& mesh, Random& random, Jobs& jobs) {
  Simulation s(r.of);
  constexpr Reduce reductions[] = {Reduce::sum, Reduce::avg, Reduce::max, Reduce::min, Reduce::product};
  for (const Strategy& strategy : s.rule().strategies(reductions)) {
    if (!exists(r.of, strategy)) continue;
    const Factor* f = strategy.factor < 0 ? nullptr : &s.rule().factors()[size_t(strategy.factor)];
    if (f && f->even && f->size % mesh.world()) continue;
    std::vector<Layout> layouts;
    for (size_t i = 0; i < strategy.inputs.size(); ++i)
      layouts.push_back(r.of.inputs[i].defined() ? Layout{strategy.inputs[i]} : Layout());
    jobs.add(r, layouts, random, false);
  }
}

// For composites: the first input sharded in every dimension, the others in the same one where they have it.
void add_shards(const Reference& r, const MeshShape& mesh, Random& random, Jobs& jobs) {
  const Tensor& first = r.of.inputs[0];
  for (int d = 0; d < first.dims(); ++d)
    for (int axis = 0; axis < mesh.axes(); ++axis) {
      std::vector<Layout> layouts;
      for (const Tensor& t : r.of.inputs) {
        bool has = t.defined() && d < t.dims() && t.size(d) == first.size(d);
        layouts.push_back(has ? Layout().with(axis, Shard(d)) : Layout());
      }
      jobs.add(r, layouts, random);
      for (int e = 0; e < first.dims() && mesh.axes() == 2; ++e) {
        std::vector<Layout> both = layouts;
        for (size_t i = 0; i < both.size(); ++i)
          if (const Tensor& t = r.of.inputs[i]; t.defined() && e < t.dims() && t.size(e) == first.size(e))
            both[i] = both[i].with_innermost(1 - axis, e);
        jobs.add(r, both, random);
      }
    }
}

}  // namespace

void check_launched(const Op& op, const std::vector<Case>& cases, const CheckOptions& options, Report& report) {
  GradientCheck gradient(op, options, report);
  gradient.run(cases);
  if (!report.ok()) return;
  Random random(options.seed);
  std::vector<std::string> meshes = options.meshes;
  for (int world : options.launched) meshes.push_back(fmt::format("x={}", world));
  for (const std::string& text : meshes) {
    MeshShape mesh = MeshShape::parse(text);
    Jobs jobs(op, mesh, report);
    for (const Reference& r : gradient.references()) {
      if (op.composite)
        add_shards(r, mesh, random, jobs);
      else if (mesh.axes() == 1)
        add_strategies(r, mesh, random, jobs);
      for (int i = 0; i < (mesh.axes() == 1 && !op.composite ? 0 : options.layouts); ++i) {
        std::vector<Layout> layouts;
        for (const Tensor& t : r.of.inputs) layouts.push_back(t.defined() ? random_layout(mesh, t, random) : Layout());
        jobs.add(r, layouts, random);
      }
    }
    jobs.run();
  }
}

}  // namespace dtensor::testing
