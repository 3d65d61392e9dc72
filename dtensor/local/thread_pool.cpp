#include "dtensor/local/thread_pool.h"

#include <algorithm>

namespace dtensor {

ThreadPool::ThreadPool(int size) {
  for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadPool::parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& f) {
  if (n <= 0) return;
  int64_t grains = (n + grain - 1) / grain, workers = std::min<int64_t>(grains, size());
  if (workers == 1) return f(0, n, 0);
  {
    std::lock_guard lock(mutex_);
    job_ = &f, n_ = n, piece_ = (grains + workers - 1) / workers * grain;
    running_ = int(threads_.size()), error_ = nullptr;
    ++round_;
  }
  start_.notify_all();
  std::exception_ptr error;
  try {
    f(0, std::min(n, piece_), 0);
  } catch (...) {
    error = std::current_exception();
  }
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return running_ == 0; });
  job_ = nullptr;
  if (!error) error = error_;
  if (error) std::rethrow_exception(error);
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    start_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    int64_t begin = worker * piece_, end = std::min(n_, begin + piece_);
    auto* job = job_;
    lock.unlock();
    std::exception_ptr error;
    try {
      if (begin < end) (*job)(begin, end, worker);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !error_) error_ = error;
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace dtensor
