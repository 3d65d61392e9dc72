// Device memory of tensors.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "dtensor/local/tensor.h"

namespace dtensor::cuda {

// One rank's memory on a device and the stream that works on it. Memory that is freed serves the next allocation at
// once, because what uses it next follows on the same stream; whoever hands a tensor to another stream makes this one
// wait before letting go of it. Segments come from cudaMalloc and are never moved, so addresses stay as they are; they
// are split into blocks of multiples of 512 bytes and joined again. The thread uses the device from now on.
// Errors: the device does not exist.
std::shared_ptr<Allocator> make_allocator(int device);

// Pinned host memory, kept for reuse until the allocator ends: the system takes long to pin some. Errors: none is left.
std::shared_ptr<Allocator> make_pinned_allocator();

// A copy between pinned host memory and a device, which is under way from the constructor on: on a stream beside that
// of the device tensor's allocator, one for each direction, after what that stream was given already.
class Transfer {
 public:
  // Contiguous tensors of one size, one of them on the host.
  Transfer(Tensor from, Tensor to);
  // Waits as wait() does. The host tensor is let go when the copy is over, which the host does not wait for.
  ~Transfer();
  Transfer(const Transfer&) = delete;

  void wait();  // what the allocator's stream is given from now on runs after the copy
  void wait(StreamHandle stream) const { cuda::wait(stream, done_); }
  void synchronize() const;  // the host waits
  bool is_done() const;

 private:
  const Tensor& on_device() const { return from_.device() == Device::cuda ? from_ : to_; }

  Tensor from_, to_;
  Event done_;
  bool waited_ = false;
};

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
