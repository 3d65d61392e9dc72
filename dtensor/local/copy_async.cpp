#include "dtensor/local/copy_async.h"

#include "dtensor/cuda/allocator.h"

namespace dtensor {

void AsyncCopy::wait() {
  if (transfer_) transfer_->wait();
}
void AsyncCopy::synchronize() {
  if (transfer_) transfer_->synchronize();
}
bool AsyncCopy::is_done() const { return !transfer_ || transfer_->is_done(); }

AsyncCopy copy_async(const Tensor& from, const Tensor& to) {
  auto text = [](const Tensor& t) {
    return fmt::format("{}{} on {}", name(t.dtype()), to_string(t.shape()), name(t.device()));
  };
  if (from.shape() != to.shape() || from.dtype() != to.dtype()) fail("[copy_async] {} to {}", text(from), text(to));
  if (!from.is_contiguous() || !to.is_contiguous())
    fail("[copy_async] {} to {}: one of them is not contiguous; use its contiguous()", text(from), text(to));
  if (from.device() == Device::meta || to.device() == Device::meta || from.numel() == 0) return AsyncCopy();
  if (from.device() == to.device()) {
    if (from.device() == Device::cuda)
      fail("[copy_async] {} to {}: on one device copy() is in order with kernels already", text(from), text(to));
    copy(from, to);
    return AsyncCopy();
  }
  const Tensor &host = from.device() == Device::cpu ? from : to, &device = from.device() == Device::cpu ? to : from;
  if (!host.allocator()->is_pinned())
    fail("[copy_async] {} to {}: the host tensor is not in pinned memory; make it with the rank's host_allocator()",
         text(from), text(to));
  if (cuda::Graph::is_capturing(device.allocator()->stream()))
    fail("[copy_async] {} to {}: not while a graph is captured; use copy()", text(from), text(to));
  return AsyncCopy(std::make_shared<cuda::Transfer>(from, to));
}

}  // namespace dtensor
