// linear_attention [LONGEST]: microseconds per token, forward and backward, of gated linear attention and of our own
// causal attention, over lengths from 2,048 to LONGEST (32,768). One thread, by its own time, whatever else the machine
// does.
#include <fmt/format.h>

#include <cstdlib>
#include <ctime>
#include <functional>

#include "dtensor/creation.h"
#include "nn/record.h"
#include "ops/functions.h"

using namespace dtensor;

namespace {

using Inputs = std::vector<DistributedTensor>;
using Layer = std::function<DistributedTensor(const Inputs&)>;

struct Times {
  double forward, backward;  // microseconds per token
};

Times time_of(Rank& rank, const Inputs& x, int64_t tokens, const Layer& layer) {
  auto now = [] { return double(std::clock()) / CLOCKS_PER_SEC; };
  Times best{1e9, 1e9};
  for (int i = 0; i < 2; ++i) {
    nn::GradientStore store(rank);
    nn::Record record(store);
    for (const DistributedTensor& leaf : x) store.watch(leaf);
    nn::Record::Scope scope(record);
    double begin = now();
    DistributedTensor y = layer(x);
    double middle = now();
    record.backward(ops::sum(y));
    best.forward = std::min(best.forward, (middle - begin) / double(tokens) * 1e6);
    best.backward = std::min(best.backward, (now() - middle) / double(tokens) * 1e6);
  }
  return best;
}

}  // namespace

// A layer of 256 channels: 4 heads, of 32 keys and 64 values in gated linear attention, as its configurations have
// them, and of 64 in attention.
int main(int argc, char** argv) {
  int64_t longest = argc > 1 ? std::atoll(argv[1]) : 32768;
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  auto random = [&](const Shape& shape) { return randn(mesh, TensorSpec{DType::f32, shape, Layout()}, {.seed = 1}); };
  fmt::print("| tokens | gated linear, forward | backward | attention, forward | backward |\n|---|---|---|---|---|\n");
  for (int64_t n = 2048; n <= longest; n *= 2) {
    DistributedTensor g = ops::mul(ops::softplus(random({1, n, 4, 32})), -1.0 / 16);
    Times linear =
        time_of(*rank, {random({1, n, 4, 32}), random({1, n, 4, 32}), random({1, n, 4, 64}), g}, n,
                [](const Inputs& x) { return std::get<0>(ops::gated_linear_attention(x[0], x[1], x[2], x[3])); });
    Inputs heads{random({1, 4, n, 64}), random({1, 4, n, 64}), random({1, 4, n, 64})};
    Times quadratic = time_of(*rank, heads, n, [](const Inputs& x) {
      return ops::scaled_dot_product_attention(x[0], x[1], x[2], {.causal = true});
    });
    fmt::print("| {} | {:.2f} | {:.2f} | {:.1f} | {:.1f} |\n", n, linear.forward, linear.backward, quadratic.forward,
               quadratic.backward);
    std::fflush(stdout);
  }
}
