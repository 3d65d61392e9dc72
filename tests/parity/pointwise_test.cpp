// Element-wise functions against PyTorch, called by their names: torch_pointwise.py wrote the reference values.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dtensor/launch.h"
#include "ops/cards.h"
#include "ops/pointwise/binary.h"
#include "ops/reduction/reduce.h"
#include "tests/autograd.h"

using namespace dtensor;

namespace {

using Json = nlohmann::ordered_json;

double number(const Json& j) { return j.is_string() ? std::stod(j.get<std::string>()) : j.get<double>(); }

std::vector<double> numbers(const Json& tensor) {
  std::vector<double> v;
  for (const Json& x : tensor["values"]) v.push_back(number(x));
  return v;
}
std::vector<double> numbers(const Tensor& t) {
  Tensor whole = t.contiguous();
  std::vector<double> v;
  for (int64_t i = 0; i < whole.numel(); ++i) v.push_back(element(whole, i));
  return v;
}
Shape shape_of(const Json& tensor) {
  Shape s;
  for (int64_t n : tensor["shape"]) s.push_back(n);
  return s;
}
DType type_of(const Json& tensor, DType floating) {
  return tensor["dtype"] == "float" ? floating : tensor["dtype"] == "int" ? DType::i64 : DType::boolean;
}

DistributedTensor tensor_of(const DeviceMesh& mesh, const Json& t, DType floating) {
  Tensor whole = Tensor::of<double>(shape_of(t), numbers(t));
  return ops::cast(DistributedTensor::distribute(whole, mesh, Layout()), type_of(t, floating));
}

// The gradient that torch_pointwise.py gives.
DistributedTensor of_output(const DeviceMesh& mesh, const Shape& shape, DType dtype) {
  std::vector<double> v;
  for (int64_t i = 0; i < numel(shape); ++i)
    v.push_back(std::round(64 * std::sin(1 + 2.3 * double(i) + 0.37 * 11)) / 64);
  return ops::cast(DistributedTensor::distribute(Tensor::of<double>(shape, v), mesh, Layout()), dtype);
}

NamedValues attributes_of(const Json& list) {
  NamedValues a;
  for (const auto& [name, v] : list.items()) {
    if (v.is_number_integer())
      a.set(name, v.get<int64_t>());
    else if (v.is_string() && std::string("none tanh").find(v) != std::string::npos)
      a.set(name, v.get<std::string>());
    else
      a.set(name, number(v));
  }
  return a;
}

// Where they differ by more than rounding, relative above 1 and absolute below; NaN and infinities must agree.
std::string difference(const std::vector<double>& got, const std::vector<double>& expected, double tolerance) {
  if (got.size() != expected.size()) return fmt::format("{} elements, not {}", got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    double x = got[i], y = expected[i];
    if (x == y || (std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= tolerance * std::max(1.0, std::abs(y)))
      continue;
    return fmt::format("element {} is {}, not {}", i, x, y);
  }
  return "";
}

void check_case(const Json& c, DType dtype) {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "x=1");
  testing::Autograd autograd(*rank);
  std::vector<DistributedTensor> x;
  std::vector<const DistributedTensor*> inputs;
  for (const Json& t : c["inputs"]) {
    x.push_back(tensor_of(mesh, t, dtype));
    if (is_floating(x.back().dtype())) autograd.watch(x.back());
  }
  for (const DistributedTensor& t : x) inputs.push_back(&t);
  DistributedTensor out =
      ops::call_function(c["function"].get<std::string>(), inputs, attributes_of(c["attributes"]))[0];
  double tolerance = dtype == DType::f32 ? 3e-6 : 1e-11;
  CHECK(to_string(out.shape()) == to_string(shape_of(c["output"])));
  CHECK(name(out.dtype()) == name(type_of(c["output"], dtype)));
  std::vector<double> got = numbers(out.local()), expected = numbers(c["output"]);
  CHECK(difference(got, expected, tolerance) == "");
  for (size_t i = 0; i < got.size(); ++i)  // the sign of zero
    if (x.size() == 1 && expected[i] == 0 && got[i] == 0) CHECK(std::signbit(got[i]) == std::signbit(expected[i]));
  if (!c.contains("gradients")) return;
  autograd.backward(ops::sum(ops::mul(out, of_output(mesh, out.shape(), dtype))));
  for (size_t i = 0; i < x.size(); ++i) {
    if (c["gradients"][i].is_null()) continue;
    DistributedTensor g = autograd.gradient(x[i]);
    std::vector<double> zero(size_t(numel(x[i].shape())));  // none is zero
    INFO("gradient " << i);
    CHECK(difference(g.defined() ? numbers(g.local()) : zero, numbers(c["gradients"][i]), tolerance) == "");
  }
}

}  // namespace

TEST_CASE("as PyTorch: element-wise functions and their gradients, of numbers, ties, zeros, infinities and NaN") {
  std::ifstream in(std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/ops_pointwise.json");
  Json table = Json::parse(in);
  REQUIRE(table.size() > 150);
  for (const Json& c : table)
    for (DType dtype : {DType::f32, DType::f64}) {
      INFO(c["function"].get<std::string>()
           << " " << c["attributes"].dump() << " of " << c["inputs"].dump() << " in " << name(dtype));
      check_case(c, dtype);
    }
}
