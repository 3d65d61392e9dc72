#include "dtensor/local/allocator.h"

#include <cstdlib>
#include <new>

namespace dtensor {
namespace {

constexpr size_t alignment = 64;
constexpr size_t kept = size_t(64) << 10;  // blocks from this size on are kept

// Large sizes are rounded up, so that near ones share a free list.
size_t rounded(int64_t bytes) {
  size_t n = size_t(bytes), grain = kept / 4;
  return n < kept ? n : (n + grain - 1) / grain * grain;
}

// Aligned by hand: malloc is several times faster than aligned_alloc for small blocks. The block that malloc gave is
// written down before the aligned one.
void* aligned_malloc(size_t bytes) {
  void* raw = std::malloc(bytes + alignment + sizeof(void*));
  if (!raw) throw std::bad_alloc();
  auto at = (reinterpret_cast<uintptr_t>(raw) + sizeof(void*) + alignment - 1) / alignment * alignment;
  reinterpret_cast<void**>(at)[-1] = raw;
  return reinterpret_cast<void*>(at);
}
void aligned_free(void* block) { std::free(static_cast<void**>(block)[-1]); }

}  // namespace

Allocator::~Allocator() {
  for (auto& [size, blocks] : free_)
    for (void* block : blocks) aligned_free(block);
}

void Allocator::count(int64_t bytes) {
  int64_t now = in_use_.fetch_add(bytes) + bytes, peak = peak_;
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
}

void* Allocator::allocate(int64_t bytes, int64_t overhead) {
  count(bytes);
  size_t size = rounded(bytes + overhead);
  if (size >= kept) {
    std::lock_guard lock(mutex_);
    if (auto it = free_.find(size); it != free_.end() && !it->second.empty()) {
      void* block = it->second.back();
      it->second.pop_back();
      return block;
    }
  }
  return aligned_malloc(size);
}

void Allocator::free(void* block, int64_t bytes, int64_t overhead) {
  count(-bytes);
  size_t size = rounded(bytes + overhead);
  if (size < kept) return aligned_free(block);
  std::lock_guard lock(mutex_);
  free_[size].push_back(block);
}

Storage::Storage(std::shared_ptr<Allocator> allocator, int64_t bytes) {
  if (allocator->device() == Device::cpu) {
    void* memory = allocator->allocate(bytes, sizeof(Block));
    block_ = new (memory) Block{std::move(allocator), bytes, static_cast<std::byte*>(memory) + sizeof(Block)};
  } else {
    auto data = static_cast<std::byte*>(allocator->allocate(bytes));
    block_ = new Block{std::move(allocator), bytes, data};
  }
}

void Storage::release() {
  if (!block_ || block_->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  std::shared_ptr<Allocator> allocator = std::move(block_->allocator);
  int64_t bytes = block_->bytes;
  if (allocator->device() == Device::cpu) {
    std::destroy_at(block_);
    allocator->free(block_, bytes, sizeof(Block));
  } else {
    allocator->free(block_->data, bytes);
    delete block_;
  }
}

}  // namespace dtensor
