#include "dtensor/local/host_pool.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>

namespace dtensor {
namespace {

enum Kind : int { idle, without_pages };

constexpr int64_t page = 4096, slack = int64_t(2) << 20, largest_step = int64_t(64) << 20, window = 256;

int64_t rounded(int64_t bytes) { return (bytes + page - 1) / page * page; }

// Under the address sanitizer, what is free and the rest of a last page cannot be touched.
void unmap(const BlockPool::Span& segment) {
  ASAN_UNPOISON_MEMORY_REGION(segment.at, size_t(segment.bytes));
  munmap(segment.at, size_t(segment.bytes));
}

}  // namespace

HostPool::~HostPool() {
  for (const BlockPool::Span& segment : blocks_.segments()) unmap(segment);
}

int64_t HostPool::limit() const {
  int64_t most = std::max(most_[0], most_[1]);
  return most + std::max(most / 4, slack);
}

void* HostPool::allocate(int64_t bytes) {
  int64_t size = rounded(bytes);
  void* block = blocks_.take(size, idle);
  if (block)
    idle_ -= size;
  else if (!(block = fresh(size)))
    return nullptr;
  note_use(size);
  give_back(limit());
  ASAN_UNPOISON_MEMORY_REGION(block, size_t(bytes));
  return block;
}

void HostPool::free(void* block, int64_t bytes) {
  int64_t size = rounded(bytes);
  ASAN_POISON_MEMORY_REGION(block, size_t(size));
  blocks_.put(block);
  used_ -= size, idle_ += size;
}

void* HostPool::fresh(int64_t size) {
  void* block = blocks_.take(size, without_pages);
  if (!block) {
    if (!add_segment(size)) {
      give_back(0);  // addresses may be what is short
      if (!add_segment(size)) return nullptr;
    }
    block = blocks_.take(size, without_pages);
  }
  blocks_.turn(block, idle);
  return block;
}

// Segments grow with the pool: a small program maps little, and a large one has few of them.
bool HostPool::add_segment(int64_t size) {
  for (int64_t bytes : {std::max(size, std::min(mapped_, largest_step)), size}) {
    void* at = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) continue;
    ASAN_POISON_MEMORY_REGION(at, size_t(bytes));
    blocks_.add(at, bytes, without_pages);
    mapped_ += bytes;
    return true;
  }
  return false;
}

void HostPool::note_use(int64_t size) {
  used_ += size, allocated_ += size;
  most_[0] = std::max(most_[0], used_);
  if (allocated_ / window < most_[0]) return;
  most_[1] = most_[0], most_[0] = used_, allocated_ = 0;
}

void HostPool::give_back(int64_t limit) {
  while (idle_ > 0 && used_ + idle_ > limit) {
    BlockPool::Span span = blocks_.idlest(idle);
    madvise(span.at, size_t(span.bytes), MADV_DONTNEED);
    idle_ -= span.bytes;
    span = blocks_.turn(span.at, without_pages);
    if (!span.is_segment) continue;
    blocks_.remove(span.at);
    mapped_ -= span.bytes;
    unmap(span);
  }
}

}  // namespace dtensor
