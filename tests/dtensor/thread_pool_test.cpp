#include "dtensor/local/thread_pool.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "dtensor/launch.h"
#include "dtensor/launch_nccl.h"
#include "placement/error.h"

using namespace dtensor;
using Catch::Matchers::Equals;

namespace {

// While it exists, the system starts two or three more threads, and none under a sanitizer, which needs addresses too.
class FewThreads {
 public:
  FewThreads() {
    pthread_getattr_default_np(&threads_);
    getrlimit(RLIMIT_AS, &addresses_);
    int64_t pages = 0, stack = int64_t(1) << 28;
    std::ifstream("/proc/self/statm") >> pages;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    stack = int64_t(1) << 44;
#else
    rlimit limit = addresses_;
    limit.rlim_cur = rlim_t(pages * sysconf(_SC_PAGESIZE) + 7 * stack / 2);
    setrlimit(RLIMIT_AS, &limit);
#endif
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, size_t(stack));
    pthread_setattr_default_np(&huge);
    pthread_attr_destroy(&huge);
  }
  FewThreads(const FewThreads&) = delete;
  ~FewThreads() {
    pthread_setattr_default_np(&threads_);
    pthread_attr_destroy(&threads_);
    setrlimit(RLIMIT_AS, &addresses_);
  }

 private:
  pthread_attr_t threads_;
  rlimit addresses_;
};

// Of this process.
long threads() {
  namespace fs = std::filesystem;
  return std::distance(fs::directory_iterator("/proc/self/task"), fs::directory_iterator());
}

}  // namespace

TEST_CASE("a thread pool calls every part once, and throws the first error again") {
  for (int size : {1, 2, 3, 7}) {
    ThreadPool pool(size);
    CHECK(pool.size() == size);
    for (int64_t n : {0, 1, 5, 100}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(n));
      pool.parallel_for(n, 3, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) ++calls[size_t(i)];
      });
      for (auto& c : calls) CHECK(c == 1);
    }
    CHECK_THROWS_WITH(pool.parallel_for(100, 1, [](int64_t, int64_t, int) { fail("no"); }), Equals("no"));
  }
}

TEST_CASE("law 9: a number of threads that nobody can want is an error") {
  for (int size : {-5, 0, 1025, 20000})
    CHECK_THROWS_WITH(ThreadPool(size),
                      Equals(fmt::format("[ThreadPool] {} threads of a rank's kernels; 1 to 1024 are possible", size)));
  CHECK_THROWS_WITH(Rank::single(Device::cpu, 0),
                    Equals("[Rank] 0 threads of a rank's kernels; 1 to 1024 are possible"));
  for (int threads : {-5, 1025, 20000})
    CHECK_THROWS_WITH(launch(2, [](Rank&) {}, {.threads = threads}),
                      Equals(fmt::format("[launch] {} threads of each rank's kernels; 1 to 1024 are possible, and 0 "
                                         "divides the cores among the ranks",
                                         threads)));
  CHECK_THROWS_WITH(launch_nccl({}, [](Rank&) {}, {.threads = -1}),
                    Equals("[launch_nccl] -1 threads of each rank's kernels; 1 to 1024 are possible, and 0 divides the "
                           "cores among the ranks"));
}

TEST_CASE("law 9: threads that cannot be started are an error, and those that were are joined") {
  long before = threads();
  std::atomic<int> calls = 0;
  auto error = [&](auto f) {
    FewThreads few;
    try {
      f();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  auto text = [](const char* who) {
    return fmt::format(
        "[{}] the system starts no more threads (Resource temporarily unavailable): take fewer ranks or threads per "
        "rank, or raise the limits of `ulimit -u` and of memory",
        who);
  };
  for (int n : {20, 200}) {
    CHECK(error([&] { ThreadPool pool(n); }) == text("ThreadPool"));
    CHECK(error([&] { launch(n, [&](Rank&) { ++calls; }, {.threads = 1}); }) == text("launch"));
    CHECK(error([&] { launch(1, [&](Rank&) { ++calls; }, {.threads = n}); }) == text("launch"));
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  CHECK(error([&] { ThreadPool pool(2); }) == "");  // so some of those were started
#endif
  CHECK(calls == 0);
  CHECK(threads() == before);
  launch(3, [&](Rank&) { ++calls; }, {.threads = 2});
  CHECK(calls == 3);
}
