// Reductions, statistics, order, scans, softmax and layer norm against PyTorch: values, types, gradients, NaN,
// infinities, ties and empty inputs, whole and sharded. torch_reductions.py wrote the reference values.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dtensor/launch.h"
#include "ops/all.h"
#include "ops/cards.h"
#include "tests/autograd.h"

using namespace dtensor;

namespace {

using Json = nlohmann::ordered_json;

double number(const Json& v) { return v.is_string() ? std::stod(v.get<std::string>()) : v.get<double>(); }

Tensor tensor_of(const Json& t) {
  std::vector<int64_t> sizes = t["shape"];
  Shape shape(sizes.begin(), sizes.end());
  std::string type = t["dtype"];
  DType dtype = type == "float" ? DType::f64 : type == "i64" ? DType::i64 : DType::boolean;
  Tensor out(std::make_shared<Allocator>(), dtype, shape);
  for (int64_t i = 0; i < out.numel(); ++i) {
    double v = number(t["values"][size_t(i)]);
    if (dtype == DType::f64)
      out.data<double>()[i] = v;
    else if (dtype == DType::i64)
      out.data<int64_t>()[i] = int64_t(v);
    else
      out.data<bool>()[i] = v != 0;
  }
  return out;
}

NamedValues attributes_of(const Json& object) {
  NamedValues a;
  for (const auto& [name, v] : object.items()) {
    if (v.is_boolean())
      a.set(name, v.get<bool>());
    else if (v.is_array())
      a.set(name, v.get<std::vector<int64_t>>());
    else if (v.is_number_integer())
      a.set(name, v.get<int64_t>());
    else
      a.set(name, number(v));
  }
  return a;
}

// "" where they agree; NaN equals NaN.
std::string difference(const Tensor& got, const Json& expected_json) {
  Tensor expected = tensor_of(expected_json), x = got.contiguous();
  if (x.dtype() != expected.dtype() || x.shape() != expected.shape())
    return fmt::format("{}{}, not {}{}", name(x.dtype()), to_string(x.shape()), name(expected.dtype()),
                       to_string(expected.shape()));
  for (int64_t i = 0; i < x.numel(); ++i) {
    double a = element(x, i), b = element(expected, i);
    if (a == b || (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= 1e-7 * std::max(1.0, std::abs(b))) continue;
    return fmt::format("element {} is {}, not {}", i, a, b);
  }
  return "";
}

// The inputs, sharded along dimension d where they have one that large; an error that says what is wrong.
void run(const DeviceMesh& mesh, const Json& c, int d) {
  testing::Autograd autograd(mesh.rank_state());
  std::vector<DistributedTensor> x;
  std::vector<const DistributedTensor*> pointers;
  for (const Json& t : c["inputs"]) {
    Tensor whole = tensor_of(t);
    x.push_back(
        DistributedTensor::distribute(whole, mesh, d < whole.dims() && x.empty() ? Layout{Shard(d)} : Layout()));
  }
  for (const DistributedTensor& t : x) {
    if (is_floating(t.dtype())) autograd.watch(t);
    pointers.push_back(&t);
  }
  auto outputs = ops::call_function(c["function"].get<std::string>(), pointers, attributes_of(c["attributes"]));
  auto compare = [&](const std::string& what, const Tensor& got, const Json& expected) {
    std::string wrong = difference(got, expected);
    check(wrong.empty(), "{} {} of {} (Shard({}) of {}): {}: {}", c["function"].dump(), c["attributes"].dump(),
          c["inputs"].dump(), d, mesh.shape().world(), what, wrong);
  };
  for (size_t o = 0; o < outputs.size(); ++o)
    compare(fmt::format("output {}", o), outputs[o].full_tensor(), c["outputs"][o]);
  if (!c.contains("gradients")) return;
  DistributedTensor weights = DistributedTensor::distribute(tensor_of(c["weights"]), mesh, Layout());
  autograd.backward(ops::sum(ops::mul(outputs[0], weights)).redistribute(Layout()));
  for (size_t i = 0, g = 0; i < x.size(); ++i)
    if (is_floating(x[i].dtype()))
      compare(fmt::format("gradient {}", i), autograd.gradient(x[i]).full_tensor(), c["gradients"][g++]);
}

Json cases() {
  std::ifstream in(std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/ops_reductions.json");
  return Json::parse(in);
}

}  // namespace

TEST_CASE("as PyTorch: reductions, statistics, order, scans, softmax, layer norm") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "x=1");
  for (const Json& c : cases()) CHECK_NOTHROW(run(mesh, c, 0));
}

TEST_CASE("as PyTorch: the same, every dimension sharded over three ranks") {
  Json table = cases();
  for (int d = 0; d < 3; ++d)
    CHECK_NOTHROW(launch(3, [&](Rank& rank) {
      DeviceMesh mesh(rank, "x=3");
      for (const Json& c : table)
        if (d < int(c["inputs"][0]["shape"].size())) run(mesh, c, d);
    }));
}
