// Memory of dry runs: counted, without bytes; and a log of it.
#pragma once

#include "dtensor/local/allocator.h"

namespace dtensor {

// Told of each block of a meta allocator. Numbers of blocks are never used twice.
class MemoryLog {
 public:
  virtual ~MemoryLog() = default;
  virtual void on_allocate(uint64_t block, int64_t bytes) = 0;
  virtual void on_free(uint64_t block) = 0;
};

// Gives numbers in place of addresses. What make_allocator(Device::meta) makes; used by one thread.
class MetaAllocator : public Allocator {
 public:
  Device device() const override { return Device::meta; }
  void* allocate(int64_t bytes, int64_t overhead = 0) override;
  void free(void* block, int64_t bytes, int64_t overhead = 0) override;

  MemoryLog* log = nullptr;  // whoever sets it takes it away before the log goes

 private:
  uint64_t last_ = 0;
};

}  // namespace dtensor
