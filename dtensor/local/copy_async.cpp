#include "dtensor/local/copy_async.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <cstring>

#include "dtensor/cuda/allocator.h"

namespace dtensor {
namespace {

#ifdef __SSE2__
constexpr size_t line = 64, page_bytes = 4096, pages = 4;

void stream_line(std::byte* to, const std::byte* from) {
  __m128i values[4];
  for (int i = 0; i < 4; ++i) values[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
  for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, values[i]);
}
#endif

// For what is not read soon: past the caches, which saves reading the target first, and on several pages in turn, which
// keeps more of the memory busy. It is what glibc's memcpy does from a size on that few tensors have.
void copy_past_caches(std::byte* to, const std::byte* from, size_t bytes) {
#ifdef __SSE2__
  size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(to) % sizeof(__m128i));
  std::memcpy(to, from, head);
  to += head, from += head, bytes -= head;
  for (; bytes >= pages * page_bytes; to += pages * page_bytes, from += pages * page_bytes, bytes -= pages * page_bytes)
    for (size_t at = 0; at < page_bytes; at += line)
      for (size_t i = 0; i < pages; ++i) stream_line(to + i * page_bytes + at, from + i * page_bytes + at);
  _mm_sfence();
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace

void AsyncCopy::wait() {
  if (transfer_) transfer_->wait();
}
void AsyncCopy::wait(CUstream_st* stream) const {
  if (transfer_) transfer_->wait(stream);
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
    copy_past_caches(to.bytes_data(), from.bytes_data(), size_t(from.bytes()));
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
