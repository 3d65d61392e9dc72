// Against PyTorch: products, attention with masks, and losses, with their gradients. torch_ops_products.py wrote the
// reference values.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ops/cards.h"
#include "tests/autograd.h"
#include "tests/ops/helpers.h"

using namespace dtensor;

namespace {

using Json = nlohmann::ordered_json;
using Values = std::vector<double>;

NamedValues attributes_of(const Json& j) {
  NamedValues a;
  for (const auto& [name, v] : j.items()) {
    if (v.is_boolean())
      a.set(name, v.get<bool>());
    else if (v.is_number_integer())
      a.set(name, v.get<int64_t>());
    else if (v.is_number())
      a.set(name, v.get<double>());
    else
      a.set(name, v.get<std::string>());
  }
  return a;
}

Tensor tensor_of(const Json& j, DType dtype) {
  std::vector<int64_t> sizes = j["shape"];
  Shape shape(sizes.begin(), sizes.end());
  Values v = j["values"];
  if (dtype == DType::f64) return Tensor::of<double>(shape, v);
  if (dtype == DType::f32) return Tensor::of<float>(shape, std::vector<float>(v.begin(), v.end()));
  Tensor t = Tensor::of<int64_t>(shape, std::vector<int64_t>(v.begin(), v.end()));
  if (dtype == DType::i64) return t;
  OneRank one;
  return ops::cast(one(t), DType::boolean).local();
}

// The output, then the gradient of each floating input.
std::vector<Values> run(const Json& c, DType dtype) {
  OneRank one;
  testing::Autograd autograd(*one.rank);
  std::vector<DistributedTensor> x;
  for (const Json& t : c["inputs"]) {
    std::string kind = t["dtype"];
    x.push_back(one(tensor_of(t, kind == "float" ? dtype : kind == "int" ? DType::i64 : DType::boolean)));
    if (kind == "float") autograd.watch(x.back());
  }
  std::vector<const DistributedTensor*> inputs;
  for (const DistributedTensor& t : x) inputs.push_back(&t);
  DistributedTensor y = ops::call_function(c["op"].get<std::string>(), inputs, attributes_of(c["attributes"]))[0];
  Tensor dy = tensor_of(c["of_output"], dtype);
  check(y.shape() == dy.shape(), "the output is {}, not {}", to_string(y.shape()), to_string(dy.shape()));
  autograd.backward(ops::sum(ops::mul(y, one(dy))));
  std::vector<Values> results{numbers(y.local())};
  for (const DistributedTensor& t : x)
    if (is_floating(t.dtype())) results.push_back(numbers(autograd.gradient(t).full_tensor()));
  return results;
}

// The norm of the difference over the norm of what is expected, or over 1 where that is zero.
double difference(const Values& got, const Values& expected) {
  check(got.size() == expected.size(), "{} values, not {}", got.size(), expected.size());
  double d = 0, scale = 0;
  for (size_t i = 0; i < got.size(); ++i) d += std::pow(got[i] - expected[i], 2), scale += expected[i] * expected[i];
  return std::sqrt(d / (scale > 0 ? scale : 1));
}

}  // namespace

TEST_CASE("as PyTorch: products, attention with masks, losses, and their gradients") {
  std::ifstream in(std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/ops_products.json");
  Json table = Json::parse(in);
  REQUIRE(table.size() > 50);
  for (const Json& c : table)
    for (DType dtype : {DType::f32, DType::f64}) {
      INFO(c["op"] << " " << c["attributes"] << " " << c["inputs"].dump() << " in " << name(dtype));
      double allowed = dtype == DType::f32 ? std::max(2e-6, 4 * c["float32_error"].get<double>()) : 1e-11;
      std::vector<Values> results = run(c, dtype), expected{c["output"]["values"]};
      for (const Json& g : c["gradients"])
        if (!g.is_null()) expected.push_back(g["values"]);
      REQUIRE(results.size() == expected.size());
      for (size_t i = 0; i < results.size(); ++i) {
        INFO((i ? fmt::format("gradient {}", i - 1) : "output"));
        CHECK(difference(results[i], expected[i]) <= allowed);
      }
    }
}
