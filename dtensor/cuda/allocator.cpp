#include "dtensor/cuda/allocator.h"

#include <map>
#include <set>

#include "placement/error.h"

namespace dtensor::cuda {
namespace {

constexpr int64_t grain = 512, small = int64_t(1) << 20, small_segment = 2 << 20, large_grain = 2 << 20;

int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// Best fit over blocks that know their neighbours. Small blocks have segments of their own, so that they do not cut the
// large ones to pieces.
class CachingAllocator : public Allocator {
 public:
  explicit CachingAllocator(int device) : device_index_(device) {}
  ~CachingAllocator() override {
    use_device(device_index_);
    for (auto& [at, block] : blocks_)
      if (block.first) release(at);
  }

  Device device() const override { return Device::cuda; }
  CUstream_st* stream() const override { return stream_.handle(); }

  void* allocate(int64_t bytes, int64_t) override {
    int64_t size = rounded(std::max<int64_t>(bytes, 1), grain);
    std::lock_guard lock(mutex_);
    auto found = find(size);
    if (found == free_.end()) found = add_segment(bytes, size);
    char* at = found->at;
    free_.erase(found);
    split(at, size);
    blocks_[at].used = true;
    count(bytes);
    return at;
  }

  void free(void* memory, int64_t bytes, int64_t) override {
    std::lock_guard lock(mutex_);
    count(-bytes);
    auto it = blocks_.find(static_cast<char*>(memory));
    it->second.used = false;
    it = join(it);
    if (it != blocks_.begin()) join(std::prev(it));
  }

  // What nobody uses goes back to the device, so that the pool can have it.
  int new_pool() {
    std::lock_guard lock(mutex_);
    release_unused();
    return ++last_pool_;
  }
  void serve_from(int pool) {
    std::lock_guard lock(mutex_);
    pool_ = pool;
  }
  // The blocks of `pool` are everybody's.
  void end_pool(int pool) {
    std::lock_guard lock(mutex_);
    for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
      if (it->second.pool == pool) {
        forget(it);
        it->second.pool = 0;
        offer(it);
      }
  }

 private:
  struct Block {
    int64_t size;
    int pool;
    bool small, first;  // of a segment of small blocks; at the begin of its segment
    bool used = false;
  };
  using Blocks = std::map<char*, Block>;
  struct Free {
    int pool;
    bool small;
    int64_t size;
    char* at;
    auto operator<=>(const Free&) const = default;
  };

  std::set<Free>::iterator find(int64_t size) {
    bool is_small = size <= small;
    auto it = free_.lower_bound({pool_, is_small, size, nullptr});
    return it != free_.end() && it->pool == pool_ && it->small == is_small ? it : free_.end();
  }

  std::set<Free>::iterator add_segment(int64_t bytes, int64_t size) {
    bool is_small = size <= small;
    int64_t segment = is_small ? small_segment : rounded(size, large_grain);
    auto at = static_cast<char*>(cuda::allocate(segment));
    if (!at && release_unused()) at = static_cast<char*>(cuda::allocate(segment));
    if (!at)
      fail(
          "[cuda] no memory for {} bytes: the tensors of this rank hold {}, {} are free on device {}; take a smaller "
          "--batch-size, or more ranks",
          bytes, bytes_in_use(), free_memory(), device_index_);
    blocks_[at] = {segment, pool_, is_small, true};
    return free_.insert({pool_, is_small, segment, at}).first;
  }

  // Gives whole segments that nobody uses back to the device; true where there was one. Waits for the device.
  bool release_unused() {
    if (Graph::is_capturing(stream())) return false;
    bool any = false;
    for (auto it = blocks_.begin(); it != blocks_.end();) {
      auto next = std::next(it);
      bool whole = it->second.first && (next == blocks_.end() || next->second.first);
      if (whole && !it->second.used && it->second.pool == 0) {
        forget(it);
        release(it->first);
        blocks_.erase(it);
        any = true;
      }
      it = next;
    }
    return any;
  }

  void split(char* at, int64_t size) {
    Block& block = blocks_[at];
    int64_t rest = block.size - size;
    if (rest == 0) return;
    block.size = size;
    offer(blocks_.emplace(at + size, Block{rest, block.pool, block.small, false}).first);
  }

  // Makes one block of this one, which is free, and the next where that is free too and of the same segment.
  Blocks::iterator join(Blocks::iterator it) {
    auto next = std::next(it);
    if (it->second.used) return it;
    forget(it);
    if (next != blocks_.end() && !next->second.first && !next->second.used) {
      forget(next);
      it->second.size += next->second.size;
      blocks_.erase(next);
    }
    offer(it);
    return it;
  }

  void offer(Blocks::iterator it) {
    const Block& b = it->second;
    if (!b.used) free_.insert({b.pool, b.small, b.size, it->first});
  }
  void forget(Blocks::iterator it) {
    const Block& b = it->second;
    free_.erase({b.pool, b.small, b.size, it->first});
  }

  int device_index_;
  Stream stream_;
  Blocks blocks_;
  std::set<Free> free_;
  int pool_ = 0, last_pool_ = 0;
};

CachingAllocator& of(const std::shared_ptr<Allocator>& a) { return static_cast<CachingAllocator&>(*a); }

}  // namespace

std::shared_ptr<Allocator> make_allocator(int device) {
  std::string why = unavailable();
  check(why.empty(), "[cuda] tensors cannot be there: {}", why);
  check(device >= 0 && device < device_count(), "[cuda] there is no device {}: the number of devices is {}", device,
        device_count());
  use_device(device);
  return std::make_shared<CachingAllocator>(device);
}

PrivatePool::PrivatePool(std::shared_ptr<Allocator> allocator)
    : allocator_(std::move(allocator)), id_(of(allocator_).new_pool()) {}
PrivatePool::~PrivatePool() { of(allocator_).end_pool(id_); }
void PrivatePool::begin() { of(allocator_).serve_from(id_); }
void PrivatePool::end() { of(allocator_).serve_from(0); }

}  // namespace dtensor::cuda
