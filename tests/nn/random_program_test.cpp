// Long random programs: hundreds of ops on random layouts give what one rank gives, values and gradients. The seed is
// printed on failure; PROGRAM_SEED=n runs that program alone.
#include <fmt/format.h>
#include <cstdlib>
#include <functional>

#include "ops/cards.h"
#include "ops/testing/simulation.h"
#include "tests/autograd.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

using Numbers = std::vector<int64_t>;

// A call whose operands and results are numbered values.
struct Step {
  std::string function;
  std::vector<int> operands;
  NamedValues values = {};
};
struct Program {
  uint64_t seed = 0;
  bool differentiate = true;   // else also ops whose gradient jumps where rounding decides: maxima, sort
  std::vector<Tensor> leaves;  // the first values: f64, and i64 for indices
  std::vector<Step> steps;
  std::vector<Tensor> values;  // what one rank has: leaves and results
  std::vector<int> roots;      // values that the loss is made of
  std::vector<Tensor> gradients;
};

// Runs steps on one rank's part of a mesh.
class Machine {
 public:
  Machine(const DeviceMesh& mesh, uint64_t seed) : mesh_(mesh), random_(seed), autograd_(mesh.rank_state()) {}

  const std::vector<DistributedTensor>& values() const { return values_; }

  void leaf(const Tensor& t) {
    values_.push_back(DistributedTensor::distribute(t, mesh_, random_layout(t.shape(), false)));
    if (t.dtype() == DType::f64) autograd_.watch(values_.back());
  }

  // Operands are moved at random before.
  std::vector<DistributedTensor> run(const Step& s) {
    std::vector<DistributedTensor> operands;
    for (int i : s.operands) {
      const DistributedTensor& x = values_[size_t(i)];
      bool move = random_.below(3) == 0;
      Layout to = random_layout(x.shape(), x.dtype() == DType::f64);
      operands.push_back(move ? x.redistribute(to) : x);
    }
    std::vector<const DistributedTensor*> pointers;
    for (const DistributedTensor& x : operands) pointers.push_back(&x);
    auto results = ops::call_function(s.function, pointers, s.values);
    values_.insert(values_.end(), results.begin(), results.end());
    return results;
  }

  // The gradients of sum(root x weight) over all roots, by leaf.
  std::vector<Tensor> gradients(const std::vector<int>& roots, size_t leaves) {
    DistributedTensor loss;
    for (int r : roots) {
      const DistributedTensor& x = values_[size_t(r)];
      DistributedTensor part = ops::sum(ops::mul(x, DistributedTensor::distribute(f64(x.shape(), r), mesh_, Layout())));
      loss = loss.defined() ? ops::add(loss, part) : part;
    }
    autograd_.backward(loss.redistribute(Layout()));
    std::vector<Tensor> list;
    for (size_t i = 0; i < leaves && values_[i].dtype() == DType::f64; ++i) {
      DistributedTensor g = autograd_.gradient(values_[i]);
      list.push_back(g.defined() ? g.full_tensor() : Tensor());
    }
    return list;
  }

 private:
  Layout random_layout(const Shape& shape, bool partial) {
    constexpr Reduce some[] = {Reduce::sum, Reduce::sum, Reduce::avg, Reduce::max, Reduce::min};
    Reduce reduce = some[random_.below(5)];
    Layout l;
    bool backwards = random_.below(2);
    for (int i = 0; i < mesh_.shape().axes(); ++i) {
      int axis = backwards ? mesh_.shape().axes() - 1 - i : i, kind = random_.below(5);
      if (kind == 0 && partial)
        l = l.with(axis, Partial(reduce));
      else if (kind >= 2 && shape.dims() > 0)
        l = l.with_innermost(axis, random_.below(shape.dims()));
    }
    return l;
  }

  DeviceMesh mesh_;
  Random random_;
  Autograd autograd_;
  std::vector<DistributedTensor> values_;
};

