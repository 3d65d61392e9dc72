// The communicator of GPUs in several processes: NCCL. Its sums are taken in NCCL's order, which depends on the number
// of ranks and on the links between them: the same bits every time, but not those of the threads communicator.
//
// Collectives run on a stream of each communicator. They start when the compute stream (that of the tensors' allocator)
// has come to where they were started; Work::wait() makes the compute stream wait, not the host. Several communicators
// of one rank may work at the same time: they share no resources (NCCL's splitShare), because NCCL runs what does so
// one after the other. A lane is a communicator of its own, which open_lanes() makes by at most six splits.
//
// Failures: a collective that is not complete after the deadline, an error that NCCL reports, the end of another rank's
// process and abort() end all communicators of all ranks with the first cause. A rank gets it from the next call of
// any of its communicators or of Work::wait(); what the host has read from its tensors since the failure is undefined.
// Each rank then leaves FOLDER/dtensor_flight_recorder_rankR.json (comm/flight_recorder.h).
//
// Graphs: a captured collective counts its ends in host memory, one small kernel behind each, so that the watchdog sees
// each launch of a graph and names the collective that hangs in it.
//
// One process per GPU.
#pragma once

#include "dtensor/comm/communicator.h"
#include "dtensor/comm/nccl_api.h"
#include "dtensor/comm/store.h"

namespace dtensor::nccl {

struct Options {
  std::chrono::milliseconds deadline = std::chrono::minutes(10);  // of a collective, and of making a communicator
  std::chrono::milliseconds poll{100};                            // the watchdog looks as often as this
  std::chrono::milliseconds grace{5000};  // a failing rank waits as long for what other ranks know
  std::string flight_recorder_folder = ".";
  size_t flight_recorder_size = 1024;  // collectives
};

// The world's communicator, made by all its ranks together: rank 0 passes NCCL's id to the others through the store, in
// which the keys "nccl_id", "failure", "inquiry", "record/R", "ended" and "ended/N" are its own. The calling thread's
// CUDA device is `device`. Errors: those of NCCL, with the remedy where two ranks have one GPU.
std::shared_ptr<Communicator> make_communicator(int rank, int world, int device, Api api, std::shared_ptr<Store> store,
                                                const Options& options);

}  // namespace dtensor::nccl
