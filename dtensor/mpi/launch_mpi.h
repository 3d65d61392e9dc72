// Running one function on the ranks that mpirun or srun started as processes, on CPUs, with MPI.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "dtensor/rank.h"

namespace dtensor {

struct MpiLaunchOptions {
  std::chrono::milliseconds deadline =
      std::chrono::minutes(10);           // of one wait and of MPI's end; its beginning has a minute at least
  std::chrono::milliseconds grace{2000};  // a failing rank waits as long for what others know
  int threads = 0;  // of each rank's kernels; 0: the cores divided by this host's ranks, at least one
  int64_t largest_message = int64_t(1) << 30;  // bytes; what is larger goes in parts
};

// Calls f(rank) for the rank that this process is and returns when all ranks have ended. Every process calls it, once.
// When a rank fails, all do: each call is then an Error with the first cause. The rank that noticed it throws at once,
// the others a while later, when its process should have ended and the launcher all others: mpirun does so, srun with
// --kill-on-bad-exit. f and MPI run on a thread of their own, so that MPI cannot hold the process when it hangs.
//
// Errors: a build without MPI.
void launch_mpi(const std::function<void(Rank&)>& f, const MpiLaunchOptions& options = {});

// Why launch_mpi cannot be used, or "".
std::string mpi_unavailable();

}  // namespace dtensor
