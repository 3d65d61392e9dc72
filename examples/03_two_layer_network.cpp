// A two-layer network, split over ranks by hand, and its gradient: Megatron's tensor parallelism in five lines.
//
//                 up [16,32] tp=Shard(1)     down [32,16] tp=Shard(0)
//                     | columns                  | rows
//     x  ---------->  h = gelu(x up)  -------->  h down  ---------->  y
//     Replicate       tp=Shard(1)                Partial(sum)         Replicate
//                                                            all-reduce
//
// Each rank has half of the hidden layer, and the forward pass needs one all-reduce, the one that we ask for. Only the
// weights say how they are split: the library finds all other layouts, and the gradients are split as the weights are.
// So the backward pass communicates nothing here; above another layer, one all-reduce would add up the gradient of x.
//
// Run build/bin/03_two_layer_network; it trains for five steps, on one rank and then on two, with the same numbers:
//
//     tp=1
//     step 1  loss 5.4093  collectives 0
//     step 2  loss 1.7222  collectives 0
//     step 3  loss 1.0628  collectives 0
//     step 4  loss 0.7460  collectives 0
//     step 5  loss 0.5598  collectives 0
//     tp=2
//     step 1  loss 5.4093  collectives 1
//     step 2  loss 1.7222  collectives 1
//     step 3  loss 1.0628  collectives 1
//     step 4  loss 0.7460  collectives 1
//     step 5  loss 0.5598  collectives 1
#include <fmt/format.h>

#include "dtensor/comm_log.h"
#include "dtensor/launch.h"
#include "dtensor/random.h"
#include "nn/record.h"
#include "ops/all.h"

using namespace dtensor;

// Normal numbers that belong to global indices, so that they are the same on any mesh.
DistributedTensor random(const DeviceMesh& mesh, std::string_view spec, std::string_view name) {
  DistributedTensor x = DistributedTensor::empty(mesh, parse_spec(spec, mesh.shape()));
  fill_normal(x, {.seed = 1, .path = name}, 0, 0.5);
  return x;
}

void train(Rank& rank) {
  DeviceMesh mesh(rank, fmt::format("tp={}", rank.world()));
  DistributedTensor x = random(mesh, "f32[8,16]", "x"), target = random(mesh, "f32[8,16]", "target");
  DistributedTensor up = random(mesh, "f32[16,32] tp=Shard(1)", "up"),
                    down = random(mesh, "f32[32,16] tp=Shard(0)", "down");
  if (rank.rank() == 0) fmt::print("{}\n", to_string(mesh.shape()));

  for (int step = 1; step <= 5; ++step) {
    CommLog log(rank);
    nn::GradientStore gradients(rank);
    gradients.watch(up);
    gradients.watch(down);
    nn::Record record(gradients);
    DistributedTensor loss;
    {
      nn::Record::Scope recording(record);
      DistributedTensor h = ops::gelu(ops::matmul(x, up));
      DistributedTensor y = ops::matmul(h, down).redistribute({Replicate()});
      loss = ops::mean(ops::square(y - target));
    }
    record.backward(loss);

    up = up - 0.5 * gradients.gradient(up);
    down = down - 0.5 * gradients.gradient(down);

    if (rank.rank() == 0) fmt::print("step {}  loss {:.4f}  collectives {}\n", step, loss.item(), log.entries().size());
  }
}

int main() {
  launch(1, train);
  launch(2, train);
}
