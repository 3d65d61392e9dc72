// A program outside the tree: a card of its own, checked and called through the installed package.
#include <cstdio>

#include "dtensor/launch.h"
#include "ops/all.h"
#include "ops/family/kernel.h"
#include "ops/testing/check.h"

using namespace dtensor;

// x^3
static void cube_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    T* y = out[0].data<T>();
    for (int64_t i = 0; i < out[0].numel(); ++i) y[i] = x[i] * x[i] * x[i];
  });
}
static void cube_gradient(Gradient& g) { g.set(0, g.of_output() * ops::square(g.input(0)) * 3.0); }
static const Op cube_op = {.name = "cube",
                           .rule = "...->...",
                           .cpu = cube_kernel,
                           .gradient = cube_gradient,
                           .keeps = {.inputs = {0}},
                           .sample = {{{{5, 3}}}}};

int main() {
  testing::Report report = testing::check(cube_op);
  if (!report.ok()) return std::puts("the card is not sound"), 1;
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto x = DistributedTensor::distribute(Tensor::of<float>({3}, {1, 2, 3}), mesh, {Shard(0)});
    auto y = call(cube_op, {&x});
    Tensor whole = y.full_tensor();
    if (rank.rank() == 0)
      std::printf("%s: %g %g %g\n", to_string(y).c_str(), element(whole, 0), element(whole, 1), element(whole, 2));
  });
}
