// NCCL for tests: ranks are threads of one process, and what NCCL's kernels do is done by the emulated streams when all
// ranks of a communicator have come to it. Each rank follows a script of what goes wrong.
//
// Calls of non-blocking communicators are as late as NCCL's: making, splitting and finalizing return in_progress, and a
// split is stored where the caller said only when all ranks have split, just before the parent stops being in progress
// (also where the parent is aborted first). A graph holds its communicators: until it is destroyed they are not
// finalized, and their abort does not return.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dtensor/comm/nccl_api.h"
#include "tests/emulator/emulator.h"

namespace dtensor::testing {

class FakeNccl {
 public:
  // What happens in a call instead of success.
  struct Effect {
    nccl::Result result = nccl::Result::success;  // what the call returns; for in_progress, see `polls`
    nccl::Result later = nccl::Result::success;   // what CommGetAsyncError returns after it
    bool stalls = false;                          // the device never does it
    bool blocks = false;                          // the call does not return until release()
  };

  explicit FakeNccl(int ranks);
  ~FakeNccl();

  nccl::Api api(int rank);
  // In the rank's n-th call (from 0) of `function` ("CommSplit").
  void script(int rank, const std::string& function, int n, Effect effect) { script_[{rank, function, n}] = effect; }
  int polls = 0;  // how often every call is still in progress

  void release();        // calls that block return
  int open();            // communicators neither destroyed nor aborted
  std::string misuse();  // what NCCL forbids and was done; "" for nothing

  struct Group;  // the ranks of a communicator

 private:
  struct Primitive;
  Effect effect(int rank, const std::string& function);
  nccl::Result called(int rank, const std::string& function, nccl::Comm* comm);
  nccl::Result add(int rank, Primitive p);
  nccl::Result end_group(int rank);
  emulator::External begin(nccl::Comm& c, const std::vector<Primitive>& list, bool stalls);
  void end_aborts(std::unique_lock<std::mutex>& lock);
  nccl::Result split(int rank, nccl::Comm* comm, int color, int key, nccl::Comm** place);
  nccl::Result state(nccl::Comm& comm);
  nccl::Comm* make(int rank, std::shared_ptr<Group> group, int index);
  void leave(nccl::Comm& comm, bool aborted);

  int ranks_;
  std::mutex mutex_;
  std::map<std::tuple<int, std::string, int>, Effect> script_;
  std::vector<std::map<std::string, int>> calls_;
  std::vector<std::vector<Primitive>> groups_;  // of each rank, between GroupStart and GroupEnd
  std::shared_ptr<Group> world_;
  std::vector<std::unique_ptr<nccl::Comm>> comms_;
  struct Aborts {
    std::vector<nccl::Comm*> list;
    bool in_group = false;
  };
  std::map<std::thread::id, Aborts> aborts_;  // of each thread, until its group ends
  std::string misuse_;
  bool released_ = false;
};

}  // namespace dtensor::testing