// Makes up a program while one rank runs it, so that shapes fit and values stay of moderate size.
class Generator {
 public:
  Generator(uint64_t seed, int length) : random_(seed) {
    program_.seed = seed;
    program_.differentiate = seed % 2;
    auto rank = Rank::single();
    Machine machine(DeviceMesh(*rank, "x=1"), seed);
    machine_ = &machine;
    for (const Shape& s : {Shape{4, 6}, Shape{6, 5}, Shape{3, 4, 6}, Shape{7}, Shape{1, 6}, Shape{2, 4, 8}}) {
      pool_.push_back(int(pool_.size()));
      program_.leaves.push_back(f64(s, int(program_.leaves.size())));
    }
    program_.leaves.push_back(Tensor::of<int64_t>({5}, {2, 0, 3, 3, 1}));
    for (const Tensor& t : program_.leaves) machine.leaf(t);
    program_.values = program_.leaves;
    while (int(program_.steps.size()) < length) step();
    program_.roots = pool_;
    if (program_.differentiate) program_.gradients = machine.gradients(program_.roots, program_.leaves.size());
  }
  Program take() { return std::move(program_); }

 private:
  static constexpr size_t pool_size = 12;

  const Shape& shape(int value) const { return program_.values[size_t(value)].shape(); }
  int any() { return pool_[size_t(random_.below(int(pool_.size())))]; }
  // One of the pool for which `fits` holds, or -1.
  int find(const std::function<bool(const Shape&)>& fits) {
    int start = random_.below(int(pool_.size()));
    for (size_t k = 0; k < pool_.size(); ++k) {
      int v = pool_[(size_t(start) + k) % pool_.size()];
      if (fits(shape(v))) return v;
    }
    return -1;
  }
  int64_t any_dim(int x) { return random_.below(shape(x).dims()); }
  static Numbers list(const Shape& s) { return {s.begin(), s.end()}; }

  static bool broadcasts(const Shape& a, const Shape& b) {
    for (int i = 1; i <= std::min(a.dims(), b.dims()); ++i)
      if (int64_t m = a[a.dims() - i], n = b[b.dims() - i]; m != n && m != 1 && n != 1) return false;
    return true;
  }

  // Runs a step; its float results join the pool, smaller where they grew large.
  void emit(Step s) {
    std::vector<DistributedTensor> results = machine_->run(s);
    program_.steps.push_back(std::move(s));
    std::vector<int> large;
    for (const DistributedTensor& x : results) {
      int number = int(program_.values.size());
      program_.values.push_back(x.full_tensor());
      if (x.dtype() != DType::f64 || numel(x.shape()) > 400) continue;
      pool_.push_back(number);
      for (int64_t i = 0; i < x.local().numel(); ++i)
        if (std::abs(element(program_.values.back(), i)) > 3) {
          large.push_back(number), pool_.pop_back();
          break;
        }
    }
    while (pool_.size() > pool_size) pool_.erase(pool_.begin() + random_.below(int(pool_.size()) - 2));
    for (int x : large) emit({"tanh", {x}});
  }
  int last() const { return int(program_.values.size()) - 1; }

  void step() {
    static constexpr void (Generator::*makers[])() = {
        &Generator::unary,   &Generator::unary, &Generator::binary, &Generator::binary, &Generator::reduction,
        &Generator::product, &Generator::view,  &Generator::join,   &Generator::part,   &Generator::rearrange,
        &Generator::choose,  &Generator::layer, &Generator::layer};
    (this->*makers[random_.below(int(std::size(makers)))])();
  }
  template <size_t n>
  const char* one_of(const char* const (&names)[n]) {
    return names[random_.below(int(n))];
  }
  int with_dims(int least) {
    return find([&](const Shape& s) { return s.dims() >= least; });
  }

  void unary() {
    constexpr const char* names[] = {"neg",  "exp", "square", "tanh", "sigmoid", "gelu",
                                     "silu", "sin", "cos",    "erf",  "expm1",   "softplus"};
    constexpr const char* kinks[] = {"abs", "relu"};
    int x = any();
    if (random_.below(5)) return emit({one_of(names), {x}});
    emit({"add", {x}, {{"value", 0.0123}}});  // values that are 0 but for rounding do not decide a gradient
    emit({one_of(kinks), {last()}});
  }

  void binary() {
    constexpr const char* names[] = {"add", "sub", "mul", "mul"};
    constexpr const char* extremes[] = {"maximum", "minimum"};
    int x = any(), y = find([&](const Shape&s) { return broadcasts(s, shape(x)); });
    bool extreme = !program_.differentiate && random_.below(3) == 0;
    emit({extreme ? one_of(extremes) : one_of(names), {x, y}});
  }

