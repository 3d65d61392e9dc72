#include "dtensor/creation.h"

#include <catch2/catch.hpp>

#include <cstring>

#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

namespace {

const RandomStream stream{5, "test", "x"};

struct Case {
  const char* name;
  int dims;  // -1: any
  std::vector<DType> types;
  DistributedTensor (*make)(const DeviceMesh&, const TensorSpec&);
};

const std::vector<DType> all_types{DType::f32, DType::f64, DType::i64, DType::boolean},
    numbers{DType::f32, DType::f64, DType::i64}, reals{DType::f32, DType::f64};

const std::vector<Case> cases{
    {"zeros", -1, all_types, [](const DeviceMesh& m, const TensorSpec& s) { return zeros(m, s); }},
    {"ones", -1, all_types, [](const DeviceMesh& m, const TensorSpec& s) { return ones(m, s); }},
    {"full", -1, all_types, [](const DeviceMesh& m, const TensorSpec& s) { return full(m, s, -3); }},
    {"arange", 1, numbers, [](const DeviceMesh& m, const TensorSpec& s) { return arange(m, s); }},
    {"arange by 3", 1, numbers,
     [](const DeviceMesh& m, const TensorSpec& s) { return arange(m, s, 7, 7 - 3 * s.shape[0], -3); }},
    {"eye", 2, all_types, [](const DeviceMesh& m, const TensorSpec& s) { return eye(m, s); }},
    {"uniform", -1, reals, [](const DeviceMesh& m, const TensorSpec& s) { return uniform(m, s, stream, -2, 3); }},
    {"normal", -1, reals, [](const DeviceMesh& m, const TensorSpec& s) { return normal(m, s, stream, 1, 2); }},
    {"bernoulli", -1, all_types, [](const DeviceMesh& m, const TensorSpec& s) { return bernoulli(m, s, stream, 0.4); }},
    {"rand", -1, reals, [](const DeviceMesh& m, const TensorSpec& s) { return rand(m, s, stream); }},
    {"randn", -1, reals, [](const DeviceMesh& m, const TensorSpec& s) { return randn(m, s, stream); }},
    {"full_like", -1, all_types, [](const DeviceMesh& m, const TensorSpec& s) { return full_like(empty(m, s), 7); }},
    {"rand_like", -1, reals,
     [](const DeviceMesh& m, const TensorSpec& s) { return rand_like(empty_like(empty(m, s)), stream); }},
};

std::vector<std::byte> bytes(const Tensor& t) {
  Tensor c = t.contiguous();
  return {c.bytes_data(), c.bytes_data() + c.bytes()};
}

std::vector<std::byte> on_one_rank(const Case& c, DType t, const Shape& shape) {
  auto rank = Rank::single();
  return bytes(c.make(DeviceMesh(*rank, "a=1"), {t, shape, {}}).local());
}

}  // namespace

TEST_CASE("law 5: what is created is the same on every mesh") {
  for (const Case& c : cases)
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{13}, Shape{5, 7}, Shape{3, 0}, Shape{2, 3, 5}}) {
      if (c.dims >= 0 && shape.dims() != c.dims) continue;
      for (DType t : c.types) {
        std::vector<std::byte> want = on_one_rank(c, t, shape);
        for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{3}, {2, 2}}) {
          MeshShape mesh_shape = mesh_of(sizes);
          launch(mesh_shape.world(), [&](Rank& rank) {
            DeviceMesh mesh(rank, mesh_shape);
            Log log;
            for (const Layout& l : all_layouts(mesh_shape.axes(), shape.dims())) {
              Observing scope(rank, log);
              DistributedTensor x = c.make(mesh, {t, shape, l});
              check(log.lines.empty() && x.layout() == l, "{}: nothing is communicated", c.name);
              check(bytes(x.full_tensor()) == want, "{} of {} has another value", c.name, to_string(x));
              log = {};
            }
          });
        }
      }
    }
}

TEST_CASE("created on Partial axes the ranks hold what distribute gives them") {
  launch(3, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=3");
    for (Reduce r : all_reductions)
      for (const Case& c : cases)
        for (DType t : c.types) {
          Shape shape = c.dims == 1 ? Shape{5} : Shape{4, 5};
          Tensor whole = c.make(mesh, {t, shape, {}}).local();
          DistributedTensor x = c.make(mesh, {t, shape, {Partial(r)}});
          check(bytes(x.local()) == bytes(DistributedTensor::distribute(whole, mesh, {Partial(r)}).local()), "{} of {}",
                c.name, to_string(x));
        }
  });
}

