#include "dtensor/local/thread_pool.h"

#include <algorithm>
#include <system_error>

#include "placement/error.h"

namespace dtensor {

std::thread start_thread(std::string_view who, std::function<void()> f) {
  try {
    return std::thread(std::move(f));
  } catch (const std::system_error& e) {
    fail(
        "[{}] the system starts no more threads ({}): take fewer ranks or threads per rank, or raise the limits of "
        "`ulimit -u` and of memory",
        who, e.code().message());
  }
}

ThreadPool::ThreadPool(int size, std::string_view who) {
  check(size >= 1 && size <= max_size, "[{}] {} threads of a rank's kernels; 1 to {} are possible", who, size,
        max_size);
  try {
    for (int i = 1; i < size; ++i) threads_.push_back(start_thread(who, [this, i] { work(i); }));
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadPool::run(const Job& job, int64_t n, int64_t piece) {
  {
    std::lock_guard lock(mutex_);
    job_ = job, n_ = n, piece_ = piece;
    running_ = int(threads_.size()), error_ = nullptr;
    ++round_;
  }
  start_.notify_all();
  std::exception_ptr error;
  try {
    job.call(job.f, 0, std::min(n, piece), 0);
  } catch (...) {
    error = std::current_exception();
  }
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return running_ == 0; });
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
    Job job = job_;
    lock.unlock();
    std::exception_ptr error;
    try {
      if (begin < end) job.call(job.f, begin, end, worker);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !error_) error_ = error;
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace dtensor
