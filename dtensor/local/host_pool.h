// Host memory in pages, kept for reuse and given back.
#pragma once

#include "dtensor/local/block_pool.h"

namespace dtensor {

// Blocks of whole pages, in segments from mmap. Pages that were used are kept, because fresh ones from the system cost
// more than most kernels, and the next step of a training loop asks for the same sizes again. But no more of them than
// a quarter of what was in use at once lately, and 2 MiB: beyond that the longest idle go back to the system. "Lately"
// ends when 256 times as much was allocated since, so giving back costs little beside writing what is allocated,
// whatever a program does. For one thread.
class HostPool {
 public:
  HostPool() = default;
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;
  ~HostPool();  // all blocks are free

  // Page-aligned, contents undefined; null where the system has no more.
  void* allocate(int64_t bytes);
  void free(void* block, int64_t bytes);  // of allocate(bytes)

  // What the system may have to hold for the pool: blocks in use and those that were.
  int64_t resident_bytes() const { return used_ + idle_; }
  // What it keeps at most.
  int64_t limit() const;

 private:
  void* fresh(int64_t size);
  bool add_segment(int64_t size);
  void note_use(int64_t size);
  void give_back(int64_t limit);

  BlockPool blocks_;
  int64_t mapped_ = 0;           // all segments
  int64_t used_ = 0, idle_ = 0;  // blocks in use; free ones with pages
  int64_t most_[2] = {0, 0};     // in use at once, in this window and in the one before
  int64_t allocated_ = 0;        // in this window
};

}  // namespace dtensor
