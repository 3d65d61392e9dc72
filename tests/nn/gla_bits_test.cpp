#include "tests/autograd.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

TEST_CASE("law 6: gated linear attention has the same bits however its batch and heads are sharded") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t sequence : {1, 63, 70, 130}) {  // less than a chunk, no whole number of them
      auto run = [&](const std::string& mesh) {
        return on_mesh(mesh,
                       [&](const DeviceMesh& m) {
                         Layout layout;
                         if (m.shape().find("dp") >= 0) layout = layout.with(m.shape(), "dp", Shard(0));
                         if (m.shape().find("tp") >= 0) layout = layout.with(m.shape(), "tp", Shard(2));
                         auto operand = [&](int64_t width, int seed, DType type) {
                           DistributedTensor x =
                               DistributedTensor::distribute(f32({3, sequence, 4, width}, seed), m, layout);
                           return type == DType::f32 ? x : ops::cast(x, type);
                         };
                         DistributedTensor q = operand(8, 1, dtype), k = operand(8, 2, dtype), v = operand(6, 3, dtype),
                                           g = ops::neg(ops::abs(operand(8, 4, DType::f32)));
                         Autograd autograd(m.rank_state());
                         for (const DistributedTensor* x : {&q, &k, &v, &g}) autograd.watch(*x);
                         auto [out, state] = ops::gated_linear_attention(q, k, v, g);
                         autograd.backward(ops::sum(ops::square(ops::cast(out, DType::f32))).redistribute(Layout()),
                                           {.reduce = false});
                         std::vector<std::vector<double>> all{values(out.full_tensor()), values(state.full_tensor())};
                         for (const DistributedTensor* x : {&q, &k, &v, &g})
                           all.push_back(values(autograd.gradient(*x).full_tensor()));
                         return all;
                       })
            .back();
      };
      auto one = run("x=1");
      CHECK(one[0] != std::vector<double>(one[0].size()));
      for (const char* mesh : {"dp=2", "dp=3", "tp=2", "tp=3", "tp=4", "dp=2,tp=2"}) {
        INFO(name(dtype) << ", " << sequence << " tokens on " << mesh);
        CHECK(run(mesh) == one);
      }
    }
}
