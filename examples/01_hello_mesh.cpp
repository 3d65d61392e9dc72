// One matrix on four ranks. The mesh has two axes: dp splits the rows, tp splits the columns.
//
//                       columns 0 1     columns 2 3
//                          tp=0            tp=1
//                     +---------------+---------------+
//     rows 0 1, dp=0  | rank 0   0  1 | rank 1   2  3 |
//                     |          4  5 |          6  7 |
//                     +---------------+---------------+
//     rows 2 3, dp=1  | rank 2   8  9 | rank 3  10 11 |
//                     |         12 13 |         14 15 |
//                     +---------------+---------------+
//
// The four ranks are threads of this process, and all run the same function. Each makes the same mesh, and holds its
// own part of the matrix.
//
// Run build/bin/01_hello_mesh; it prints
//
//     f32[4,4] dp=Shard(0) tp=Shard(1)
//     rank 0 at [0,0]: f32[2,2]
//     [[0., 1.],
//      [4., 5.]]
//     f32[4,4] dp=Shard(0) tp=Shard(1)
//     rank 1 at [0,2]: f32[2,2]
//     [[2., 3.],
//      [6., 7.]]
//     f32[4,4] dp=Shard(0) tp=Shard(1)
//     rank 2 at [2,0]: f32[2,2]
//     [[ 8.,  9.],
//      [12., 13.]]
//     f32[4,4] dp=Shard(0) tp=Shard(1)
//     rank 3 at [2,2]: f32[2,2]
//     [[10., 11.],
//      [14., 15.]]
#include <iostream>

#include "dtensor/distributed_tensor.h"
#include "dtensor/launch.h"

using namespace dtensor;

int main() {
  const Tensor matrix = Tensor::of<float>({4, 4}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});

  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    DistributedTensor x = DistributedTensor::distribute(matrix, mesh, {Shard(0), Shard(1)});
    in_rank_order(rank, [&] { std::cout << x << "\n"; });
  });
}
