// Hashes of values, by which two runs can be compared bit for bit.
#pragma once

#include <string>
#include <vector>

#include "dtensor/distributed_tensor.h"

namespace dtensor::nn {

struct NamedValue {
  std::string name;
  DistributedTensor value;
};

// 32 hexadecimal digits of the logical values: the sum, over all elements of all tensors, of a mixed number of the
// tensor's name, the element's global index and its bits. So it is the same on every mesh and in any layout where the
// bits are the same. All ranks of the mesh call it; it costs one all-reduce of two numbers, and on CUDA a copy of this
// rank's parts to the host. Errors: Partial or meta tensors.
std::string value_hash(const DeviceMesh& mesh, const std::vector<NamedValue>& values);

}  // namespace dtensor::nn
