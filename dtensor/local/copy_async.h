// Copies between host and device that go on while both compute.
#pragma once

#include <memory>

#include "dtensor/local/tensor.h"

namespace dtensor {

namespace cuda {
class Transfer;
}

// A copy under way; it holds its tensors. Let go of without wait(), it waits as wait() does.
class [[nodiscard]] AsyncCopy {
 public:
  AsyncCopy() = default;  // over
  explicit AsyncCopy(std::shared_ptr<cuda::Transfer> transfer) : transfer_(std::move(transfer)) {}

  // Kernels called from now on come after the copy: they may read its target, and write its source. On the host nothing
  // is waited for.
  void wait();
  // The same for what another stream is given from now on.
  void wait(CUstream_st* stream) const;
  // The host waits: it may read the target, or write the source.
  void synchronize();
  bool is_done() const;

 private:
  std::shared_ptr<cuda::Transfer> transfer_;
};

// Copies between a CUDA tensor and one in pinned host memory (Rank::host_allocator()), of one shape and element type,
// both contiguous. The copy begins when the kernels called so far have ended, and goes on beside those called later,
// which must not write either tensor, nor read the target, before wait(). Between host tensors it is over at once, and
// nothing happens on meta. Errors: other shapes, types or strides; host memory that is not pinned; two CUDA tensors,
// which copy() keeps in order; inside the capture of a graph.
AsyncCopy copy_async(const Tensor& from, const Tensor& to);

}  // namespace dtensor
