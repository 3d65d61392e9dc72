// Run-time values are no keys: a changing number costs no decision; decisions and specifications are bounded.
#include <cmath>
#include <fstream>
#include <map>

#include "dtensor/creation.h"
#include "ops/testing/simulation.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;
using testing::Case;

namespace {

std::vector<Tensor> run(const OneRank& one, const Case& c, const Attributes& attributes) {
  std::vector<DistributedTensor> in;
  for (const Tensor& t : c.inputs) in.push_back(t.defined() ? one(t) : DistributedTensor());
  std::vector<const DistributedTensor*> pointers;
  for (const DistributedTensor& x : in) pointers.push_back(x.defined() ? &x : nullptr);
  std::vector<Tensor> out;
  for (const DistributedTensor& y : call_all(c.op, pointers, attributes)) out.push_back(y.local().contiguous());
  return out;
}

// Other run-time values of the attribute, of one class with its own.
std::vector<NamedValue> others(const NamedValue& value) {
  if (const auto* d = std::get_if<double>(&value))
    return *d == 0 || !std::isfinite(*d) ? std::vector<NamedValue>{} : std::vector<NamedValue>{*d / 2, *d * 2};
  if (const auto* i = std::get_if<int64_t>(&value)) return {*i - 1, *i + 1};
  if (auto* numbers = std::get_if<std::vector<double>>(&value)) {
    std::vector<double> halves = *numbers;
    for (double& d : halves) d /= 2;
    return {halves};
  }
  std::vector<int64_t> list = std::get<std::vector<int64_t>>(value);
  for (int64_t& i : list) i += 1;
  return {list};
}

// Resident memory of this process.
int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * 4096;
}

int rules_made = 0;
Rule counted_rule(std::span<const Shape* const>, const Attributes&) {
  ++rules_made;
  return {"...->..."};
}
void copy_kernel(const Context&, std::span<const Tensor> in, std::span<Tensor> out) { copy(in[0], out[0]); }

}  // namespace

TEST_CASE("numbers are no keys: two calls with different values of one class are one decision, and both are right") {
  std::map<std::string, int> compared;  // by card and attribute
  for (const Op* op : ops::cards())
    for (const Case& c : testing::cases_of(*op, {}, 1)) {
      const NamedValues values = c.attributes.values();
      for (const auto& [name, value] : values.list()) {
        if (!c.attributes.is_run_time(name)) continue;
        int& count = compared[std::string(op->name) + "." + name];
        for (const NamedValue& other : others(value)) {
          Attributes attributes = c.attributes;
          attributes.set(name, other);
          INFO(op->name << " " << c.name << ", then " << attributes.to_string());
          std::vector<Tensor> expected;
          try {
            expected = run(OneRank(), c, attributes);
          } catch (const Error&) {
            continue;  // a fraction beside integers, a start behind the end
          }
          OneRank one;
          run(one, c, c.attributes);
          size_t calls = cached_calls(*one.rank);
          std::vector<Tensor> got = run(one, c, attributes);
          CHECK(cached_calls(*one.rank) == calls);
          for (size_t o = 0; o < expected.size(); ++o) CHECK(testing::same_bits(got[o], expected[o]));
          ++count;
        }
      }
    }
  for (const auto& [name, count] : compared) {
    INFO(name);
    CHECK(count > 0);
  }
  CHECK(compared.size() > 40);
}

TEST_CASE("numbers of different classes are different calls: what a product with 0, -1, inf or NaN passes") {
  OneRank one;
  DistributedTensor x = one({4});
  size_t before = cached_calls(*one.rank);
  for (double v :
       {2.0, 0.5, 1e300, -1.0, -7.0, 0.0, -0.0, double(INFINITY), -double(INFINITY), double(NAN), double(NAN)})
    ops::mul(x, v);
  CHECK(cached_calls(*one.rank) == before + 6);
}