  void reduction() {
    constexpr const char* names[] = {"sum", "mean", "logsumexp", "prod", "norm", "var"};
    constexpr const char* extremes[] = {"amax", "amin"};
    int x = find([](const Shape& s) { return s.dims() > 0 && numel(s) > 0; });
    if (x < 0) return;
    bool extreme = !program_.differentiate && random_.below(3) == 0;
    Step s{extreme ? one_of(extremes) : one_of(names), {x}, {{"dim", any_dim(x)}, {"keepdim", random_.below(2) == 1}}};
    if (s.function == "var") s.values.set("correction", 0.0);
    emit(std::move(s));
  }

  // a b^T, or linear where a weight fits.
  void product() {
    int x = with_dims(2);
    if (x < 0) return;
    int y = find([&](const Shape& s) {
      return s.dims() >= 2 && s.back() == shape(x).back() &&
             broadcasts(Shape(s.begin(), s.end() - 2), Shape(shape(x).begin(), shape(x).end() - 2));
    });
    if (random_.below(3) == 0) return emit({"einsum", {x, y}, {{"equation", std::string("...mk,...nk->...nm")}}});
    if (shape(y).dims() == 2 && random_.below(2)) return emit({"linear", {x, y}});
    emit({"transpose", {y}, {{"dim0", int64_t(-1)}, {"dim1", int64_t(-2)}}});
    emit({"matmul", {x, last()}});
  }

  void view() {
    int x = with_dims(1);
    if (x < 0) return;
    Shape to = shape(x);
    int d = int(any_dim(x));
    switch (random_.below(4)) {
      case 0:
        return emit({"transpose", {x}, {{"dim0", any_dim(x)}, {"dim1", any_dim(x)}}});
      case 1:  // two dimensions become one
        if (d + 1 < to.dims()) return emit({"flatten", {x}, {{"start_dim", int64_t(d)}, {"end_dim", int64_t(d + 1)}}});
        return emit({"unsqueeze", {x}, {{"dim", int64_t(0)}}});
      case 2: {  // one becomes two
        if (to.dims() > 3) return;
        int64_t a = to[d] % 3 == 0 && to[d] ? 3 : to[d] % 2 == 0 && to[d] ? 2 : 1;
        to[d] = to[d] / a;
        to.insert(d, a);
        return emit({"reshape", {x}, {{"shape", list(to)}}});
      }
      default:
        if (numel(to) > 100 || to.dims() > 3) return;
        to.insert(0, 2);
        return emit({"expand", {x}, {{"shape", list(to)}}});
    }
  }

  void join() {
    int x = with_dims(1);
    if (x < 0 || numel(shape(x)) > 100) return;
    int64_t dim = any_dim(x);
    int y = find([&](const Shape& s) {
      Shape to = shape(x);
      if (s.dims() == to.dims()) to[int(dim)] = s[int(dim)];
      return s == to;
    });
    if (shape(x) == shape(y) && shape(x).dims() < 4 && random_.below(2)) return emit({"stack", {x, y}, {{"dim", dim}}});
    emit({"cat", {x, y, x}, {{"dim", dim}}});
  }

  void part() {
    int x = find([](const Shape& s) { return s.dims() > 0 && numel(s) > 0; });
    if (x < 0) return;
    int64_t dim = any_dim(x), n = shape(x)[int(dim)], at = random_.below(int(n));
    switch (random_.below(4)) {
      case 0:
        return emit({"slice", {x}, {{"dim", dim}, {"start", at}, {"end", n}, {"step", int64_t(1 + random_.below(2))}}});
      case 1:
        return emit({"select", {x}, {{"dim", dim}, {"index", at}}});
      case 2:
        return emit({"split", {x}, {{"split_size", int64_t(1 + n / 2)}, {"dim", dim}}});
      default:
        if (n > 3) emit({"index_select", {x, indices}, {{"dim", dim}}});
    }
  }

