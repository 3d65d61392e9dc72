#include "nn/layers.h"

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Layers {
  std::shared_ptr<Rank> rank = Rank::single();
  DeviceMesh mesh{*rank, "x=1"};
  Root root{mesh};
  DistributedTensor input(const Shape& shape, int seed) {
    return DistributedTensor::distribute(f32(shape, seed), mesh, Layout());
  }
  std::vector<double> weight(Parameter& p) { return values(p.stored().local()); }
};

}  // namespace

TEST_CASE("Linear is x W^T + b") {
  Layers l;
  bool bias = GENERATE(false, true);
  Linear linear(l.root, "linear", 5, 3, bias, 0.3);
  CHECK(linear.kind() == "Linear");
  CHECK(linear.input_names == std::vector<std::string>{"input"});
  CHECK(linear.weight.path() == "linear.weight");
  CHECK(linear.weight.shape() == Shape{3, 5});
  CHECK(bool(linear.bias) == bias);
  CHECK(linear.find_parameter("bias") == linear.bias.get());
  materialize(l.root, 1);
  if (bias) linear.bias->stored().copy_(l.input({3}, 4));
  DistributedTensor x = l.input({2, 4, 5}, 2);
  DistributedTensor y = linear(x);
  CHECK(y.shape() == Shape{2, 4, 3});
  auto w = l.weight(linear.weight), b = bias ? l.weight(*linear.bias) : std::vector<double>(3), in = values(x.local());
  std::vector<double> expected;
  for (size_t r = 0; r < 8; ++r)
    for (size_t o = 0; o < 3; ++o) {
      double s = b[o];
      for (size_t i = 0; i < 5; ++i) s += in[r * 5 + i] * w[o * 5 + i];
      expected.push_back(s);
    }
  CHECK(difference(values(y.local()), expected) < 1e-6);
}

TEST_CASE("a Linear adds to a residual in one op, and in two where hooks or another forward come between") {
  struct Names : Observer {
    std::string list;
    void on_call(const CallEvent& e) override { list += (list.empty() ? "" : ", ") + std::string(e.op.name); }
  };
  for (bool bias : {false, true}) {
    Layers l;
    Linear linear(l.root, "linear", 5, 3, bias, 0.3);
    materialize(l.root, 1);
    DistributedTensor x = l.input({2, 4, 5}, 2), residual = l.input({2, 4, 3}, 3), dy = l.input({2, 4, 3}, 4);
    auto run = [&] {
      Autograd autograd(*l.rank);
      for (const DistributedTensor* each : {&x, &residual, &linear.weight.value()}) autograd.watch(*each);
      if (bias) autograd.watch(linear.bias->value());
      Names names;
      l.rank->add(names);
      DistributedTensor y = linear.add_to(residual, x);
      l.rank->remove(names);
      autograd.record.backward({y}, {dy});
      std::vector<std::vector<double>> all{values(y.local()), values(autograd.gradient(x).local()),
                                           values(autograd.gradient(residual).local()),
                                           values(autograd.gradient(linear.weight.value()).local())};
      if (bias) all.push_back(values(autograd.gradient(linear.bias->value()).local()));
      return std::pair(names.list, all);
    };
    auto [plain, one] = run();
    CHECK(plain == "linear_add");
    linear.add_after_hook([](Module&, std::vector<DistributedTensor*>&) {});
    auto [hooked, two] = run();
    CHECK(hooked == "linear, add");
    CHECK(one == two);
    Linear other(l.root, "other", 5, 3, false, 0.3);
    materialize(l.root, 1);
    CHECK(other.is_plain());
    other.replace_forward([&](const DistributedTensor&) { return dy; });
    CHECK(!other.is_plain());
    CHECK(values(other.add_to(residual, x).local()) == values((residual + dy).local()));
  }
}

TEST_CASE("Embedding looks rows up") {
  Layers l;
  Embedding table(l.root, "table", 7, 3, 0.3);
  CHECK(table.kind() == "Embedding");
  CHECK(table.weight.shape() == Shape{7, 3});
  materialize(l.root, 1);
  const std::vector<int64_t> ids{6, 0, 6, 3};
  DistributedTensor y = table(DistributedTensor::distribute(Tensor::of<int64_t>({2, 2}, ids), l.mesh, Layout()));
  CHECK(y.shape() == Shape{2, 2, 3});
  auto w = l.weight(table.weight), v = values(y.local());
  for (size_t i = 0; i < ids.size(); ++i)
    for (size_t j = 0; j < 3; ++j) CHECK(v[i * 3 + j] == w[size_t(ids[i]) * 3 + j]);
  CHECK_THAT(error_of([&] { table(DistributedTensor::distribute(Tensor::of<int64_t>({1}, {7}), l.mesh, Layout())); }),
             Contains("[embedding] id 7 is outside the vocabulary [0,7)"));
}

TEST_CASE("RMSNorm divides by the root of the mean square") {
  Layers l;
  RMSNorm norm(l.root, "norm", 6, 0.1);
  CHECK(norm.kind() == "RMSNorm");
  materialize(l.root, 1);
  CHECK(l.weight(norm.weight) == std::vector<double>(6, 1));
  norm.weight.stored().copy_(l.input({6}, 4));
  DistributedTensor x = l.input({3, 6}, 2);
  auto w = l.weight(norm.weight), in = values(x.local());
  std::vector<double> expected;
  for (size_t r = 0; r < 3; ++r) {
    double s = 0;
    for (size_t i = 0; i < 6; ++i) s += in[r * 6 + i] * in[r * 6 + i];
    for (size_t i = 0; i < 6; ++i) expected.push_back(in[r * 6 + i] / std::sqrt(s / 6 + 0.1) * w[i]);
  }
  CHECK(difference(values(norm(x).local()), expected) < 1e-6);
}
