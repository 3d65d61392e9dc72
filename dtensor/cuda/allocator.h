// Device memory of tensors.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "dtensor/local/allocator.h"

namespace dtensor::cuda {

// One rank's memory on a device and the stream that works on it. Memory that is freed serves the next allocation at
// once, because what uses it next follows on the same stream; whoever hands a tensor to another stream makes this one
// wait before letting go of it. Segments come from cudaMalloc and are never moved, so addresses stay as they are; they
// are split into blocks of multiples of 512 bytes and joined again. The thread uses the device from now on.
// Errors: the device does not exist.
std::shared_ptr<Allocator> make_allocator(int device);

// While it exists, `allocator` (of make_allocator) serves from a pool of its own. What a graph captured may be launched
// again only if nobody else was given its memory: so a graph is captured under one, which lives as long as the graph.
class PrivatePool {
 public:
  explicit PrivatePool(std::shared_ptr<Allocator> allocator);
  ~PrivatePool();  // the memory is the allocator's again
  PrivatePool(const PrivatePool&) = delete;

  // Serves from the pool between the two.
  void begin();
  void end();

 private:
  std::shared_ptr<Allocator> allocator_;
  int id_;
};

}  // namespace dtensor::cuda
