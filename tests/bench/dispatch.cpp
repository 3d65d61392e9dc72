// Host time of one dispatched op whose decision is cached: add of two Shard(0) tensors of 8 elements on two thread
// ranks, rank 0 measuring while the other has ended its part, calls with attributes, and recorded ones. Prints medians
// over batches.
//
//     build/bench/dispatch
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "dtensor/launch.h"
#include "nn/record.h"
#include "ops/all.h"

using namespace dtensor;

namespace {

template <class F>
double median_ns(F f) {
  constexpr int batches = 200, calls = 1000;
  std::vector<double> ns;
  for (int b = 0; b < batches; ++b) {
    auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) f();
    ns.push_back(std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / calls);
  }
  std::sort(ns.begin(), ns.end());
  return ns[ns.size() / 2];
}

}  // namespace

int main() {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    std::vector<float> values(8, 1.5f);
    auto x = DistributedTensor::distribute(Tensor::of<float>({8}, values), mesh, {Shard(0)});
    auto y = DistributedTensor::distribute(Tensor::of<float>({8}, values), mesh, {Shard(0)});
    auto whole = DistributedTensor::distribute(Tensor::of<float>({8}, values), mesh, {Replicate()});
    if (rank.rank() != 0) return;
    std::printf("add of two Shard(0) tensors of 8 elements, cached: %.0f ns\n", median_ns([&] { ops::add(x, y); }));
    std::printf("mul by a scalar attribute, cached:                  %.0f ns\n", median_ns([&] { ops::mul(x, 2.0); }));
    double lr = 1;
    std::printf("mul by a scalar that changes from call to call:     %.0f ns\n",
                median_ns([&] { ops::mul(x, lr *= 0.99999); }));
    int64_t start = 0;
    std::printf("slice of a changing start (4 integer attributes):   %.0f ns\n",
                median_ns([&] { ops::narrow(whole, 0, start++ % 4, 4); }));
    nn::GradientStore store(rank);
    store.watch(x);
    auto recorded = [&](const char* what, auto f) {
      std::unique_ptr<nn::Record> record;
      std::unique_ptr<nn::Record::Scope> scope;
      int calls = 0;
      double ns = median_ns([&] {
        if (calls++ % 1000 == 0) {  // a forward pass of 1000 ops, dropped
          scope.reset();
          record = std::make_unique<nn::Record>(store);
          scope = std::make_unique<nn::Record::Scope>(*record);
        }
        f();
      });
      std::printf("%s %.0f ns\n", what, ns);
    };
    recorded("add, recorded:                                     ", [&] { ops::add(x, y); });
    recorded("mul, recorded (keeps both operands):               ", [&] { ops::mul(x, y); });
    std::printf("of which allocating an output tensor:               %.0f ns\n",
                median_ns([&] { DistributedTensor::empty(mesh, x.spec()); }));
    int64_t bytes = rank.allocator()->bytes_in_use();
    size_t cached = cached_calls(rank);
    for (int i = 0; i < 10000; ++i) ops::add(x, y);
    std::printf("after 10,000 more calls: %+lld bytes in use, %+d cached calls\n",
                static_cast<long long>(rank.allocator()->bytes_in_use() - bytes),
                int(cached_calls(rank)) - int(cached));
  });
}
