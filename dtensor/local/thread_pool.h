// The threads that share one rank's kernels.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dtensor {

// Splits ranges over `size` workers, the caller among them. Threads split outputs, never sums, so the number of
// threads does not change a bit.
class ThreadPool {
 public:
  explicit ThreadPool(int size);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return int(threads_.size()) + 1; }
  // Calls f(begin, end, worker) on parts of [0, n), each at least `grain` long where n allows it; begins are multiples
  // of `grain`. Returns when all have ended; the first exception is thrown again.
  void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& f);

 private:
  void work(int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(int64_t, int64_t, int)>* job_ = nullptr;
  int64_t n_ = 0, piece_ = 0;
  int running_ = 0;
  uint64_t round_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace dtensor
