// The communicator of several processes on CPUs: MPI, of which only messages from one rank to another are used. Sums
// are taken here, in the balanced tree of ranks, so the bits are those of ranks that are threads.
//
//   all_gather, all_to_all, shift   each rank sends what the others get
//   reduce_scatter                  each rank gets all contributions to its piece and adds them
//   all_reduce                      small: each rank adds everything; else a reduce_scatter, then an all_gather
//
// Before the data of a collective, each rank sends the others what it means by it; who disagrees is told at once.
// Nothing blocks: a wait polls all that this rank has begun, to the deadline, so waits may come in any order. What is
// larger than MPI's counts goes in parts.
//
// Failures (watch.h): a wait that lasts longer than the deadline, ranks that disagree, an error of MPI, the end of
// another rank's process and abort() end all waits of all ranks with the first cause, which names ranks, hosts, the
// collective and the module. After it MPI is not called any more, so what was sent or received since is undefined.
#pragma once

#include <mpi.h>

#include <functional>

#include "dtensor/comm/communicator.h"
#include "dtensor/mpi/watch.h"

namespace dtensor::mpi {

struct Options {
  std::chrono::milliseconds deadline = std::chrono::minutes(10);      // of one wait
  int64_t largest_message = int64_t(1) << 30;                         // bytes; what is larger goes in parts
  std::function<std::string()> where = [] { return std::string(); };  // what runs, for messages
};

// The world's communicator, made by all ranks of `world` together. For the thread that has initialized MPI.
std::shared_ptr<Communicator> make_communicator(MPI_Comm world, std::shared_ptr<Watch> watch, const Options& options);

}  // namespace dtensor::mpi
