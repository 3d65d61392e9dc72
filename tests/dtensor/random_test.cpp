#include "dtensor/random.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <set>

#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

TEST_CASE("Philox gives the numbers of its reference") {
  struct Case {
    uint64_t key, counter;
    uint32_t word[4];
  };
  for (const Case& c :
       {Case{0x0u, 0x0u, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
        Case{0x0u, 0x1u, {0xf8e4cca4u, 0x5cb200dbu, 0xb1a574ebu, 0x097eff67u}},
        Case{0x123456789abcdefu, 0x5u, {0x5765db8au, 0xd104608fu, 0xc658b7d8u, 0xe9aa137fu}},
        Case{0xffffffffffffffffu, 0xffffffffffffffffu, {0x4d18d7d2u, 0x430ac65au, 0xbd2fa22au, 0x0afae10du}},
        Case{0x2au, 0x100000000u, {0x42e0b8b3u, 0x7dbf5de8u, 0x2fe739d4u, 0x6aaf03ebu}}}) {
    Philox p(c.key, c.counter);
    CHECK(std::memcmp(p.word, c.word, sizeof c.word) == 0);
  }
}

namespace {

std::vector<float> on_one_rank(const Shape& shape, const RandomStream& stream, bool normal) {
  auto rank = Rank::single();
  auto x = DistributedTensor::empty(DeviceMesh(*rank, "dp=1"), {DType::f32, shape, {}});
  normal ? fill_normal(x, stream, 1, 2) : fill_uniform(x, stream, -1, 3);
  return values<float>(x.local());
}

}  // namespace

TEST_CASE("law 5: random numbers belong to global indices") {
  RandomStream stream{42, "init", "model.layers.0.weight", 3, 2};
  for (bool normal : {true, false})
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{5}, Shape{5, 8}, Shape{1, 3, 5}, Shape{2, 0, 3}}) {
      std::vector<float> whole = on_one_rank(shape, stream, normal);
      for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2}, {3}, {2, 2}, {2, 3}}) {
        MeshShape mesh_shape = mesh_of(sizes);
        launch(mesh_shape.world(), [&](Rank& rank) {
          DeviceMesh mesh(rank, mesh_shape);
          for (const Layout& l : all_layouts(mesh_shape.axes(), shape.dims(), false)) {
            auto x = DistributedTensor::empty(mesh, {DType::f32, shape, l});
            normal ? fill_normal(x, stream, 1, 2) : fill_uniform(x, stream, -1, 3);
            std::vector<float> got = values<float>(x.local()), want;
            for (int64_t e : part_of(mesh_shape, shape, l, rank.rank()).elements) want.push_back(whole[size_t(e)]);
            check(got == want, "{} has other numbers", to_string(x));
          }
        });
      }
    }
}

TEST_CASE("law 5: a stream is its tuple and nothing else") {
  RandomStream base{7, "dropout", "model.mlp", 1, 3};
  std::vector<RandomStream> streams{base};
  for (int i = 0; i < 5; ++i) streams.push_back(base);
  streams[1].seed = 8, streams[2].purpose = "init", streams[3].path = "model.mlp2", streams[4].step = 2,
  streams[5].call = 4;
  streams.push_back({7, "dropoutm", "odel.mlp", 1, 3});  // the border between texts counts
  streams.push_back({7, "model.mlp", "dropout", 1, 3});  // and so does the place
  streams.push_back({7, "dropout", "model.mlp", 3, 1});
  streams.push_back({7, "dropout", "model.mlp", 0, 3});
  std::set<std::vector<float>> draws;
  for (const RandomStream& s : streams) {
    draws.insert(on_one_rank({64}, s, true));
    CHECK(on_one_rank({64}, s, true) == on_one_rank({64}, s, true));  // no state
  }
  CHECK(draws.size() == streams.size());
  // A longer tensor starts with the same numbers.
  std::vector<float> shorter = on_one_rank({64}, base, false), longer = on_one_rank({128}, base, false);
  CHECK(std::equal(shorter.begin(), shorter.end(), longer.begin()));
}

TEST_CASE("random numbers are distributed as asked") {
  size_t n = 200000;
  std::vector<float> normal = on_one_rank({int64_t(n)}, {1}, true), uniform = on_one_rank({int64_t(n)}, {2}, false);
  auto moments = [&](const std::vector<float>& v, double mean) {
    double sum = 0, square = 0, cube = 0, fourth = 0, next = 0;
    for (size_t i = 0; i < n; ++i) {
      double x = v[i] - mean, y = v[(i + 1) % n] - mean;
      sum += x, square += x * x, cube += x * x * x, fourth += x * x * x * x, next += x * y;
    }
    return std::vector<double>{sum / double(n), square / double(n), cube / double(n), fourth / double(n),
                               next / double(n)};
  };
  auto m = moments(normal, 1);  // of normal(1, 2)
  CHECK(std::abs(m[0]) < 0.02);
  CHECK(std::abs(m[1] - 4) < 0.06);
  CHECK(std::abs(m[2]) < 0.3);
  CHECK(std::abs(m[3] - 48) < 2);
  CHECK(std::abs(m[4]) < 0.04);
  m = moments(uniform, 1);  // of uniform(-1, 3)
  CHECK(std::abs(m[0]) < 0.012);
  CHECK(std::abs(m[1] - 16.0 / 12) < 0.012);
  CHECK(std::abs(m[4]) < 0.012);
  CHECK(*std::min_element(uniform.begin(), uniform.end()) >= -1);
  CHECK(*std::max_element(uniform.begin(), uniform.end()) < 3);
  for (float x : normal) REQUIRE(std::isfinite(x));
}