  void rearrange() {
    constexpr const char* triangles[] = {"tril", "triu"};
    int x = with_dims(2);
    if (x < 0) return;
    switch (random_.below(4)) {
      case 0:
        return emit({"flip", {x}, {{"dims", Numbers{any_dim(x)}}}});
      case 1:
        return emit({"roll", {x}, {{"shifts", Numbers{1}}, {"dims", Numbers{any_dim(x)}}}});
      case 2:
        return emit({"cumsum", {x}, {{"dim", any_dim(x)}}});
      default:
        return emit({one_of(triangles), {x}, {{"diagonal", int64_t(random_.below(3) - 1)}}});
    }
  }

  // Conditions compare with a number that no value equals.
  void choose() {
    int x = any(), y = find([&](const Shape&s) { return s == shape(x); });
    emit({"gt", {y}, {{"value", 0.01234567}}});
    if (random_.below(2)) return emit({"masked_fill", {x, last()}, {{"value", 0.5}}});
    emit({"where", {last(), x, y}});
  }

  void layer() {
    constexpr const char* softmaxes[] = {"softmax", "log_softmax"};
    int x = find([](const Shape& s) { return s.dims() >= 1 && s.back() > 0; });
    if (x < 0) return;
    int w = find([&](const Shape& s) { return s == Shape{shape(x).back()}; });
    switch (random_.below(program_.differentiate ? 4 : 5)) {
      case 0:
        return emit({one_of(softmaxes), {x}, {{"dim", any_dim(x)}}});
      case 1:
        if (w >= 0) emit({"layer_norm", {x, w, w}, {{"normalized_shape", Numbers{shape(x).back()}}, {"eps", 0.1}}});
        return;
      case 2:
        if (w >= 0) emit({"rms_norm", {x, w}, {{"eps", 0.1}}});
        return;
      case 3:
        return emit({"dropout", {x}, {{"p", 0.25}, {"seed", int64_t(program_.steps.size())}}});
      default:
        return emit({"sort", {x}, {{"dim", any_dim(x)}, {"descending", random_.below(2) == 1}}});
    }
  }

  static constexpr int indices = 6;  // the i64 leaf
  Random random_;
  Program program_;
  Machine* machine_ = nullptr;
  std::vector<int> pool_;  // f64 values that steps may use
};

// Every value as it is made, then the gradients: the first that differs names its step.
std::string first_difference(const Program& p, const DeviceMesh& mesh) {
  Machine machine(mesh, p.seed + 1);
  for (const Tensor& t : p.leaves) machine.leaf(t);
  size_t next = p.leaves.size();
  for (size_t i = 0; i < p.steps.size(); ++i)
    for (const DistributedTensor& x : machine.run(p.steps[i])) {
      const Tensor& want = p.values[next++];
      if (x.dtype() == DType::i64) continue;  // of a sort: rounding decides between elements that are equal but for it
      std::string d = difference(x.full_tensor(), want, 1e-9);
      if (!d.empty())
        return fmt::format("step {}, {} ({}): {} {}", i, p.steps[i].function, p.steps[i].values.to_string(),
                           to_string(x), d);
    }
  if (!p.differentiate) return "";
  std::vector<Tensor> gradients = machine.gradients(p.roots, p.leaves.size());
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].defined() != p.gradients[i].defined()) return fmt::format("only one has a gradient of leaf {}", i);
    if (!gradients[i].defined()) continue;
    std::string d = difference(gradients[i], p.gradients[i], 1e-8);
    if (!d.empty()) return fmt::format("the gradient of leaf {} {}", i, d);
  }
  return "";
}

void check_programs(int count, int length) {
  const char* only = std::getenv("PROGRAM_SEED");
  for (uint64_t seed = only ? std::strtoull(only, nullptr, 10) : 1, end = only ? seed + 1 : uint64_t(count) + 1;
       seed < end; ++seed) {
    INFO("PROGRAM_SEED=" << seed);
    Program p = Generator(seed, length).take();
    for (const char* text : {"x=2", "x=3", "x=2,y=2"}) {
      INFO("mesh " << text);
      for (const std::string& found : on_mesh(text, [&](const DeviceMesh& m) { return first_difference(p, m); }))
        CHECK(found == "");
    }
  }
}

}  // namespace

TEST_CASE("law 2: random programs of hundreds of ops, values and gradients") { check_programs(12, 300); }

TEST_CASE("law 2: many random programs", "[nightly]") { check_programs(200, 500); }
