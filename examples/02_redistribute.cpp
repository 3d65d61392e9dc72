// The same value in another layout: redistribute() finds the collective, and the value never changes.
//
//     Shard(0)       rank 0  0 1 2 3       the rows are split over two ranks
//                    rank 1  4 5 6 7
//     Replicate      rank 0  0 1 2 3       everyone holds the whole
//                            4 5 6 7
//                    rank 1  0 1 2 3
//                            4 5 6 7
//     Shard(1)       rank 0  0 1           the columns are split
//                            4 5
//                    rank 1      2 3
//                                6 7
//     Partial(sum)   rank 0  a             a and b add up to the value, as after a matrix product
//                    rank 1  b             whose inner dimension is split
//
// Run build/bin/02_redistribute; it prints what each change costs: a collective, and the bytes that one rank receives.
// "nothing moves" is a change that every rank makes by itself.
//
//     Shard(0)     -> Replicate     all_gather, 16 bytes
//     Shard(0)     -> Shard(1)      all_to_all, 8 bytes
//     Replicate    -> Shard(1)      nothing moves
//     Replicate    -> Partial(sum)  nothing moves
//     Partial(sum) -> Replicate     all_reduce, 32 bytes
//     Partial(sum) -> Shard(0)      reduce_scatter, 16 bytes
#include <fmt/format.h>

#include "dtensor/comm_log.h"
#include "dtensor/distributed_tensor.h"
#include "dtensor/launch.h"

using namespace dtensor;

int main() {
  const Tensor matrix = Tensor::of<float>({2, 4}, {0, 1, 2, 3, 4, 5, 6, 7});
  const std::pair<Placement, Placement> changes[] = {
      {Shard(0), Replicate()},  {Shard(0), Shard(1)},     {Replicate(), Shard(1)},
      {Replicate(), Partial()}, {Partial(), Replicate()}, {Partial(), Shard(0)},
  };

  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    for (auto [from, to] : changes) {
      DistributedTensor x = DistributedTensor::distribute(matrix, mesh, {from});
      CommLog log(rank);  // sees every collective while it exists
      DistributedTensor y = x.redistribute({to});
      if (rank.rank() > 0) continue;

      std::string cost = "nothing moves";
      for (const CommLog::Entry& e : log.entries()) cost = fmt::format("{}, {} bytes", e.collective, e.bytes);
      fmt::print("{:<12} -> {:<13} {}\n", to_string(from), to_string(to), cost);
    }
  });
}
