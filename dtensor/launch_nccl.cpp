#include "dtensor/launch_nccl.h"

#include <cstdlib>
#include <optional>
#include <thread>

#include "placement/error.h"

namespace dtensor {
namespace {

int device_of(const Environment& e) {
  check(cuda::unavailable().empty(), "[nccl] {}: NCCL needs a GPU; use --device cpu", cuda::unavailable());
  int devices = cuda::device_count();
  bool chosen = std::getenv("CUDA_VISIBLE_DEVICES") || std::getenv("NCCL_HOSTID");
  check(e.local_world <= devices || chosen,
        "[nccl] {} ranks on this host but {} GPU{}: NCCL needs one GPU per rank; use --comm threads, which shares GPUs "
        "among the ranks of one process",
        e.local_world, devices, devices == 1 ? "" : "s");
  return e.local_rank % devices;
}

// One rank, from its communicator to the last barrier.
void run(const Environment& e, std::shared_ptr<Store> store, const std::function<void(Rank&)>& f,
         const NcclLaunchOptions& options) {
  int device = device_of(e);
  cuda::use_device(device);
  auto world = nccl::make_communicator(e.rank, e.world, device, options.load(), std::move(store), options.nccl);
  int cores = std::max(1, int(std::thread::hardware_concurrency()));
  int threads = options.threads > 0 ? options.threads : std::max(1, cores / e.local_world);
  std::shared_ptr<Rank> rank;
  try {
    rank = std::make_shared<Rank>(world, Device::cuda, threads, device);
    f(*rank);
    rank->synchronize();
    world->end();
  } catch (const std::exception& error) {
    world->abort(fmt::format("rank {} failed: {}", e.rank, error.what()));  // before communicators are closed
    throw;
  }
}

}  // namespace

void launch_nccl(const Environment& e, const std::function<void(Rank&)>& f, const NcclLaunchOptions& options) {
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
  std::optional<StoreServer> server;
  if (e.rank == 0) server.emplace(e.address, e.port);
  auto store = std::make_shared<Store>(e.address, server ? server->port() : e.port, options.nccl.deadline);
  std::string failure;
  try {
    run(e, store, f, options);
  } catch (const std::exception& error) {
    failure = error.what();
    try {
      store->set_if_absent("failure", fmt::format("rank {} failed: {}", e.rank, failure));
    } catch (const Error&) {  // the others have noticed that the store is gone
    }
  }
  store.reset();
  // The others still need the store, to end as well or to hear of the failure.
  if (server) server->wait_for_goodbyes(e.world, failure.empty() ? options.nccl.deadline : 2 * options.nccl.grace);
  if (!failure.empty()) throw Error(fmt::format("{} (rank {} of {})", failure, e.rank, e.world));
}

}  // namespace dtensor
