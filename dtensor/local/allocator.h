// Memory of tensors, counted.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "dtensor/local/device.h"
#include "dtensor/local/host_pool.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace dtensor {

// One per rank, shared by its tensors; safe to free from another rank's thread, where a collective may drop the last
// reference. Here host memory, 64-byte aligned: small blocks from malloc, large ones from a pool that keeps their pages
// for the next step. CUDA's is in cuda/allocator.h, and make_allocator() has one for each device.
class Allocator {
 public:
  Allocator() = default;
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;
  virtual ~Allocator() = default;

  virtual Device device() const { return Device::cpu; }
  virtual int device_index() const { return 0; }  // among those of its kind
  // On which kernels work on its tensors, one after the other; null on the CPU.
  virtual CUstream_st* stream() const { return nullptr; }
  // Waits until what the stream was given is done; copies that are over hold their host tensors no longer.
  virtual void synchronize() {}
  // Host memory that copies of a device read and write while the host goes on.
  virtual bool is_pinned() const { return false; }

  // `overhead` bytes more than are counted. Null on meta. Errors: there is not enough memory left.
  virtual void* allocate(int64_t bytes, int64_t overhead = 0);
  virtual void free(void* block, int64_t bytes, int64_t overhead = 0);

  // Bytes of tensors' elements in use now, and the most since the last reset_peak().
  int64_t bytes_in_use() const { return in_use_; }
  int64_t peak_bytes() const { return peak_; }
  void reset_peak() { peak_ = in_use_.load(); }

 protected:
  void count(int64_t bytes);  // taken into use, or given back where negative
  std::mutex mutex_;

 private:
  std::atomic<int64_t> in_use_{0}, peak_{0};
  HostPool large_;
};

// A rank's memory. That of meta has no bytes: what a dry run's tensors would take is counted, so that bytes_in_use()
// and peak_bytes() are those of a run. `cuda_device` is the one of this thread from now on.
std::shared_ptr<Allocator> make_allocator(Device device, int cuda_device = 0);
// Host memory from and to which copy_async copies tensors of `of`: pinned on CUDA; on the CPU `of` itself; on meta one
// that counts apart.
std::shared_ptr<Allocator> make_host_allocator(const std::shared_ptr<Allocator>& of);

// Bytes that tensors share: a block, counted by reference. The count is its own, not a shared_ptr's, because in-place
// writes ask for it with acquire order: when unique() is true, every other holder's reads have ended.
class Storage {
 public:
  Storage() = default;
  Storage(std::shared_ptr<Allocator> allocator, int64_t bytes);
  Storage(const Storage& other) : block_(other.block_) {
    if (block_) block_->references.fetch_add(1, std::memory_order_relaxed);
  }
  Storage(Storage&& other) noexcept : block_(other.block_) { other.block_ = nullptr; }
  Storage& operator=(Storage other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Storage() { release(); }

  std::byte* data() const { return block_ ? block_->data : nullptr; }
  bool unique() const { return block_ && block_->references.load(std::memory_order_acquire) == 1; }
  const std::shared_ptr<Allocator>& allocator() const { return block_ ? block_->allocator : none_; }
  friend bool operator==(const Storage&, const Storage&) = default;

 private:
  struct Block {  // stands before the bytes, in one allocation, where these are in host memory
    std::shared_ptr<Allocator> allocator;
    int64_t bytes;
    std::byte* data;
    std::atomic<int> references{1};
  };
  static constexpr int64_t header = 64;  // bytes of a Block before aligned data
  void release();

  inline static const std::shared_ptr<Allocator> none_;

  Block* block_ = nullptr;
};

}  // namespace dtensor
