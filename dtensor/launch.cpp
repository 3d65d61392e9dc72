#include "dtensor/launch.h"

#include <atomic>
#include <mutex>
#include <new>
#include <thread>

namespace dtensor {

std::string cause_of(const char* who, const std::exception& e, const Rank* rank) {
  std::string cause = e.what();
  if (dynamic_cast<const std::bad_alloc*>(&e))
    cause = fmt::format(
        "[{}] no host memory is left beside the {} bytes of this rank's tensors: take a smaller --batch-size, or give "
        "the process more (`ulimit -v` limits it too)",
        who, rank ? rank->allocator()->bytes_in_use() : 0);
  else if (!dynamic_cast<const OutOfMemory*>(&e))
    return cause;
  return rank && !rank->failed_at().empty() ? fmt::format("{}; it ran out in {}", cause, rank->failed_at()) : cause;
}

void launch(int world, const std::function<void(Rank&)>& f, const LaunchOptions& options) {
  check(world >= 1, "[launch] {} ranks; at least one is needed", world);
  check(options.threads >= 0 && options.threads <= ThreadPool::max_size,
        "[launch] {} threads of each rank's kernels; 1 to {} are possible, and 0 divides the cores among the ranks",
        options.threads, ThreadPool::max_size);
  int cores = std::max(1, int(std::thread::hardware_concurrency()));
  int threads = options.threads > 0 ? options.threads : std::clamp(cores / world, 1, ThreadPool::max_size);
  int devices = 1;
  if (options.device == Device::cuda) {
    check(cuda::unavailable().empty(), "[launch] {}", cuda::unavailable());
    devices = cuda::device_count();
  }
  check(options.device != Device::meta, "[launch] ranks that run have bytes: use Rank::recorded() for a dry run");
  auto communicators = make_thread_communicators(world, options.deadline);
  std::mutex mutex;
  int first = -1;
  std::string message;
  auto failed = [&](int r, const std::string& what) {
    {
      std::lock_guard lock(mutex);
      if (first < 0) first = r, message = what;
    }
    communicators[size_t(r)]->abort(fmt::format("rank {} failed: {}", r, what));
  };
  auto run = [&](int r) {
    std::shared_ptr<Rank> rank;
    try {
      rank = std::make_shared<Rank>(communicators[size_t(r)], options.device, threads, r % devices, "launch");
      for (int peer = 0; peer < std::min(devices, world); ++peer)
        if (devices > 1) cuda::enable_peer_access(r % devices, peer);
      f(*rank);
      communicators[size_t(r)]->end();
    } catch (const std::exception& e) {
      failed(r, cause_of("launch", e, rank.get()));
    } catch (...) {
      failed(r, "something that is no std::exception was thrown");
    }
  };
  // Nobody begins before all are there: those of too few ranks would wait for the others in their first collective.
  enum Gate { closed, open, given_up };
  std::atomic<Gate> gate = closed;
  std::vector<std::thread> others;
  auto decide = [&](Gate g) {
    gate = g;
    gate.notify_all();
  };
  auto join = [&] {
    for (std::thread& t : others) t.join();
  };
  try {
    for (int r = 1; r < world; ++r)
      others.push_back(start_thread("launch", [&, r] {
        gate.wait(closed);
        if (gate == open) run(r);
      }));
  } catch (...) {
    decide(given_up);
    join();
    throw;
  }
  decide(open);
  run(0);
  join();
  if (first >= 0) throw Error(world == 1 ? message : fmt::format("{} (rank {} of {})", message, first, world));
}

void in_rank_order(Rank& rank, const std::function<void()>& f) {
  for (int r = 0; r < rank.world(); ++r) {
    if (r == rank.rank()) f();
    rank.communicator().barrier();
  }
}

}  // namespace dtensor