TEST_CASE("random numbers replace what others share and refuse what has no numbers") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  Tensor whole = Tensor::of<float>({4}, {1, 2, 3, 4});
  auto x = DistributedTensor::distribute(whole, mesh, {});
  fill_normal(x, {}, 0, 1);
  CHECK(x.version() == 1);
  CHECK(values<float>(whole) == std::vector<float>{1, 2, 3, 4});
  auto f64 = DistributedTensor::empty(mesh, {DType::f64, {4}, {}}),
       i64 = DistributedTensor::empty(mesh, {DType::i64, {4}, {}});
  fill_normal(f64, {}, 0, 1);
  for (size_t i = 0; i < 4; ++i) CHECK(float(values<double>(f64.local())[i]) == values<float>(x.local())[i]);
  CHECK_THROWS_WITH(fill_uniform(i64, {}, 0, 1),
                    Equals("[fill_uniform] i64[4] dp=Replicate gets no such numbers: use f32 or f64"));
  auto recorded = Rank::recorded(2);
  DeviceMesh two(*recorded, "dp=2");
  auto meta = DistributedTensor::empty(two, {DType::f32, {4}, {Shard(0)}});
  fill_normal(meta, {}, 0, 1);
  CHECK(meta.version() == 0);
}

TEST_CASE("initial weights stay as they were") {  // parity tests and users' runs depend on them
  std::vector<float> v = on_one_rank({3}, {42, "init", "model.layers.0.weight"}, true);
  CHECK(v == std::vector<float>{0x1.9df9dcp-1f, 0x1.ed7458p+1f, -0x1.808fc4p-1f});
}

TEST_CASE("law 5: the numbers of a kernel's part do not depend on the part") {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{203}, Shape{7, 70}, Shape{3, 5, 9}, Shape{2, 0}}) {
    std::vector<float> whole(size_t(numel(shape)), -1), part;
    fill_unit(77, shape, whole_box(shape), whole.data());
    for (size_t g = 0; g < whole.size(); ++g) REQUIRE(whole[g] == float(Philox(77, g / 4).word[g % 4] >> 8) * 0x1p-24f);
    MeshShape mesh = mesh_of({2, 3});
    for (const Layout& l : all_layouts(2, shape.dims(), false))
      for (int r = 0; r < 6; ++r) {
        Box box = local_box(mesh, shape, l, r);
        part.assign(size_t(box.numel()) + 1, -1);
        fill_unit(77, shape, box, part.data());
        std::vector<float> want;
        for (int64_t e : part_of(mesh, shape, l, r).elements) want.push_back(whole[size_t(e)]);
        want.push_back(-1);  // nothing is written behind the part
        REQUIRE(part == want);
      }
  }
}

TEST_CASE("uniform numbers are below the upper bound after rounding") {
  auto rank = Rank::single();
  auto x = DistributedTensor::empty(DeviceMesh(*rank, "dp=1"), {DType::f32, {100000}, {}});
  struct Case {
    float low, high;
  };
  for (Case c : {Case{1, 1 + 0x1p-22f}, Case{-1 - 0x1p-23f, -1}, Case{16777216, 16777220}, Case{3, 3}}) {
    fill_uniform(x, {9}, c.low, c.high);
    for (float v : values<float>(x.local())) REQUIRE((v >= c.low && (v < c.high || c.low == c.high)));
  }
  auto exact = DistributedTensor::empty(x.mesh(), {DType::f64, {99}, {}});
  fill_uniform(exact, {9}, 0, 1);
  for (size_t g = 0; g < 99; ++g)
    REQUIRE(values<double>(exact.local())[g] == Philox(RandomStream{9}.key(), g / 4).word[g % 4] * 0x1p-32);
  fill_bernoulli(x, {9}, 0.25);
  double sum = 0;
  for (float v : values<float>(x.local())) sum += v;
  CHECK(std::abs(sum - 25000) < 700);
  for (double p : {0., 1.}) {
    fill_bernoulli(x, {9}, p);
    for (float v : values<float>(x.local())) REQUIRE(v == p);
  }
}
