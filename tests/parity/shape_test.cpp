// Ops that move elements, against PyTorch: torch_shape.py wrote the reference values. All of them are exact.
#include <fmt/format.h>
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

double number(const Json& j) {
  if (!j.is_string()) return j.get<double>();
  std::string s = j;
  return s == "nan" ? NAN : s == "inf" ? INFINITY : s == "-inf" ? -INFINITY : -0.0;
}

Tensor tensor_of(const Json& j) {
  Shape shape;
  for (int64_t n : j["shape"]) shape.push_back(n);
  std::vector<double> v;
  for (const Json& x : j["values"]) v.push_back(number(x));
  if (j["dtype"] == "f64") return Tensor::of<double>(shape, v);
  if (j["dtype"] == "i64") return Tensor::of<int64_t>(shape, std::vector<int64_t>(v.begin(), v.end()));
  Tensor t(std::make_shared<Allocator>(), DType::boolean, shape);
  std::copy(v.begin(), v.end(), t.data<bool>());
  return t;
}

NamedValues attributes_of(const Json& values) {
  NamedValues a;
  for (const auto& [name, v] : values.items()) {
    if (v.is_array())
      a.set(name, v.get<std::vector<int64_t>>());
    else
      a.set(name, v.get<int64_t>());
  }
  return a;
}

// Tells -0 from 0, but not in what may be a sum of one rank's -0 and the others' 0.
std::string shown(const Tensor& t, bool sharded) {
  std::string text = fmt::format("{}{}", name(t.dtype()), to_string(t.shape()));
  for (int64_t i = 0; i < t.numel(); ++i) text += fmt::format(" {}", element(t, i) + (sharded ? 0.0 : -0.0));
  return text;
}

// The outputs, and the gradients of the floating inputs, laid out by `layout` of each input's dimensions.
std::vector<std::string> run(const DeviceMesh& mesh, const Json& c, Layout (*layout)(int dims)) {
  testing::Autograd autograd(mesh.rank_state());
  bool sharded = mesh.shape().world() > 1;
  std::vector<DistributedTensor> x;
  std::vector<const DistributedTensor*> pointers;
  for (const Json& t : c["inputs"]) {
    Tensor whole = tensor_of(t);
    x.push_back(DistributedTensor::distribute(whole, mesh, layout(whole.dims())));
    if (is_floating(whole.dtype())) autograd.watch(x.back());
  }
  for (const DistributedTensor& t : x) pointers.push_back(&t);
  auto outputs = ops::call_function(c["op"].get<std::string>(), pointers, attributes_of(c["values"]));
  std::vector<std::string> results;
  DistributedTensor loss;
  for (size_t i = 0; i < outputs.size(); ++i) {
    results.push_back(shown(outputs[i].full_tensor().contiguous(), sharded));
    if (i >= c["given"].size() || c["given"][i].is_null()) continue;
    auto given = DistributedTensor::distribute(tensor_of(c["given"][i]), mesh, Layout());
    DistributedTensor part = ops::sum(ops::mul(outputs[i], given));
    loss = loss.defined() ? ops::add(loss, part) : part;
  }
  if (!loss.defined()) return results;
  autograd.backward(loss);
  for (const DistributedTensor& t : x) {
    if (!is_floating(t.dtype())) continue;
    DistributedTensor g = autograd.gradient(t);
    results.push_back(shown(
        g.defined() ? g.full_tensor().contiguous() : Tensor::zeros(std::make_shared<Allocator>(), t.dtype(), t.shape()),
        sharded));
  }
  return results;
}

std::vector<std::string> expected(const Json& c, bool sharded) {
  std::vector<std::string> results;
  for (const Json& t : c["outputs"]) results.push_back(shown(tensor_of(t), sharded));
  bool any = std::any_of(c["given"].begin(), c["given"].end(), [](const Json& g) { return !g.is_null(); });
  for (const Json& g : c["gradients"])
    if (any && !g.is_null()) results.push_back(shown(tensor_of(g), sharded));
  return results;
}

Json table() {
  std::ifstream in(std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/ops_shape.json");
  return Json::parse(in);
}

}  // namespace

TEST_CASE("as PyTorch: ops that move elements, and their gradients") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "x=1");
  for (const Json& c : table()) {
    INFO(c["op"].get<std::string>() << " " << c["values"].dump() << " of " << c["inputs"].dump());
    CHECK(run(mesh, c, [](int) { return Layout(); }) == expected(c, false));
  }
}

TEST_CASE("as PyTorch: ops that move elements, on sharded operands") {
  Json all = table();
  constexpr Layout (*layouts[])(int) = {[](int dims) { return dims ? Layout{Shard(0)} : Layout(); },
                                        [](int dims) { return dims ? Layout{Shard(dims - 1)} : Layout(); },
                                        [](int) { return Layout{Partial()}; }};
  std::vector<std::string> wrong;
  launch(3, [&](Rank& rank) {
    DeviceMesh mesh(rank, "x=3");
    for (const Json& c : all)
      for (size_t l = 0; l < 3; ++l) {
        if (l == 2 && c["inputs"].dump().find("bool") != std::string::npos) continue;
        if (l == 2 && c["inputs"].dump().find("inf") != std::string::npos) continue;  // inf - inf
        std::vector<std::string> got;
        try {
          got = run(mesh, c, layouts[l]);
        } catch (const Error& e) {  // a view that cannot keep its sharding, refused on all ranks
          if (std::string(e.what()).find("cannot keep its sharding") != std::string::npos) continue;
          throw;
        }
        if (rank.rank() == 0 && got != expected(c, true))
          wrong.push_back(fmt::format("{} {} {}: {}, not {}", l, c["op"].dump(), c["values"].dump(),
                                      fmt::join(got, "; "), fmt::join(expected(c, true), "; ")));
      }
  });
  INFO(fmt::format("{}", fmt::join(wrong, "\n")));
  CHECK(wrong.empty());
}
