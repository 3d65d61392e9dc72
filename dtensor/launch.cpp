#include "dtensor/launch.h"

#include <mutex>
#include <thread>

namespace dtensor {

void launch(int world, const std::function<void(Rank&)>& f, const LaunchOptions& options) {
  check(world >= 1, "[launch] {} ranks; at least one is needed", world);
  int cores = std::max(1, int(std::thread::hardware_concurrency()));
  int threads = options.threads > 0 ? options.threads : std::max(1, cores / world);
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
  auto failed = [&](int r, const char* what) {
    {
      std::lock_guard lock(mutex);
      if (first < 0) first = r, message = what;
    }
    communicators[size_t(r)]->abort(fmt::format("rank {} failed: {}", r, what));
  };
  auto run = [&](int r) {
    try {
      auto rank = std::make_shared<Rank>(communicators[size_t(r)], options.device, threads, r % devices);
      for (int peer = 0; peer < std::min(devices, world); ++peer)
        if (devices > 1) cuda::enable_peer_access(r % devices, peer);
      f(*rank);
      communicators[size_t(r)]->end();
    } catch (const std::exception& e) {
      failed(r, e.what());
    } catch (...) {
      failed(r, "something that is no std::exception was thrown");
    }
  };
  std::vector<std::thread> others;
  for (int r = 1; r < world; ++r) others.emplace_back(run, r);
  run(0);
  for (std::thread& t : others) t.join();
  if (first >= 0) throw Error(world == 1 ? message : fmt::format("{} (rank {} of {})", message, first, world));
}

void in_rank_order(Rank& rank, const std::function<void()>& f) {
  for (int r = 0; r < rank.world(); ++r) {
    if (r == rank.rank()) f();
    rank.communicator().barrier();
  }
}

}  // namespace dtensor
