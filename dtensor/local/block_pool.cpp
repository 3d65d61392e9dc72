#include "dtensor/local/block_pool.h"

#include <algorithm>
#include <iterator>

namespace dtensor {

void BlockPool::add(void* segment, int64_t bytes, int kind) {
  auto it = blocks_.emplace(static_cast<char*>(segment), Block{bytes, kind, true, false, ++clock_}).first;
  free_.insert(entry(it));
}

void* BlockPool::take(int64_t bytes, int kind) {
  auto found = free_.lower_bound({kind, bytes, nullptr});
  if (found == free_.end() || found->kind != kind) return nullptr;
  char* at = found->at;
  Block& block = blocks_.find(at)->second;
  free_.erase(found);
  if (int64_t rest = block.size - bytes) {
    block.size = bytes;
    free_.insert(entry(blocks_.emplace(at + bytes, Block{rest, kind, false, false, block.since}).first));
  }
  block.used = true;
  return at;
}

void BlockPool::put(void* block) {
  auto it = blocks_.find(static_cast<char*>(block));
  it->second.used = false, it->second.since = ++clock_;
  join(it);
}

BlockPool::Span BlockPool::turn(void* block, int kind) {
  auto it = blocks_.find(static_cast<char*>(block));
  if (!it->second.used) free_.erase(entry(it));
  it->second.kind = kind;
  if (!it->second.used) it = join(it);
  return {it->first, it->second.size, is_segment(it)};
}

void BlockPool::turn_all(int kind, int to) {
  for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
    if (it->second.kind == kind) {
      bool is_free = !it->second.used;
      if (is_free) free_.erase(entry(it));
      it->second.kind = to;
      if (is_free) free_.insert(entry(it));
    }
}

BlockPool::Span BlockPool::idlest(int kind) const {
  auto found = blocks_.end();
  for (auto f = free_.lower_bound({kind, 0, nullptr}); f != free_.end() && f->kind == kind; ++f) {
    auto it = blocks_.find(f->at);
    if (found == blocks_.end() || it->second.since < found->second.since) found = it;
  }
  return found == blocks_.end() ? Span() : Span{found->first, found->second.size, is_segment(found)};
}

std::vector<BlockPool::Span> BlockPool::free_segments(int kind) const {
  std::vector<Span> found;
  for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
    if (!it->second.used && it->second.kind == kind && is_segment(it))
      found.push_back({it->first, it->second.size, true});
  return found;
}

void BlockPool::remove(void* segment) {
  auto it = blocks_.find(static_cast<char*>(segment));
  free_.erase(entry(it));
  blocks_.erase(it);
}

std::vector<BlockPool::Span> BlockPool::segments() const {
  std::vector<Span> all;
  for (auto& [at, block] : blocks_) {
    if (block.first) all.push_back({at, 0, true});
    all.back().bytes += block.size;
  }
  return all;
}

bool BlockPool::is_segment(Blocks::const_iterator it) const {
  auto next = std::next(it);
  return it->second.first && (next == blocks_.end() || next->second.first);
}

// Makes one block of this one, which is free and not in free_ yet, and its free neighbours.
BlockPool::Blocks::iterator BlockPool::join(Blocks::iterator it) {
  absorb_next(it);
  if (!it->second.first)
    if (auto before = std::prev(it); !before->second.used && before->second.kind == it->second.kind) {
      free_.erase(entry(before));
      absorb_next(before);
      it = before;
    }
  free_.insert(entry(it));
  return it;
}

void BlockPool::absorb_next(Blocks::iterator it) {
  auto next = std::next(it);
  if (next == blocks_.end() || next->second.first || next->second.used || next->second.kind != it->second.kind) return;
  free_.erase(entry(next));
  it->second.size += next->second.size;
  it->second.since = std::max(it->second.since, next->second.since);
  blocks_.erase(next);
}

}  // namespace dtensor
