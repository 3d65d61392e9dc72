#include "dtensor/random.h"

#include <cmath>

#include "ops/dropout.h"
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