TEST_CASE("20,000 steps with a changing number and changing offsets: decisions and memory stay flat") {
  OneRank one;
  DistributedTensor x = one({64}), mask = ops::gt(x, 31.5), square = one({8, 8});
  auto step = [&](int64_t i) {
    double lr = 1e-3 / double(1 + i);
    float product = ops::mul(x, lr).local().data<float>()[63];
    REQUIRE(product == 63.0f * float(lr));
    REQUIRE(ops::narrow(x, 0, i % 32, 8).local().data<float>()[7] == float(i % 32 + 7));
    REQUIRE(ops::masked_fill(x, mask, double(i)).local().data<float>()[40] == float(i));
    REQUIRE(ops::select(x, 0, i % 64).local().data<float>()[0] == float(i % 64));
    REQUIRE(ops::roll(x, {i}, {0}).local().data<float>()[i % 64] == 0);
    ops::tril(square, i % 8);
    ops::add(ops::lerp(x, x, 1 / double(2 + i)), double(i + 1));
  };
  for (int64_t i = 0; i < 1000; ++i) step(i);
  size_t calls = cached_calls(*one.rank), specs = one.mesh.interned();
  int64_t resident = resident_bytes();
  for (int64_t i = 1000; i < 20000; ++i) step(i);
  CHECK(cached_calls(*one.rank) == calls);
  CHECK(one.mesh.interned() == specs);
  CHECK(double(resident_bytes()) < 1.2 * double(resident));
}

TEST_CASE("a bad run-time value is an error of every call, also of one whose decision is cached") {
  OneRank one;
  DistributedTensor x = one({4, 5});
  auto slice = [&](int64_t start) { return call(ops::slice_op, {&x}, ops::Part{{1, start, 1}, 2}); };
  CHECK(numbers(slice(3).local())[0] == 3);
  for (int64_t start : {-1, 4})
    CHECK_THROWS_WITH(slice(start), Contains("[slice] 2 elements, 1 apart, from ") &&
                                        Contains("on are not within dimension 1 of size 5"));
  auto select = [&](int64_t index) { return call(ops::select_op, {&x}, ops::At{0, index}); };
  CHECK(numbers(select(3).local())[0] == 15);
  CHECK_THROWS_WITH(select(4), "[select] index 4 is outside [0,4) of dimension 0");
}

TEST_CASE("200,000 lengths: decisions and specifications are bounded, and what is used stays") {
  auto rank = Rank::recorded(1);
  DeviceMesh mesh(*rank, "x=1");
  const Op counted = {.name = "counted", .rule = counted_rule, .cpu = copy_kernel};
  rules_made = 0;
  DistributedTensor held = empty(mesh, {DType::f32, {7}});
  int64_t resident = 0;
  size_t most_calls = 0, most_specs = 0;
  for (int64_t n = 1; n <= 200000; ++n) {
    DistributedTensor x = empty(mesh, {DType::f32, {n, 3}});
    ops::add(x, x);
    call(counted, {&held});
    most_calls = std::max(most_calls, cached_calls(*rank)), most_specs = std::max(most_specs, mesh.interned());
    if (n == 50000) resident = resident_bytes();
  }
  CHECK(most_calls == max_cached_calls);
  CHECK(most_specs <= max_cached_calls + DeviceMesh::max_unheld_specs + 8);  // and those of tensors
  CHECK(rules_made == 1);
  CHECK(double(resident_bytes()) < 1.2 * double(resident));
}

TEST_CASE("an observer may make calls, more than are cached, while a call is told to it") {
  class Many : public Observer {
   public:
    void on_call(const CallEvent& e) override {
      if (e.op.name != "matmul") return;
      for (int64_t n = 1; n <= int64_t(max_cached_calls) + 10; ++n) {
        DistributedTensor x = empty(e.outputs[0].mesh(), {DType::f32, {n}});
        ops::add(x, x);
      }
      factors.assign(e.factors.begin(), e.factors.end());
    }
    std::vector<Context::FactorRange> factors;
  };
  auto rank = Rank::recorded(1);
  DeviceMesh mesh(*rank, "x=1");
  DistributedTensor x = empty(mesh, {DType::f32, {4, 4}});
  Many many;
  rank->add(many);
  ops::matmul(x, x);
  rank->remove(many);
  CHECK(many.factors.size() == 3);
}