TEST_CASE("tensors are created by text") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1,tp=1");
  CHECK(to_string(zeros(mesh, "f32[8,16] tp=Shard(1)")) == "f32[8,16] dp=Replicate tp=Replicate");
  CHECK(values<int64_t>(arange(mesh, "i64[4]", 10, 0, -3).local()) == std::vector<int64_t>{10, 7, 4, 1});
  CHECK(values<int64_t>(arange(mesh, "i64[0]", 3, 3).local()).empty());
  CHECK(values<float>(arange(mesh, "f32[4]", 0, 1, 0.3).local()) ==
        std::vector<float>{0, float(0.3), float(0.6), float(3 * 0.3)});
  int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
  CHECK(values<int64_t>(full(mesh, "i64[1]", most).local())[0] == most);
  CHECK(values<int64_t>(arange(mesh, "i64[4]", least, most, most / 2 + 2).local()).back() ==
        least + (most / 2 + 2) + (most / 2 + 2) + (most / 2 + 2));
  CHECK_THROWS_WITH(arange(mesh, "i64[0]", least, 0), Catch::StartsWith("[arange]"));  // 2^63 values
  CHECK(values<bool>(full(mesh, std::string("bool[1]"), 0.5).local())[0]);
  CHECK(values<float>(eye(mesh, "f32[2,3]").local()) == std::vector<float>{1, 0, 0, 0, 1, 0});
  CHECK(values<int64_t>(ones_like(empty(mesh, "i64[2]")).local()) == std::vector<int64_t>{1, 1});
  CHECK(values<double>(zeros_like(empty(mesh, "f64[2]")).local()) == std::vector<double>{0, 0});
  CHECK(values<float>(randn_like(empty(mesh, "f32[2]"), stream).local()) ==
        values<float>(randn(mesh, "f32[2]", stream).local()));
}

TEST_CASE("meta tensors are created without a value") {
  auto rank = Rank::recorded(4);
  DeviceMesh mesh(*rank, "tp=4");
  for (const Case& c : cases)
    for (DType t : c.types) {
      DistributedTensor x = c.make(mesh, {t, c.dims == 1 ? Shape{5} : Shape{5, 8}, {Shard(0)}});
      CHECK((x.is_meta() && x.local().size(0) == 2));
    }
  CHECK(zeros(mesh, "bf16[4]").is_meta());
  CHECK(randn(mesh, "bf16[4]", stream).is_meta());
  auto one = Rank::single();  // a model that has not been materialized
  DeviceMesh cpu(*one, "tp=1");
  SpecHandle spec = cpu.intern({DType::f32, {3}, {}});
  auto meta = DistributedTensor::empty(cpu, spec, Tensor(one->allocator(), DType::f32, {3}, Device::meta));
  CHECK(zeros_like(meta).is_meta());
}

TEST_CASE("law 9: what cannot be created is an error") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  double infinite = std::numeric_limits<double>::infinity();
  struct Error {
    std::function<void()> make;
    const char* text;
  };
  for (const Error& e : std::vector<Error>{
           {[&] { zeros(mesh, "f32"); },
            "[parse_spec] \"f32\" is no tensor: write as in f32[8,16] dp=Shard(0) (dtypes f32 f64 bf16 i64 bool)"},
           {[&] { full(mesh, "i64[2]", 2.5); }, "[full] 2.5 is not an i64"},
           {[&] { full_like(empty(mesh, "i64[0]"), 1e30); }, "[full_like] 1e+30 is not an i64"},
           {[&] { arange(mesh, "i64[4]", 0, 5, 2); },
            "[arange] from 0 to 5 by 2 are 3 values, which i64[4] tp=Replicate cannot hold: its shape must be [3]"},
           {[&] { arange(mesh, "i64[4]", 0, 4.5); }, "[arange] 4.5 is not an i64"},
           {[&] { arange(mesh, "i64[4]", 0, 4, 0); }, "[arange] the step is 0"},
           {[&] { arange(mesh, "f32[4]", 0, 4, 0); }, "[arange] the step is 0"},
           {[&] { arange(mesh, "f32[4]", 0, infinite); }, "[arange] from 0 to inf by 1 are not finitely many values"},
           {[&] { arange(mesh, "bool[1]"); }, "[arange] bool[1] tp=Replicate cannot count: use i64, f32 or f64"},
           {[&] { arange(mesh, "f32[2,2]"); }, "[arange] f32[2,2] tp=Replicate has 2 dimensions, not 1"},
           {[&] { eye(mesh, "f32[2]"); }, "[eye] f32[2] tp=Replicate has 1 dimensions, not 2"},
           {[&] { rand(mesh, "i64[2]", stream); },
            "[fill_uniform] i64[2] tp=Replicate gets no such numbers: use f32 or f64"},
           {[&] { uniform(mesh, "f32[2]", stream, 1, 0); }, "[fill_uniform] the numbers cannot be in [1, 0)"},
           {[&] { uniform(mesh, "f32[2]", stream, 0, infinite); }, "[fill_uniform] the numbers cannot be in [0, inf)"},
           {[&] { normal(mesh, "f32[2]", stream, 0, -1); }, "[fill_normal] a standard deviation of -1"},
           {[&] { bernoulli(mesh, "f32[2]", stream, 1.5); }, "[fill_bernoulli] a probability of 1.5"},
       })
    CHECK(error_of(e.make) == e.text);
}
