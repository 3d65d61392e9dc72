// Gradients against differences, in f64: composites, and whole graphs on meshes.
#include "tests/autograd.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

using Tensors = std::vector<DistributedTensor>;
using Graph = std::function<DistributedTensor(const Tensors&)>;  // -> one number

struct Input {
  Shape shape;
  std::string layout;  // on the mesh of the case; axes that it lacks are left out
};

// The loss, then all gradients, by the record on every rank of a mesh.
std::vector<double> by_record(const std::string& mesh, const std::vector<Input>& inputs, const Graph& graph) {
  return on_mesh(mesh,
                 [&](const DeviceMesh& m) {
                   Tensors x;
                   Autograd autograd(m.rank_state());
                   for (size_t i = 0; i < inputs.size(); ++i) {
                     Layout layout =
                         mesh == "x=1" ? Layout() : parse_layout(inputs[i].layout, m.shape(), inputs[i].shape.dims());
                     x.push_back(DistributedTensor::distribute(f64(inputs[i].shape, int(i)), m, layout));
                     autograd.watch(x.back());
                   }
                   DistributedTensor loss = graph(x).redistribute(Layout());
                   std::vector<double> result = values(loss.local());
                   autograd.backward(loss);
                   for (const DistributedTensor& t : x) {
                     check(autograd.gradient(t).defined(), "no gradient of {}", to_string(t));
                     for (double v : values(autograd.gradient(t).full_tensor())) result.push_back(v);
                   }
                   return result;
                 })
      .back();  // the last rank, which has the smallest parts
}

std::vector<double> by_differences(const std::vector<Input>& inputs, const Graph& graph) {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "x=1");
  Tensors x;
  for (size_t i = 0; i < inputs.size(); ++i)
    x.push_back(DistributedTensor::distribute(f64(inputs[i].shape, int(i)), m, Layout()));
  auto value = [&] { return element(graph(x).local().contiguous(), 0); };
  std::vector<double> result{value()};
  constexpr double h = 1e-5;
  for (DistributedTensor& t : x)
    for (int64_t i = 0; i < numel(t.shape()); ++i) {
      double before = t.local().data<double>()[i], sides[2];
      for (int side : {0, 1}) {
        t.local_for_writing().data<double>()[i] = before + (side ? h : -h);
        sides[side] = value();
      }
      t.local_for_writing().data<double>()[i] = before;
      result.push_back((sides[1] - sides[0]) / (2 * h));
    }
  return result;
}

DistributedTensor ids(const DistributedTensor& like, const Shape& shape, const std::vector<int64_t>& v,
                      const Layout& layout = {}) {
  return DistributedTensor::distribute(Tensor::of<int64_t>(shape, v), like.mesh(), layout);
}

}  // namespace

TEST_CASE("cross entropy: value and gradient for all reductions and shardings") {
  const std::vector<int64_t> targets{0, 4, 2, 1, 2, 3};
  struct Case {
    const char* mesh;
    const char* logits;
  };
  const Case cases[] = {{"x=1", ""},
                        {"tp=2", "tp=Shard(2)"},
                        {"tp=4", "tp=Shard(-1)"},  // 5 classes: 2, 2, 1 and none
                        {"dp=2", "dp=Shard(0)"},
                        {"dp=3", "dp=Shard(1)"},
                        {"dp=2,tp=2", "dp=Shard(0) tp=Shard(2)"},
                        {"dp=2,tp=2", "dp=Shard(1) tp=Replicate"},
                        {"dp=2,tp=2", "dp=Partial(sum) tp=Shard(2)"}};
  for (auto reduction : {ops::Reduction::none, ops::Reduction::sum, ops::Reduction::mean})
    for (int64_t ignore : {-100, 2}) {
      Graph graph = [&](const Tensors& x) {
        DistributedTensor target = ids(x[0], {2, 3}, targets);
        DistributedTensor loss =
            ops::cross_entropy(ops::mul(x[0], 3), target, {.ignore_index = ignore, .reduction = reduction});
        return reduction == ops::Reduction::none ? ops::sum(loss * x[1]) : ops::mul(loss, ops::sum(ops::square(x[1])));
      };
      // By hand.
      std::vector<double> logits = numbers(30, 0), weights = numbers(6, 1);
      double sum = 0, count = 0, squares = 0, weighted = 0;
      for (size_t i = 0; i < 6; ++i) {
        double s = 0;
        for (size_t c = 0; c < 5; ++c) s += std::exp(3 * logits[i * 5 + c]);
        squares += weights[i] * weights[i];
        if (targets[i] == ignore) continue;
        double l = std::log(s) - 3 * logits[i * 5 + size_t(targets[i])];
        sum += l, count += 1, weighted += l * weights[i];
      }
      double value = reduction == ops::Reduction::none
                         ? weighted
                         : squares * (reduction == ops::Reduction::sum ? sum : sum / count);

      std::vector<double> expected = by_differences({{{2, 3, 5}, ""}, {{2, 3}, ""}}, graph);
      CHECK(expected[0] == Approx(value).epsilon(1e-12));
      for (const Case& c : cases) {
        INFO(c.mesh << " " << c.logits << ", reduction " << int(reduction) << ", ignoring " << ignore);
        CHECK(difference(by_record(c.mesh, {{{2, 3, 5}, c.logits}, {{2, 3}, ""}}, graph), expected) < 1e-8);
      }
    }
}

