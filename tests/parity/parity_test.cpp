// Against PyTorch: a small Llama's loss, gradients and training, and single ops. torch_llama.py and torch_ops.py wrote
// the reference values; nothing here needs PyTorch.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "dtensor/launch.h"
#include "nn/train/causal_lm.h"
#include "nn/train/gradients.h"
#include "tests/autograd.h"

using namespace dtensor;

namespace {

using Json = nlohmann::ordered_json;

std::string file(const std::string& name) { return std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/" + name; }

Json read(const std::string& name) {
  std::ifstream in(file(name));
  check(in.good(), "cannot read {}", file(name));
  return Json::parse(in);
}

// Differences that are small enough are shown only with DTENSOR_PARITY_VERBOSE=1 in the environment.
template <class... Args>
void note(fmt::format_string<Args...> text, Args&&... args) {
  if (std::getenv("DTENSOR_PARITY_VERBOSE")) fmt::print("{}\n", fmt::format(text, std::forward<Args>(args)...));
}

double norm(std::span<const double> v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return std::sqrt(sum);
}

// The norm of the difference over the norm of what is expected; the norm of the difference where that is zero.
double difference(std::span<const double> got, std::span<const double> expected) {
  check(got.size() == expected.size(), "{} values, not {}", got.size(), expected.size());
  std::vector<double> d;
  for (size_t i = 0; i < got.size(); ++i) d.push_back(got[i] - expected[i]);
  double scale = norm(expected);
  return norm(d) / (scale > 0 ? scale : 1);
}
double difference(double got, double expected) { return std::abs(got - expected) / std::abs(expected); }

std::vector<double> values(const Tensor& t) {
  Tensor c = t.contiguous();
  std::vector<double> v;
  for (int64_t i = 0; i < c.numel(); ++i) v.push_back(element(c, i));
  return v;
}

Shape shape_of(const Json& j) {
  Shape s;
  for (int64_t n : j) s.push_back(n);
  return s;
}

// --- the Llama

struct Reference {
  Json json = read("llama.json");
  nn::LlamaConfig config = nn::LlamaConfig::from_json(json["config"]);
  nn::LlamaTrainingOptions options;
  std::vector<double> float64, float32;  // gradients, by offset

  Reference() {
    const Json& t = json["training"];
    options = {.seed = t["seed"],
               .steps = t["steps"],
               .lr = t["lr"],
               .warmup_steps = t["warmup_steps"],
               .clip = t["clip"],
               .adamw = {.beta1 = t["beta1"], .beta2 = t["beta2"], .eps = t["eps"], .weight_decay = t["weight_decay"]}};
    size_t n = json["gradients"]["elements"];
    std::vector<float> v(2 * n);  // little-endian, as every machine that this runs on
    std::ifstream in(file(json["gradients"]["file"]), std::ios::binary);
    in.read(reinterpret_cast<char*>(v.data()), std::streamsize(v.size() * sizeof(float)));
    check(in.gcount() == std::streamsize(v.size() * sizeof(float)), "{} gradients were read, not 2 times {}",
          size_t(in.gcount()) / sizeof(float), n);
    float64.assign(v.begin(), v.begin() + int64_t(n));
    float32.assign(v.begin() + int64_t(n), v.end());
  }

  nn::PackedText::Batch batch(const DeviceMesh& mesh, size_t step) const {
    auto tokens = [&](const char* which) {
      std::vector<int64_t> v;
      const Json& rows = json["batches"][step][which];
      for (const Json& row : rows) v.insert(v.end(), row.begin(), row.end());
      if (std::string(which) == "targets")
        std::replace(v.begin(), v.end(), json["ignore_index"].get<int64_t>(), nn::ignored_target);
      Shape shape{int64_t(rows.size()), int64_t(rows[0].size())};
      return DistributedTensor::distribute(Tensor::of<int64_t>(shape, v), mesh, nn::batch_layout(mesh.shape()));
    };
    return {tokens("inputs"), tokens("targets")};
  }
};

nn::ParallelPlan plan_of(const std::string& name) {
  return name.empty() ? nn::ParallelPlan()
                      : nn::ParallelPlan::load(std::string(DTENSOR_SOURCE_DIR) + "/examples/plans/" + name);
}

struct Pass {
  double loss = 0;
  std::vector<std::string> names;
  std::vector<Shape> shapes;
  std::vector<std::vector<double>> weights, gradients;
};

// One forward and backward pass over batch 0; the last rank's view.
Pass forward_backward(const Reference& reference, const std::string& mesh_shape, const std::string& plan) {
  Pass pass;
  MeshShape shape = MeshShape::parse(mesh_shape);
  launch(shape.world(), [&](Rank& rank) {
    DeviceMesh mesh(rank, shape);
    nn::LlamaForCausalLM model(mesh, reference.config);
    plan_of(plan).apply(model);
    nn::materialize(model, reference.options.seed);
    std::vector<nn::Parameter*> parameters = model.parameters();
    testing::Autograd autograd(rank);
    nn::watch_parameters(autograd, parameters);
    nn::PackedText::Batch batch = reference.batch(mesh, 0);
    DistributedTensor loss =
        ops::cross_entropy(model(batch.inputs), batch.targets, {.ignore_index = nn::ignored_target});
    autograd.backward(loss);
    std::vector<DistributedTensor> gradients = nn::reduce_gradients(autograd, parameters);

    NoGrad scope(rank);
    Pass mine{loss.item(), {}, {}, {}, {}};
    for (size_t i = 0; i < parameters.size(); ++i) {
      mine.names.push_back(parameters[i]->path());
      mine.shapes.push_back(parameters[i]->shape());
      mine.weights.push_back(values(parameters[i]->stored().full_tensor()));
      mine.gradients.push_back(values(gradients[i].full_tensor()));
    }
    if (rank.rank() == shape.world() - 1) pass = std::move(mine);
  });
  return pass;
}

void check_pass(const std::string& mesh, const std::string& plan) {
  Reference reference;
  Pass pass = forward_backward(reference, mesh, plan);
  const Json& parameters = reference.json["parameters"];
  REQUIRE(pass.names.size() == parameters.size());
  double loss = reference.json["loss"]["float64"], loss32 = reference.json["loss"]["float32"], worst = 0, worst32 = 0;
  for (const Json& p : parameters) {
    std::string name = p["name"];
    INFO(name);
    size_t i = size_t(std::find(pass.names.begin(), pass.names.end(), name) - pass.names.begin());
    REQUIRE(i < pass.names.size());
    REQUIRE(to_string(pass.shapes[i]) == to_string(shape_of(p["shape"])));
    // Where this fails, the initial weights are no longer those of torch_llama.py: nothing below can hold.
    const std::vector<double>& w = pass.weights[i];
    const Json& expected = p["weight"];
    REQUIRE(w.front() == expected["first"].get<double>());
    REQUIRE(w.back() == expected["last"].get<double>());
    REQUIRE(norm(w) == Approx(std::sqrt(expected["sum_squares"].get<double>())).epsilon(1e-12));

    size_t at = p["offset"];
    auto part = [&](const std::vector<double>& all) { return std::span(all).subspan(at, w.size()); };
    double to_truth = difference(pass.gradients[i], part(reference.float64)),
           to_float32 = difference(pass.gradients[i], part(reference.float32));
    note("{} {}: {:.1e} from float64 (PyTorch's float32: {:.1e}), {:.1e} from float32", mesh, name, to_truth,
         p["float32_error"].get<double>(), to_float32);
    CHECK(to_float32 < 1e-4);  // the promise
    CHECK(to_truth < 3e-6);    // what float32 allows: PyTorch's own run is up to 1e-6 away
    worst = std::max(worst, to_truth), worst32 = std::max(worst32, to_float32);
  }
  note("{}: loss {:.9g}, {:.1e} from float64, {:.1e} from float32; gradients up to {:.1e} and {:.1e}", mesh, pass.loss,
       difference(pass.loss, loss), difference(pass.loss, loss32), worst, worst32);
  CHECK(difference(pass.loss, loss32) < 1e-5);
  CHECK(difference(pass.loss, loss) < 1e-6);
}

void check_training(const std::string& mesh_shape, const std::string& plan) {
  Reference reference;
  std::vector<nn::Trainer::Step> steps;
  MeshShape shape = MeshShape::parse(mesh_shape);
  launch(shape.world(), [&](Rank& rank) {
    DeviceMesh mesh(rank, shape);
    nn::LlamaTraining training(mesh, reference.config, plan_of(plan), reference.options);
    std::vector<nn::Trainer::Step> mine;
    for (size_t step = 0; step < size_t(reference.options.steps); ++step)
      mine.push_back(training.trainer.step(reference.batch(mesh, step)));
    if (rank.rank() == shape.world() - 1) steps = std::move(mine);
  });
  int clipped = 0;
  for (const char* run : {"float32", "float64"}) {
    const Json& expected = reference.json["steps"][run];
    REQUIRE(steps.size() == expected.size());
    for (size_t i = 0; i < steps.size(); ++i) {
      double loss = difference(steps[i].loss, expected[i]["loss"]),
             grad_norm = difference(steps[i].grad_norm, expected[i]["grad_norm"]);
      INFO(run << " step " << steps[i].step << ": loss " << steps[i].loss << ", " << loss
               << " from PyTorch's; gradient norm " << grad_norm);
      note("{} step {}: loss {:.1e}, gradient norm {:.1e} from {}", mesh_shape, steps[i].step, loss, grad_norm, run);
      CHECK(loss < 1e-5);
      CHECK(grad_norm < 1e-5);
      CHECK(difference(steps[i].lr, expected[i]["lr"]) < 1e-12);
      clipped += steps[i].grad_norm > reference.options.clip;
    }
  }
  CHECK(clipped > 0);  // both ways are tested
  CHECK(clipped < 2 * int(steps.size()));
}

// --- single ops

using Tensors = std::vector<DistributedTensor>;
using Call = std::function<DistributedTensor(const Tensors& x, const Json& attributes)>;

const std::map<std::string, Call>& calls() {
  static const auto unary = [](auto f) { return [f](const Tensors& x, const Json&) { return f(x[0]); }; };
  static const auto binary = [](auto f) { return [f](const Tensors& x, const Json&) { return f(x[0], x[1]); }; };
  using X = const DistributedTensor&;
  static const std::map<std::string, Call> table{
      {"cross_entropy",
       [](const Tensors& x, const Json& a) {
         std::string r = a["reduction"];
         return ops::cross_entropy(x[0], x[1],
                                   {a["ignore_index"], r == "none"  ? ops::Reduction::none
                                                       : r == "sum" ? ops::Reduction::sum
                                                                    : ops::Reduction::mean});
       }},
      {"scaled_dot_product_attention",
       [](const Tensors& x, const Json& a) {
         return ops::scaled_dot_product_attention(x[0], x[1], x[2],
                                                  {.causal = a["causal"], .scale = a.value("scale", 0.0)});
       }},
      {"rms_norm", [](const Tensors& x, const Json& a) { return ops::rms_norm(x[0], x[1], a["eps"]); }},
      {"linear", [](const Tensors& x,
                    const Json&) { return ops::linear(x[0], x[1], x.size() > 2 ? x[2] : DistributedTensor()); }},
      {"embedding", binary([](X a, X b) { return ops::embedding(a, b); })},
      {"swiglu", binary(ops::swiglu)},
      {"matmul", binary(ops::matmul)},
      {"add", binary([](X a, X b) { return ops::add(a, b); })},
      {"mul", binary([](X a, X b) { return ops::mul(a, b); })},
      {"div", binary([](X a, X b) { return ops::div(a, b); })},
      {"gelu", unary([](X x) { return ops::gelu(x); })},
      {"silu", unary(ops::silu)},
      {"relu", unary(ops::relu)},
      {"sigmoid", unary(ops::sigmoid)},
      {"tanh", unary(ops::tanh)},
      {"exp", unary(ops::exp)},
      {"log", unary(ops::log)},
      {"sqrt", unary(ops::sqrt)},
      {"rsqrt", unary(ops::rsqrt)},
      {"abs", unary(ops::abs)},
      {"reciprocal", unary(ops::reciprocal)},
  };
  return table;
}

std::vector<double> values(const Json& tensor) { return tensor["values"].get<std::vector<double>>(); }

DistributedTensor tensor_of(const DeviceMesh& mesh, const Json& t, DType dtype) {
  Shape shape = shape_of(t["shape"]);
  std::vector<double> v = values(t);
  Tensor whole = dtype == DType::i64   ? Tensor::of<int64_t>(shape, std::vector<int64_t>(v.begin(), v.end()))
                 : dtype == DType::f32 ? Tensor::of<float>(shape, std::vector<float>(v.begin(), v.end()))
                                       : Tensor::of<double>(shape, v);
  return DistributedTensor::distribute(whole, mesh, Layout());
}

// The output, then the gradient of each floating input.
std::vector<std::vector<double>> run(const Json& c, DType dtype) {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "x=1");
  testing::Autograd autograd(*rank);
  Tensors x;
  for (const Json& t : c["inputs"]) {
    bool floating = t["dtype"] == "float";
    x.push_back(tensor_of(mesh, t, floating ? dtype : DType::i64));
    if (floating) autograd.watch(x.back());
  }
  DistributedTensor out = calls().at(c["op"])(x, c["attributes"]);
  check(to_string(out.shape()) == to_string(shape_of(c["output"]["shape"])), "the output is {}, not {}",
        to_string(out.shape()), c["output"]["shape"].dump());
  autograd.backward(ops::sum(ops::mul(out, tensor_of(mesh, c["of_output"], dtype))));
  std::vector<std::vector<double>> results{values(out.local())};
  for (const DistributedTensor& t : x)
    if (is_floating(t.dtype())) results.push_back(values(autograd.gradient(t).full_tensor()));
  return results;
}

}  // namespace

