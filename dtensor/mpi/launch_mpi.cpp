#include "dtensor/mpi/launch_mpi.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <future>
#include <optional>
#include <thread>

#include "dtensor/launch.h"
#include "dtensor/mpi/communicator.h"

namespace dtensor {
namespace {

// Where the ranks are, as MPI knows it.
struct Place {
  int rank = 0, world = 1, local_world = 1;
  std::vector<std::string> hosts;  // by rank
};

Place find_place() {
  Place p;
  MPI_Comm_rank(MPI_COMM_WORLD, &p.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &p.world);
  std::array<char, MPI_MAX_PROCESSOR_NAME> mine{};
  int length = 0;
  MPI_Get_processor_name(mine.data(), &length);
  std::vector<std::array<char, MPI_MAX_PROCESSOR_NAME>> all(static_cast<size_t>(p.world));
  int bytes = int(mine.size());
  MPI_Allgather(mine.data(), bytes, MPI_CHAR, all.data(), bytes, MPI_CHAR, MPI_COMM_WORLD);
  for (const auto& name : all) p.hosts.emplace_back(name.data());
  p.local_world = int(std::count(p.hosts.begin(), p.hosts.end(), p.hosts[size_t(p.rank)]));
  return p;
}

// One rank, from MPI's beginning to its end. `begun` and `called` are told when it has come so far.
class MpiRank {
 public:
  MpiRank(const std::function<void(Rank&)>& f, const MpiLaunchOptions& options) : f_(f), options_(options) {}

  std::promise<void> begun, called, ended;
  std::atomic<bool> given_up = false;  // nobody waits for it any more

  void run() {
    int given = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &given);
    Place place = find_place();
    begun.set_value();
    if (given_up) return;
    try {
      run(place);
    } catch (...) {  // without MPI's end, which would wait for the others
      return called.set_exception(std::current_exception());
    }
    called.set_value();
    MPI_Finalize();
    ended.set_value();
  }

 private:
  void run(const Place& place) {
    bool one_host = place.local_world == place.world;
    std::optional<StoreServer> server;
    if (place.rank == 0) server.emplace(one_host ? "127.0.0.1" : place.hosts[0], 0);
    int port = server ? server->port() : 0;
    MPI_Bcast(&port, 1, MPI_INT, 0, MPI_COMM_WORLD);
    auto store = std::make_shared<Store>(one_host ? "127.0.0.1" : place.hosts[0], port, options_.deadline);
    auto watch =
        std::make_shared<mpi::Watch>(place.rank, place.hosts, store, mpi::WatchOptions{.grace = options_.grace});
    std::string failure;
    try {
      call(place, watch);
    } catch (const std::exception& e) {
      failure = e.what();
    }
    bool reports = failure.empty() || watch->reports();
    watch.reset();
    store.reset();
    if (server) server->wait_for_goodbyes(place.world, failure.empty() ? options_.deadline : options_.grace);
    if (failure.empty()) return;
    if (!reports) std::this_thread::sleep_for(3 * options_.grace);
    throw Error(
        fmt::format("{} (rank {} of {}, host {})", failure, place.rank, place.world, place.hosts[size_t(place.rank)]));
  }

  // f, and what makes its errors those of all.
  void call(const Place& place, const std::shared_ptr<mpi::Watch>& watch) {
    std::shared_ptr<Rank> rank;
    mpi::Options options{.deadline = options_.deadline, .largest_message = options_.largest_message};
    options.where = [&rank] { return rank ? rank->place() : ""; };
    auto failed = [&](std::string cause) {
      if (!watch->failed()) cause += fmt::format("; it had last begun {}", watch->doing());
      watch->fail(fmt::format("{} failed: {}", watch->name(place.rank), cause));
      throw Error(watch->reports() ? cause : watch->failure());
    };
    int cores = std::max(1, int(std::thread::hardware_concurrency()));
    int threads =
        options_.threads > 0 ? options_.threads : std::clamp(cores / place.local_world, 1, ThreadPool::max_size);
    try {
      auto world = mpi::make_communicator(MPI_COMM_WORLD, watch, options);
      rank = std::make_shared<Rank>(world, Device::cpu, threads, 0, "launch_mpi");
      f_(*rank);
      rank.reset();  // what it holds ends while a hang is still found, and its rank named
      world->end();
    } catch (const std::exception& e) {
      failed(cause_of("launch_mpi", e, rank.get()));
    } catch (...) {
      failed("something that is no std::exception was thrown");
    }
  }

  const std::function<void(Rank&)>& f_;
  MpiLaunchOptions options_;
};

}  // namespace

std::string mpi_unavailable() { return ""; }

void launch_mpi(const std::function<void(Rank&)>& f, const MpiLaunchOptions& options) {
  check(options.threads >= 0 && options.threads <= ThreadPool::max_size,
        "[launch_mpi] {} threads of each rank's kernels; 1 to {} are possible, and 0 divides the cores among the ranks",
        options.threads, ThreadPool::max_size);
  auto rank = std::make_shared<MpiRank>(f, options);
  auto begun = rank->begun.get_future(), called = rank->called.get_future(), ended = rank->ended.get_future();
  std::thread thread = start_thread("launch_mpi", [rank] { rank->run(); });
  auto in_time = [&](std::future<void>& done, const char* what, std::chrono::milliseconds limit) {
    if (done.wait_until(time_after(limit)) == std::future_status::ready) return;
    rank->given_up = true;
    thread.detach();  // MPI holds it
    fail("[launch_mpi] {} did not return within {} s: a rank has not come to it, or the network hangs", what,
         double(limit.count()) / 1000);
  };
  in_time(begun, "MPI_Init_thread", std::max<std::chrono::milliseconds>(options.deadline, std::chrono::minutes(1)));
  called.wait();
  try {
    called.get();
  } catch (...) {
    thread.join();
    throw;
  }
  in_time(ended, "MPI_Finalize", options.deadline);
  thread.join();
}

}  // namespace dtensor
