// Which parts of memory are in use: the bookkeeping of allocators that get their memory in segments.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

namespace dtensor {

// Best fit over blocks that know their neighbours: blocks are cut from segments, and free ones are joined again. The
// kind of a block is a number of the owner's: a request is served from one kind, and only free blocks of one kind and
// one segment are joined. The memory itself is never touched. For one thread.
class BlockPool {
 public:
  struct Span {
    char* at = nullptr;
    int64_t bytes = 0;
    bool is_segment = false;  // all of one
  };

  // A segment, which is free. Its address is not in the pool yet.
  void add(void* segment, int64_t bytes, int kind);
  // The smallest free block of the kind that has `bytes`, cut to that size; null where there is none.
  void* take(int64_t bytes, int kind);
  // What take() gave is free again.
  void put(void* block);
  // A block becomes one of another kind; what it is now, joined if it is free.
  Span turn(void* block, int kind);
  // So do all of a kind, which has segments of its own.
  void turn_all(int kind, int to);
  // Of the free blocks of a kind, the one that was not used for the longest time; no bytes where there is none.
  Span idlest(int kind) const;
  // The segments of a kind that are one free block.
  std::vector<Span> free_segments(int kind) const;
  // Forgets a segment that is one free block.
  void remove(void* segment);
  // All of them, to give them back at the end.
  std::vector<Span> segments() const;

 private:
  struct Block {
    int64_t size;
    int kind;
    bool first;  // of its segment
    bool used;
    uint64_t since;  // when it was used last
  };
  using Blocks = std::map<char*, Block>;
  struct Free {
    int kind;
    int64_t size;
    char* at;
    auto operator<=>(const Free&) const = default;
  };

  Free entry(Blocks::const_iterator it) const { return {it->second.kind, it->second.size, it->first}; }
  bool is_segment(Blocks::const_iterator it) const;
  Blocks::iterator join(Blocks::iterator it);
  void absorb_next(Blocks::iterator it);

  Blocks blocks_;
  std::set<Free> free_;
  uint64_t clock_ = 0;
};

}  // namespace dtensor