TEST_CASE("cross entropy communicates as it says") {
  struct Case {
    const char *mesh, *logits, *targets, *forward;
    int launches;
  };
  const Case cases[] = {{"tp=2", "tp=Shard(2)", "", "all_reduce 3", 2},             // the maxima; then two sums at once
                        {"dp=2", "dp=Shard(0)", "dp=Shard(0)", "all_reduce 2", 1},  // sum and count at once
                        {"dp=2,tp=2", "dp=Shard(0) tp=Shard(2)", "dp=Shard(0)", "all_reduce 5", 3}};
  for (const Case& c : cases) {
    Entries e = on_mesh(c.mesh, [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      rank.strict = true;
      DistributedTensor logits =
          DistributedTensor::distribute(f64({4, 3, 6}, 1), m, parse_layout(c.logits, m.shape(), 3));
      DistributedTensor target =
          ids(logits, {4, 3}, std::vector<int64_t>(12, 2), parse_layout(c.targets, m.shape(), 2));
      Autograd autograd(rank);
      autograd.watch(logits);
      CommLog log(rank);
      DistributedTensor loss;
      {
        PhaseScope phase(rank, Phase::forward);
        loss = ops::cross_entropy(logits, target);
      }
      check(loss.layout().is_replicated() && autograd.nodes() == 1, "{}, {} nodes", to_string(loss),
            autograd.nodes());  // one node
      autograd.backward(loss);
      check(autograd.gradient(logits).layout() == logits.layout(), "gradient {}", to_string(autograd.gradient(logits)));
      return log.entries();
    })[0];
    INFO(c.mesh << "\n" << listing(e));
    CHECK(counts(e, Phase::forward) == c.forward);
    CHECK(counts(e, Phase::backward) == "");
    CHECK(e.back().group + 1 == c.launches);
  }
}

TEST_CASE("cross entropy of targets that are all ignored, or none") {
  on_mesh("dp=2", [](const DeviceMesh& m) {
    DistributedTensor logits = DistributedTensor::distribute(f64({2, 5}, 1), m, {Shard(0)});
    Autograd autograd(m.rank_state());
    autograd.watch(logits);
    auto loss = [&](std::vector<int64_t> targets, ops::Reduction reduction) {
      return ops::cross_entropy(logits, ids(logits, {2}, targets), {.ignore_index = 3, .reduction = reduction});
    };
    check(std::isnan(loss({3, 3}, ops::Reduction::mean).item()), "the mean of nothing is a number");
    DistributedTensor none = loss({3, 3}, ops::Reduction::sum);
    check(none.item() == 0, "the sum of nothing is {}", none.item());
    autograd.backward(none);
    check(values(autograd.gradient(logits).full_tensor()) == std::vector<double>(10, 0), "a gradient of nothing");
    // One rank has none, the other the only one: the mean is over both.
    check(std::abs(loss({3, 1}, ops::Reduction::mean).item() - loss({3, 1}, ops::Reduction::sum).item()) < 1e-15,
          "one of two");
  });
  std::string error = error_of([] {
    on_mesh("dp=2", [](const DeviceMesh& m) {
      DistributedTensor logits = DistributedTensor::distribute(f64({2, 5}, 1), m, {Shard(0)});
      ops::cross_entropy(logits, ids(logits, {2}, {1, 5}));
    });
  });
  CHECK(error == "[cross_entropy] target 5 is outside the classes [0,5) (rank 1 of 2)");
}

