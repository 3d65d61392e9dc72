#include "dtensor/cuda/allocator.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <vector>

#include "dtensor/local/block_pool.h"
#include "dtensor/local/segments.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {

// A kind of blocks is a pool and, in it, the small ones.
int kind_of(int pool, bool is_small) { return 2 * pool + is_small; }

class CachingAllocator : public Allocator {
 public:
  explicit CachingAllocator(int device) : device_index_(device) {}
  ~CachingAllocator() override {
    use_device(device_index_);
    for (const BlockPool::Span& segment : blocks_.segments()) release(segment.at);
  }

  Device device() const override { return Device::cuda; }
  int device_index() const override { return device_index_; }
  CUstream_st* stream() const override { return stream_.handle(); }

  void synchronize() override {
    cuda::synchronize(stream());
    release_kept();
  }

  void* allocate(int64_t bytes, int64_t) override {
    int64_t size = Segments::block(bytes);
    std::lock_guard lock(mutex_);
    int kind = kind_of(pool_, Segments::is_small(size));
    void* block = blocks_.take(size, kind);
    if (!block) {
      int64_t segment = Segments::segment(size);
      blocks_.add(new_segment(segment, bytes), segment, kind);
      block = blocks_.take(size, kind);
    }
    count(bytes);
    return block;
  }

  void free(void* block, int64_t bytes, int64_t) override {
    std::lock_guard lock(mutex_);
    count(-bytes);
    blocks_.put(block);
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
    for (bool is_small : {false, true}) blocks_.turn_all(kind_of(pool, is_small), kind_of(0, is_small));
  }

  StreamHandle copy_stream(bool to_host) const { return (to_host ? to_host_ : to_device_).handle(); }
  // Holds host memory that a copy of this device may still use.
  void keep_until(Event done, Tensor host) {
    release_kept();
    std::lock_guard lock(kept_mutex_);
    kept_.push_back({std::move(done), std::move(host)});
  }

 private:
  struct Kept {
    Event done;
    Tensor host;
  };

  // What copies held that are over.
  void release_kept() {
    std::vector<Kept> over;  // freed without the mutex
    std::lock_guard lock(kept_mutex_);
    auto first = std::partition(kept_.begin(), kept_.end(), [](const Kept& k) { return !k.done.is_done(); });
    std::move(first, kept_.end(), std::back_inserter(over));
    kept_.erase(first, kept_.end());
  }

  void* new_segment(int64_t size, int64_t asked) {
    void* at = cuda::allocate(size);
    if (!at && release_unused()) at = cuda::allocate(size);
    if (!at)
      throw OutOfMemory(fmt::format(
          "[cuda] no memory for {} bytes: the tensors of this rank hold {}, {} are free on device {}; take a smaller "
          "--batch-size, or more ranks",
          asked, bytes_in_use(), free_memory(), device_index_));
    return at;
  }

  // Gives whole segments that nobody uses back to the device; true where there was one. Waits for the device.
  bool release_unused() {
    if (Graph::is_capturing(stream())) return false;
    bool any = false;
    for (bool is_small : {false, true})
      for (const BlockPool::Span& segment : blocks_.free_segments(kind_of(0, is_small))) {
        blocks_.remove(segment.at);
        release(segment.at);
        any = true;
      }
    return any;
  }

  int device_index_;
  Stream stream_, to_host_, to_device_;
  BlockPool blocks_;
  int pool_ = 0, last_pool_ = 0;
  std::mutex kept_mutex_;
  std::vector<Kept> kept_;
};

class PinnedAllocator : public Allocator {
 public:
  ~PinnedAllocator() override {
    for (const BlockPool::Span& segment : blocks_.segments()) release_pinned(segment.at);
  }
  bool is_pinned() const override { return true; }

  void* allocate(int64_t bytes, int64_t overhead) override {
    int64_t size = rounded_up(bytes + overhead, Segments::grain);
    std::lock_guard lock(mutex_);
    void* block = blocks_.take(size, 0);
    if (!block) {
      int64_t segment = rounded_up(size, Segments::grain_of_large);
      void* at = allocate_pinned(segment);
      if (!at)
        throw OutOfMemory(
            fmt::format("[cuda] no pinned host memory for {} bytes: the tensors there hold {}; offload less", bytes,
                        bytes_in_use()));
      blocks_.add(at, segment, 0);
      block = blocks_.take(size, 0);
    }
    count(bytes);
    return block;
  }

  void free(void* block, int64_t bytes, int64_t) override {
    std::lock_guard lock(mutex_);
    count(-bytes);
    blocks_.put(block);
  }

 private:
  BlockPool blocks_;
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

std::shared_ptr<Allocator> make_pinned_allocator() { return std::make_shared<PinnedAllocator>(); }

Transfer::Transfer(Tensor from, Tensor to) : from_(std::move(from)), to_(std::move(to)) {
  StreamHandle compute = on_device().allocator()->stream();
  StreamHandle side = of(on_device().allocator()).copy_stream(to_.device() == Device::cpu);
  Event ready;
  ready.record(compute);
  cuda::wait(side, ready);
  copy(to_.bytes_data(), from_.bytes_data(), from_.bytes(), side);
  done_.record(side);
}

Transfer::~Transfer() {
  try {
    wait();
    CachingAllocator& allocator = of(on_device().allocator());
    if (!is_done()) allocator.keep_until(std::move(done_), from_.device() == Device::cpu ? from_ : to_);
  } catch (const Error&) {  // the device is lost, and whoever uses it next hears of it
  }
}

void Transfer::wait() {
  if (!std::exchange(waited_, true)) cuda::wait(on_device().allocator()->stream(), done_);
}
void Transfer::synchronize() const { done_.synchronize(); }
bool Transfer::is_done() const { return done_.is_done(); }

PrivatePool::PrivatePool(std::shared_ptr<Allocator> allocator)
    : allocator_(std::move(allocator)), id_(of(allocator_).new_pool()) {}
PrivatePool::~PrivatePool() { of(allocator_).end_pool(id_); }
void PrivatePool::begin() { of(allocator_).serve_from(id_); }
void PrivatePool::end() { of(allocator_).serve_from(0); }

}  // namespace dtensor::cuda
