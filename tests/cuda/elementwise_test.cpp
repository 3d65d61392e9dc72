#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "ops/cuda/kernels.h"
#include "ops/layer/dropout.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

namespace {

struct Ranks {
  std::shared_ptr<Rank> cpu = Rank::single(), cuda = Rank::single(Device::cuda);
  DeviceMesh on_cpu{*cpu, "x=1"}, on_cuda{*cuda, "x=1"};

  // f of the tensors on both devices, in host memory.
  template <class F>
  std::pair<Tensor, Tensor> both(const std::vector<Tensor>& inputs, F f) {
    auto of = [&](const DeviceMesh& mesh) {
      std::vector<DistributedTensor> in;
      for (const Tensor& t : inputs) in.push_back(DistributedTensor::distribute(t, mesh, Layout()));
      return f(in).local().cpu().contiguous();
    };
    return {of(on_cpu), of(on_cuda)};
  }
};

bool same(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.bytes() == 0 || std::memcmp(a.bytes_data(), b.bytes_data(), size_t(a.bytes())) == 0);
}
bool same(const std::pair<Tensor, Tensor>& pair) { return same(pair.first, pair.second); }

}  // namespace

// Rows of 16 bytes and others; one run, with a rest and without; more elements than a grid has at once.
TEST_CASE("CUDA operands broadcast and have any strides") {
  Ranks ranks;
  struct Case {
    Shape a, b;
    std::vector<int> order_of_a = {};
  };
  for (const Case& c :
       {Case{{}, {}}, Case{{0}, {1}}, Case{{1023}, {1023}}, Case{{1024}, {}}, Case{{2200001}, {1}},
        Case{{7, 512}, {512}}, Case{{7, 513}, {513}}, Case{{7, 512}, {7, 1}}, Case{{3, 1, 256}, {1, 5, 1}},
        Case{{1, 1}, {40, 100}}, Case{{2, 3, 1, 5, 1, 64}, {3, 4, 1, 2, 1}}, Case{{30, 40}, {40, 30}, {1, 0}},
        Case{{8, 4, 16}, {4, 8, 16}, {1, 0, 2}}, Case{{6, 5, 4}, {4, 1, 6}, {2, 1, 0}},
        Case{{2, 2, 2, 2, 2, 2, 2, 3}, {3}}})
    for (DType type : {DType::f32, DType::f64, DType::i64}) {
      INFO(to_string(c.a) << " - " << to_string(c.b) << " in " << name(type));
      CHECK(same(ranks.both({iota(c.a, type), iota(c.b, type)}, [&](const auto& in) {
        return ops::sub(c.order_of_a.empty() ? in[0] : ops::permute(in[0], {c.order_of_a.begin(), c.order_of_a.end()}),
                        in[1]);
      })));
    }
}

TEST_CASE("CUDA casts have the bits of the CPU's") {
  Ranks ranks;
  const float infinity = std::numeric_limits<float>::infinity();
  // Ties of bf16 go to the even one; what an integer cannot hold is the smallest one.
  Tensor x =
      Tensor::of<float>({21}, {0.0f,     -0.0f,    1.00390625f, 1.01171875f, -1.00390625f, 1.0039063f,  3e38f,
                               -3.4e38f, 1e-40f,   1e-45f,      0.3f,        -7.7f,        infinity,    -infinity,
                               9.3e18f,  -9.3e18f, 65504.0f,    2.5f,        -0.9f,        16777217.0f, 1e10f});
  for (DType from : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    for (DType to : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean}) {
      INFO(name(from) << " to " << name(to));
      CHECK(same(ranks.both({x}, [&](const auto& in) { return ops::cast(ops::cast(in[0], from), to); })));
    }
  Tensor nan = Tensor::of<float>({1}, {NAN});
  auto [on_cpu, on_cuda] = ranks.both({nan}, [](const auto& in) { return ops::cast(in[0], DType::bf16); });
  CHECK(std::isnan(element(on_cpu, 0)));
  CHECK(std::isnan(element(on_cuda, 0)));
}

