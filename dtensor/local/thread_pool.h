// The threads that share one rank's kernels.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

namespace dtensor {

// A thread that runs f. Errors: the system starts no more; `who` is the public function for the error.
std::thread start_thread(std::string_view who, std::function<void()> f);

// Splits ranges over `size` workers, the caller among them. Threads split outputs, never sums, so the number of
// threads does not change a bit.
class ThreadPool {
 public:
  static constexpr int max_size = 1024;

  // Errors: not 1 to max_size; the system does not start that many threads. `who` as above.
  explicit ThreadPool(int size, std::string_view who = "ThreadPool");
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return int(threads_.size()) + 1; }
  // Calls f(begin, end, worker) on parts of [0, n), each at least `grain` long where n allows it; begins are multiples
  // of `grain`. Returns when all have ended; the first exception is thrown again.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, const F& f) {
    if (n <= 0) return;
    int64_t grains = (n + grain - 1) / grain, workers = grains < size() ? grains : size();
    if (workers == 1) return f(0, n, 0);  // no cost for what is small
    run({&f, [](const void* p, int64_t begin, int64_t end,
                int worker) { (*static_cast<const F*>(p))(begin, end, worker); }},
        n, (grains + workers - 1) / workers * grain);
  }

 private:
  struct Job {  // a function by reference
    const void* f;
    void (*call)(const void* f, int64_t begin, int64_t end, int worker);
  };
  void run(const Job& job, int64_t n, int64_t piece);
  void work(int worker);
  void stop();

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  Job job_{};
  int64_t n_ = 0, piece_ = 0;
  int running_ = 0;
  uint64_t round_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace dtensor
