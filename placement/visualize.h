// A picture of a layout in text: who holds what.
#pragma once

#include "placement/notation.h"

namespace dtensor {

// A grid with a cell for every distinct box, headed by its ranges and with the ranks that hold it:
//
//          0:8   8:16        f32[5,16] dp=Shard(1) tp=Shard(0) on dp=2,tp=4
//        +-----+------+
//    0:2 |  0  |  4   |
//        +-----+------+
//    2:4 |  1  |  5   |
//        +-----+------+
//    4:5 |  2  |  6   |
//        +-----+------+
//  empty |  3  |  7   |
//        +-----+------+
//
// Ranges are half open; runs of ranks are written as 0-3. Where a value is Partial a cell reads sum(0,1; 2,3): ranks 0
// and 1 hold one contribution, ranks 2 and 3 the other. Tensors of more than two dimensions, and grids wider than 80
// columns, are a list of boxes with their ranks instead. Every line ends with a newline.
// Errors: axes that the mesh has not, shards of dimensions that the tensor has not.
std::string visualize(const TensorSpec& spec, const MeshShape& mesh);

}  // namespace dtensor