TEST_CASE("CUDA: what a card's types do not let pass is an error of its kernel too") {
  Ranks ranks;
  ThreadPool& pool = ranks.cuda->pool();
  std::vector<cpu::Scratch> scratch(1);
  Tensor flags(ranks.cuda->allocator(), DType::boolean, {3});
  Attributes none, half = ops::Dropout{0.5, 1};
  std::vector<Context::FactorRange> factors{{'A', {0, 3}, 3}, {'a', {0, 3}, 3}};
  std::vector<Tensor> in{flags, flags}, out{flags};
  CHECK_THROWS_WITH(
      cuda::find_kernel(ops::add_op)({"add", none, factors, pool, scratch, ranks.cuda->allocator()}, in, out),
      Contains("[add] has no CUDA kernel for bool"));
  CHECK_THROWS_WITH(
      cuda::find_kernel(ops::dropout_op)({"dropout", half, factors, pool, scratch, ranks.cuda->allocator()}, in, out),
      Contains("[dropout] has no CUDA kernel for bool"));
  DistributedTensor i = DistributedTensor::distribute(iota({3}, DType::i64), ranks.on_cuda, Layout());
  CHECK_THROWS_WITH(ops::mul(i, 0.5), Contains("[mul_scalar] 0.5 is no integer, but the tensor is i64"));
}

// A kernel on the device cannot throw.
TEST_CASE("CUDA: an index out of range makes what depends on it NaN, or the smallest integer") {
  Ranks ranks;
  auto on_cuda = [&](const Tensor& t) { return DistributedTensor::distribute(t, ranks.on_cuda, Layout()); };
  auto got = [](const DistributedTensor& x) { return numbers(x.local().cpu()); };
  auto ids = [&](const std::vector<int64_t>& v) { return on_cuda(Tensor::of<int64_t>({int64_t(v.size())}, v)); };
  const double least = double(std::numeric_limits<int64_t>::min());
  for (DType type : {DType::f32, DType::f64, DType::i64, DType::bf16}) {
    INFO(name(type));
    auto is_bad = [&](double x) { return type == DType::i64 ? x == least : std::isnan(x); };
    for (int64_t width : {1, 3, 4, 16}) {
      DistributedTensor x = ops::cast(on_cuda(iota({5, width})), type);
      std::vector<double> y = got(ops::index_select(x, 0, ids({4, 5, -1, 0})));
      for (int64_t q = 0; q < width; ++q) {
        CHECK(y[size_t(q)] == double(4 * width + q));
        CHECK(is_bad(y[size_t(width + q)]));
        CHECK(is_bad(y[size_t(2 * width + q)]));
        CHECK(y[size_t(3 * width + q)] == double(q));
      }
      std::vector<double> sum = got(ops::index_add(x, 0, ids({1, 5}), ops::narrow(x, 0, 0, 2)));
      CHECK(std::all_of(sum.begin(), sum.end(), is_bad));
    }
    DistributedTensor x = ops::cast(on_cuda(iota({4})), type);
    std::vector<double> taken = got(ops::gather(x, 0, ids({3, 4})));
    CHECK(taken[0] == 3);
    CHECK(is_bad(taken[1]));
  }
  CHECK(got(ops::one_hot(ids({1, 2}), 2)) == std::vector<double>{0, 1, least, least});
  CHECK(got(ops::remainder(ids({7, 7}), ids({0, 4}))) == std::vector<double>{least, 3});
}

// More sums than add_slices has threads, so that each has several.
TEST_CASE("CUDA: index_add and scatter_add add in order, however many threads there are") {
  Ranks ranks;
  std::vector<int64_t> ids(3000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i * i * 7919 % 600000);
  Tensor x = iota({600000}), index = Tensor::of<int64_t>({3000}, ids), source = iota({3000});
  CHECK(same(ranks.both({x, index, source},
                        [](const auto& in) { return ops::index_add(in[0], 0, in[1], ops::mul(in[2], 0.37)); })));
  std::fill(ids.begin(), ids.end(), 2);
  Tensor one_place = Tensor::of<int64_t>({3000}, ids);
  CHECK(same(ranks.both({x, one_place, source},
                        [](const auto& in) { return ops::scatter_add(in[0], 0, in[1], ops::mul(in[2], 0.37)); })));
}
