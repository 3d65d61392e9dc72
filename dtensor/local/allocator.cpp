#include "dtensor/local/allocator.h"

#include <cstdlib>

#include "dtensor/cuda/allocator.h"
#include "dtensor/local/meta_allocator.h"
#include "placement/error.h"

namespace dtensor {
namespace {

constexpr size_t alignment = 64;
constexpr int64_t large = int64_t(64) << 10;  // bytes from which on a block is the pool's

// Aligned by hand: malloc is several times faster than aligned_alloc for small blocks. The block that malloc gave is
// written down before the aligned one. Null where there is none.
void* aligned_malloc(size_t bytes) {
  void* raw = std::malloc(bytes + alignment + sizeof(void*));
  if (!raw) return nullptr;
  auto at = (reinterpret_cast<uintptr_t>(raw) + sizeof(void*) + alignment - 1) / alignment * alignment;
  reinterpret_cast<void**>(at)[-1] = raw;
  return reinterpret_cast<void*>(at);
}
void aligned_free(void* block) { std::free(static_cast<void**>(block)[-1]); }

}  // namespace

std::shared_ptr<Allocator> make_allocator(Device device, int cuda_device) {
  if (device == Device::cuda) return cuda::make_allocator(cuda_device);
  if (device == Device::meta) return std::make_shared<MetaAllocator>();
  return std::make_shared<Allocator>();
}

std::shared_ptr<Allocator> make_host_allocator(const std::shared_ptr<Allocator>& of) {
  if (of->device() == Device::cuda) return cuda::make_pinned_allocator();
  return of->device() == Device::meta ? make_allocator(Device::meta) : of;
}

void* MetaAllocator::allocate(int64_t bytes, int64_t) {
  count(bytes);
  ++last_;
  if (log) log->on_allocate(last_, bytes);
  return reinterpret_cast<void*>(last_);
}

void MetaAllocator::free(void* block, int64_t bytes, int64_t) {
  count(-bytes);
  if (log) log->on_free(reinterpret_cast<uint64_t>(block));
}

void Allocator::count(int64_t bytes) {
  int64_t now = in_use_.fetch_add(bytes) + bytes, peak = peak_;
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
}

void* Allocator::allocate(int64_t bytes, int64_t overhead) {
  void* block = nullptr;
  if (bytes < large) {
    block = aligned_malloc(size_t(bytes + overhead));
  } else {
    std::lock_guard lock(mutex_);
    block = large_.allocate(bytes + overhead);
  }
  if (!block)
    throw OutOfMemory(fmt::format(
        "[Tensor] no host memory for {} bytes: the tensors of this rank hold {}; take a smaller --batch-size, or give "
        "the process more (`ulimit -v` limits it too)",
        bytes, bytes_in_use()));
  count(bytes);
  return block;
}

void Allocator::free(void* block, int64_t bytes, int64_t overhead) {
  count(-bytes);
  if (bytes < large) return aligned_free(block);
  std::lock_guard lock(mutex_);
  large_.free(block, bytes + overhead);
}

Storage::Storage(std::shared_ptr<Allocator> allocator, int64_t bytes) {
  static_assert(sizeof(Block) <= header);
  if (allocator->device() == Device::cpu) {
    void* memory = allocator->allocate(bytes, header);
    block_ = new (memory) Block{std::move(allocator), bytes, static_cast<std::byte*>(memory) + header};
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
    allocator->free(block_, bytes, header);
  } else {
    allocator->free(block_->data, bytes);
    delete block_;
  }
}

}  // namespace dtensor
