// What the emulator knows, under one mutex that is free while work runs.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <cuda_runtime_api.h>
#include "tests/emulator/emulator.h"

namespace emulator {

using Lock = std::unique_lock<std::mutex>;
using Work = std::function<void()>;

// The first `count` pieces of work of a stream.
struct Point {
  std::shared_ptr<CUstream_st> stream;
  uint64_t count = 0;
};
struct Item {
  Work run;
  std::vector<Point> after;
  std::function<bool()> ready = nullptr;  // null: as soon as all of `after` are done
};

struct Node {
  Work run;                            // or
  std::function<External()> external;  // what begins with each launch
  std::vector<size_t> after;           // other nodes
};
struct Capture {
  std::vector<Node> nodes;
  CUstream_st* origin;
  std::thread::id thread;
  bool active = true, valid = true;
  std::set<CUstream_st*> streams;
};

}  // namespace emulator

struct CUstream_st {
  int device = 0;
  std::deque<emulator::Item> queue;
  uint64_t given = 0, done = 0;
  bool running = false;  // a thread of the host does the first of the queue
  std::shared_ptr<emulator::Capture> capture;
  std::vector<size_t> tail;  // while capturing: what the next node comes after
};
struct CUevent_st {
  int device = 0;
  bool timing = false;
  emulator::Point point;
  std::shared_ptr<double> milliseconds;
  std::shared_ptr<emulator::Capture> capture;  // of the last record
  std::vector<size_t> tail;
};
struct CUgraph_st {
  std::vector<emulator::Node> nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<emulator::Node>> nodes;
};

namespace emulator {

struct Allocation {
  size_t bytes;
  int device;  // -1: pinned
};

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  int devices;
  int64_t memory, pinned_memory;
  Schedule schedule;
  std::mt19937_64 random;
  std::string failure;  // what a kernel did wrong
  std::map<char*, Allocation> allocations;
  int accesses = 0;
  std::map<CUstream_st*, std::shared_ptr<CUstream_st>> streams;
  std::set<CUevent_st*> events;
  std::set<std::shared_ptr<Capture>> captures;
  std::set<std::pair<int, int>> peers;
  bool peer_access = true;
  std::map<const void*, int> shared_limits;  // of kernels that asked for more
  int graphs = 0;

  State();
  void reset();
};
State& state();
int& current_device();  // of this thread of the host

// While one exists, the host can touch the memory of devices. At other times that is a segmentation fault (or a report
// of the address sanitizer), as with a GPU. Made and destroyed under the mutex.
class Access {
 public:
  Access();
  Access(Access&&) = delete;
  ~Access();
};

// The frame of every call: `f(lock)` under the mutex, unless a kernel has failed; notes the error.
template <class F>
cudaError_t call(F f);
cudaError_t noted(cudaError_t error);

// Queues work, or adds it to the graph that the stream is captured to.
cudaError_t give(Lock& lock, cudaStream_t stream, Work run, std::vector<Point> after = {},
                 std::function<bool()> ready = nullptr);
void run_to(Lock& lock, const Point& point);
void run_all(Lock& lock, int device);  // -1: of all devices
// What must not be called while this thread captures: then the capture is spoilt, and it is an error.
cudaError_t forbidden_in_capture();
// The allocation that has all of the bytes, or null. *inside: false where one has only some of them.
const Allocation* find_allocation(const void* at, size_t bytes, bool* inside = nullptr);

template <class F>
cudaError_t call(F f) {
  Lock lock(state().mutex);
  if (!state().failure.empty()) return noted(cudaErrorLaunchFailure);
  return noted(f(lock));
}

}  // namespace emulator
