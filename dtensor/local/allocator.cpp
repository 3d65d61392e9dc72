#include "dtensor/local/allocator.h"

#include <new>

namespace dtensor {
namespace {
constexpr std::align_val_t alignment{64};
constexpr size_t kept = size_t(64) << 10;  // blocks from this size on are kept

// Rounded up, so that near sizes share a free list.
size_t rounded(int64_t bytes) {
  size_t n = size_t(bytes < 1 ? 1 : bytes);
  size_t grain = n < kept ? 64 : kept / 4;
  return (n + grain - 1) / grain * grain;
}
}  // namespace

Allocator::~Allocator() {
  for (auto& [size, blocks] : free_)
    for (void* block : blocks) ::operator delete(block, alignment);
}

void* Allocator::allocate(int64_t bytes) {
  int64_t now = in_use_.fetch_add(bytes) + bytes, peak = peak_;
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
  size_t size = rounded(bytes);
  if (size >= kept) {
    std::lock_guard lock(mutex_);
    if (auto it = free_.find(size); it != free_.end() && !it->second.empty()) {
      void* block = it->second.back();
      it->second.pop_back();
      return block;
    }
  }
  return ::operator new(size, alignment);
}

void Allocator::free(void* block, int64_t bytes) {
  in_use_ -= bytes;
  size_t size = rounded(bytes);
  if (size < kept) return ::operator delete(block, alignment);
  std::lock_guard lock(mutex_);
  free_[size].push_back(block);
}

Storage::Storage(std::shared_ptr<Allocator> allocator, int64_t bytes) {
  void* data = allocator->allocate(bytes);
  block_ = new Block{std::move(allocator), data, bytes};
}

void Storage::release() {
  if (block_ && block_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    block_->allocator->free(block_->data, block_->bytes);
    delete block_;
  }
}

}  // namespace dtensor