TEST_CASE("as PyTorch: loss and gradients of a Llama on one rank") { check_pass("dp=1", ""); }
TEST_CASE("as PyTorch: loss and gradients of a Llama with fsdp_tp.json on dp=2,tp=2") {
  check_pass("dp=2,tp=2", "fsdp_tp.json");
}
TEST_CASE("as PyTorch: five training steps on one rank") { check_training("dp=1", ""); }
TEST_CASE("as PyTorch: five training steps with fsdp_tp.json on dp=2,tp=2") {
  check_training("dp=2,tp=2", "fsdp_tp.json");
}

TEST_CASE("as PyTorch: ops and their gradients") {
  Json table = read("ops.json");
  REQUIRE(!table.empty());
  for (const Json& c : table) {
    // Where PyTorch's own float32 run is off, by cancellation (the tails of gelu and tanh), so may ours be.
    double rounding = c["float32_error"];
    for (DType dtype : {DType::f32, DType::f64}) {
      double allowed = dtype == DType::f32 ? std::max(2e-6, 4 * rounding) : std::max(1e-11, 8 * rounding * 0x1p-29);
      INFO(c["op"].get<std::string>() << " " << c["attributes"].dump() << " of " << c["inputs"][0]["shape"].dump()
                                      << " in " << name(dtype));
      std::vector<std::vector<double>> results = run(c, dtype), expected{values(c["output"])};
      for (const Json& g : c["gradients"])
        if (!g.is_null()) expected.push_back(values(g));
      REQUIRE(results.size() == expected.size());
      for (size_t i = 0; i < results.size(); ++i) {
        double d = difference(results[i], expected[i]);
        INFO((i ? fmt::format("gradient {}", i - 1) : "output")
             << ": " << d << " from PyTorch's " << Json(expected[i]).dump() << ", got " << Json(results[i]).dump());
        note("{} {} {} result {}: {:.1e} (PyTorch's float32: {:.1e})", c["op"].get<std::string>(),
             c["attributes"].dump(), name(dtype), i, d, rounding);
        CHECK(d <= allowed);
      }
    }
  }
}