TEST_CASE("sums and means: gradients on meshes") {
  struct Case {
    const char* name;
    Graph graph;
  };
  const Case cases[] = {
      {"sum", [](const Tensors& x) { return ops::square(ops::sum(x[0])); }},
      {"sum of rows", [](const Tensors& x) { return ops::sum(ops::square(ops::sum(x[0], {1}))); }},
      {"mean", [](const Tensors& x) { return ops::square(ops::mean(x[0])); }},
      {"mean of columns, kept",
       [](const Tensors& x) { return ops::sum(ops::square(x[0] - ops::mean(x[0], {0}, true))); }},
      {"sum of squares", [](const Tensors& x) { return ops::sqrt(ops::sum_squares(x[0])); }},
  };
  for (const Case& c : cases) {
    auto expected = by_differences({{{5, 6}, ""}}, c.graph);
    for (const char* layout :
         {"x=Shard(0) y=Shard(1)", "x=Shard(1) y=Replicate", "y=Shard(0) x=Shard(0)", "x=Partial(sum) y=Shard(0)"}) {
      INFO(c.name << " of " << layout);
      CHECK(difference(by_record("x=2,y=2", {{{5, 6}, layout}}, c.graph), expected) < 1e-9);
    }
  }
}

TEST_CASE("a transformer block and its loss: gradients on meshes") {
  constexpr int64_t b = 2, s = 3, heads = 4, kv = 2, d = 2, h = 8, f = 6, v = 5;
  Graph block = [&](const Tensors& x) {
    DistributedTensor a = ops::rms_norm(x[0], x[1], 1e-5);
    auto split = [&](const DistributedTensor& t, int64_t n) { return ops::reshape(t, {b, s, n, d}); };
    auto front = [](const DistributedTensor& t) { return ops::transpose(t, 1, 2); };
    DistributedTensor q = front(ops::rotary(split(ops::linear(a, x[2]), heads), 100)),
                      k = front(ops::rotary(split(ops::linear(a, x[3]), kv), 100));
    DistributedTensor o =
        ops::scaled_dot_product_attention(q, k, front(split(ops::linear(a, x[4]), kv)), {.causal = true});
    DistributedTensor r = x[0] + ops::linear(ops::reshape(front(o), {b, s, heads * d}), x[5]);
    DistributedTensor y = r + ops::linear(ops::swiglu(ops::linear(r, x[6]), ops::linear(r, x[7], x[8])), x[9]);
    return ops::cross_entropy(ops::linear(y, x[10]), ids(x[0], {b, s}, {0, 4, 2, 1, 2, 3}), {.ignore_index = 2});
  };
  auto inputs = [&](const char* x, const char* column, const char* bias, const char* row) -> std::vector<Input> {
    return {
        {{b, s, h}, x},        {{h}, ""},        {{heads * d, h}, column}, {{kv * d, h}, column}, {{kv * d, h}, column},
        {{h, heads * d}, row}, {{f, h}, column}, {{f, h}, column},         {{f}, bias},           {{h, f}, row},
        {{v, h}, column}};
  };
  auto expected = by_differences(inputs("", "", "", ""), block);
  CHECK(difference(by_record("x=1", inputs("", "", "", ""), block), expected) < 1e-8);
  struct Case {
    const char *mesh, *x, *column, *bias, *row;
  };
  const Case cases[] = {
      {"dp=2", "dp=Shard(0)", "", "", ""},
      {"tp=2", "", "tp=Shard(0)", "tp=Shard(0)", "tp=Shard(1)"},
      {"tp=3", "tp=Shard(1)", "tp=Shard(0)", "tp=Shard(0)", "tp=Shard(1)"},
      {"dp=2,tp=2", "dp=Shard(0)", "tp=Shard(0)", "tp=Shard(0)", "tp=Shard(1)"},
      {"dp=2,tp=2", "dp=Shard(0) tp=Shard(1)", "tp=Shard(0) dp=Shard(0)", "tp=Shard(0)", "tp=Shard(1) dp=Shard(0)"}};
  for (const Case& c : cases) {
    INFO(c.mesh << " " << c.x << ", columns " << c.column);
    CHECK(difference(by_record(c.mesh, inputs(c.x, c.column, c.bias, c.row), block), expected) < 1e-8);
  }
}
