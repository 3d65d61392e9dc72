// Host memory that is logged as a dry run's is, so that a run on the CPU can be traced by the same rules.
#pragma once

#include <thread>
#include <unordered_map>
#include <vector>

#include "dtensor/local/meta_allocator.h"
#include "dtensor/rank.h"

namespace dtensor::testing {

// What another rank's thread frees is told with the owner's next allocation or free.
class LoggedAllocator : public Allocator {
 public:
  MemoryLog* log = nullptr;

  // Takes the place of the rank's own, from which nothing was allocated yet.
  static std::shared_ptr<LoggedAllocator> of(Rank& rank) {
    check(rank.allocator()->bytes_in_use() == 0, "[LoggedAllocator] rank {} holds tensors", rank.rank());
    auto made = std::make_shared<LoggedAllocator>();
    for (const auto* place : {&rank.allocator(), &rank.host_allocator()})
      const_cast<std::shared_ptr<Allocator>&>(*place) = made;
    return made;
  }

  void* allocate(int64_t bytes, int64_t overhead) override {
    void* block = Allocator::allocate(bytes, overhead);
    uint64_t number = 0;
    {
      std::lock_guard lock(mutex_);
      number = numbers_[block] = ++last_;
    }
    tell_what_others_freed();
    if (log) log->on_allocate(number, bytes);
    return block;
  }

  void free(void* block, int64_t bytes, int64_t overhead) override {
    uint64_t number = 0;
    {
      std::lock_guard lock(mutex_);
      auto it = numbers_.find(block);
      number = it->second;
      numbers_.erase(it);
      if (std::this_thread::get_id() != owner_) freed_by_others_.push_back(number);
    }
    Allocator::free(block, bytes, overhead);
    if (std::this_thread::get_id() != owner_) return;
    tell_what_others_freed();
    if (log) log->on_free(number);
  }

 private:
  void tell_what_others_freed() {
    std::vector<uint64_t> freed;
    {
      std::lock_guard lock(mutex_);
      freed.swap(freed_by_others_);
    }
    for (uint64_t number : freed)
      if (log) log->on_free(number);
  }

  std::thread::id owner_ = std::this_thread::get_id();
  uint64_t last_ = 0;
  std::mutex mutex_;
  std::unordered_map<void*, uint64_t> numbers_;
  std::vector<uint64_t> freed_by_others_;
};

}  // namespace dtensor::testing
