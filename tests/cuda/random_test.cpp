#include "dtensor/random.h"

#include <cmath>

#include "ops/layer/attention.h"
#include "ops/layer/dropout.h"
#include "tests/ops/helpers.h"

using namespace dtensor;

namespace {

const RandomStream stream{.seed = 11, .purpose = "init", .path = "layers.3", .step = 2};

using Fill = void (*)(DistributedTensor&);
struct Case {
  const char* name;
  std::vector<DType> types;
  Fill fill;
  double tolerance = 0;
};
const std::vector<DType> floats = {DType::f32, DType::f64};
const Case cases[] = {{"normal", floats, [](DistributedTensor& x) { fill_normal(x, stream, 0.25, 3); }, 4e-7},
                      {"uniform", floats, [](DistributedTensor& x) { fill_uniform(x, stream, -1.3, 2.1); }},
                      {"uniform, one number", floats, [](DistributedTensor& x) { fill_uniform(x, stream, 2, 2); }},
                      {"bernoulli",
                       {DType::f32, DType::f64, DType::i64, DType::boolean},
                       [](DistributedTensor& x) { fill_bernoulli(x, stream, 0.3); }},
                      {"dropout", floats, [](DistributedTensor& x) {
                         fill_bernoulli(x, stream, 0.9);
                         x = ops::dropout(x, 0.35, stream);
                       }}};

}  // namespace

// Runs of a part begin and end anywhere, in whole tensors, rows, columns and both.
TEST_CASE("law 5: random numbers on CUDA are those of the CPU, on any mesh") {
  for (const Case& c : cases)
    for (DType type : c.types)
      for (const Shape& shape :
           {Shape{}, Shape{0}, Shape{1}, Shape{3001}, Shape{7, 13}, Shape{5, 6, 7}, Shape{4, 2, 8}}) {
        INFO(c.name << " " << name(type) << to_string(shape));
        OneRank one;
        auto expected = DistributedTensor::empty(one.mesh, {type, shape, Layout()});
        c.fill(expected);
        std::vector<double> whole = numbers(expected.local());
        auto agree = [&](const Tensor& part, const Tensor& reference) {
          std::vector<double> x = numbers(part.cpu()), y = numbers(reference);
          if (x.size() != y.size()) fail("{} elements, not {}", x.size(), y.size());
          for (size_t i = 0; i < x.size(); ++i)
            if (!(std::abs(x[i] - y[i]) <= c.tolerance * std::max(1.0, std::abs(y[i]))))
              fail("element {} is {}, not {}", i, x[i], y[i]);
        };
        launch(4,
               [&](Rank& rank) {
                 DeviceMesh mesh(rank, "a=2,b=2");
                 for (int d = 0; d < std::max(1, shape.dims()); ++d)
                   for (int e = 0; e < std::max(1, shape.dims()); ++e) {
                     Layout layout;
                     if (shape.dims())
                       layout = normalize("test", mesh.shape(), shape.dims(),
                                          std::array{Placement(Shard(d)), Placement(Shard(e))});
                     auto x = DistributedTensor::empty(mesh, {type, shape, layout});
                     c.fill(x);
                     agree(x.local(), expected.local().part(x.spec().box));
                   }
               },
               {.device = Device::cuda});
      }
}

TEST_CASE("random numbers on CUDA replace a Partial value on the ranks that keep it") {
  launch(2,
         [&](Rank& rank) {
           DeviceMesh mesh(rank, "a=2");
           auto x = DistributedTensor::empty(mesh, {DType::f32, {5}, Layout{Partial()}});
           fill_uniform(x, stream, 1, 2);
           for (double v : numbers(x.local().cpu())) expect(int64_t(v == 0), rank.rank());
         },
         {.device = Device::cuda});
}

namespace {

struct InScope {
  Shape shape;
  bool rows, positions;
};

}  // namespace

TEST_CASE("law 5: dropout on CUDA by rows and positions is that of the CPU") {
  auto drop = [](Device device, const InScope& c, DType type) {
    auto rank = Rank::single(device);
    DeviceMesh mesh(*rank, "x=1");
    auto index = [&](bool there, int64_t n, int64_t factor) {
      std::vector<int64_t> list;
      for (int64_t i = 0; i < n; ++i) list.push_back((i * factor + 5) % 11);
      return there ? DistributedTensor::distribute(Tensor::of<int64_t>({n}, list), mesh, Layout())
                   : DistributedTensor();
    };
    StepNumber step(mesh, 9);
    RandomScope scope(step, {.seed = 3,
                             .rows = index(c.rows, c.shape[0], 7),
                             .positions = index(c.positions, c.shape.dims() > 1 ? c.shape[1] : 1, 3)});
    auto x = DistributedTensor::empty(mesh, {type, c.shape, Layout()});
    fill_uniform(x, stream, 1, 2);
    return numbers(ops::dropout(x, 0.35).local().cpu());
  };
  for (const InScope& c : {InScope{{5}, true, false},
                           {{5, 7}, true, false},
                           {{5, 7, 6}, true, false},
                           {{5, 7, 6}, false, true},
                           {{5, 7, 16}, true, true},
                           {{2, 3, 4, 5}, true, true},
                           {{5, 7, 0}, true, true}})
    for (DType type : floats) {
      CAPTURE(to_string(c.shape), c.rows, c.positions);
      CHECK(drop(Device::cuda, c, type) == drop(Device::cpu, c, type));
    }
}

TEST_CASE("cuda: a captured dropout draws the numbers of the step that it is launched at") {
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "x=1");
  cuda::StreamHandle at = rank->allocator()->stream();
  StepNumber step(mesh);
  auto x = DistributedTensor::empty(mesh, {DType::f32, {2, 4, 6, 8}, Layout()});
  fill_uniform(x, stream, 1, 2);
  auto drop = [&] {
    RandomScope scope(step, {.seed = 3});
    auto attended = ops::scaled_dot_product_attention(x, x, x, {.dropout_p = 0.5});
    return std::pair(ops::dropout(x, 0.35), attended);
  };
  auto shown = [&](const std::pair<DistributedTensor, DistributedTensor>& y) {
    return std::pair(numbers(y.first.local().cpu()), numbers(y.second.local().contiguous().cpu()));
  };
  std::vector<decltype(shown(drop()))> eager;
  for (int64_t n : {1, 2, 3}) {
    step.set(n);
    eager.push_back(shown(drop()));
  }
  CHECK(eager[0].first != eager[1].first);
  CHECK(eager[0].second != eager[1].second);
  cuda::PrivatePool pool(rank->allocator());
  pool.begin();
  cuda::Graph::begin(at);
  auto captured = drop();
  CHECK_THROWS_WITH(step.set(4), Catch::Contains("[StepNumber] step 4 is set while a graph is captured"));
  CHECK_THROWS_WITH(ops::dropout(x, 0.5, stream),
                    Catch::Contains("[dropout] a stream's step is the host's, and a captured graph would drop the same "
                                    "with each launch: open a RandomScope and give no stream"));
  cuda::Graph graph = cuda::Graph::end(at);
  pool.end();
  for (int64_t n : {1, 2, 3}) {
    step.set(n);
    graph.launch(at);
    INFO("step " << n);
    CHECK(shown(captured) == eager[size_t(n - 1)]);
  }
}
