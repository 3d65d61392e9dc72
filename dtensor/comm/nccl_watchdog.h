// What one rank knows of its NCCL communicators: which collectives are under way, and what went wrong first.
#pragma once

#include <atomic>
#include <condition_variable>
#include <list>
#include <optional>

#include "dtensor/comm/flight_recorder.h"
#include "dtensor/comm/nccl.h"

namespace dtensor::nccl {

using Clock = std::chrono::steady_clock;

// One communicator of NCCL and what works for it.
struct Channel {
  explicit Channel(Members m) : members(std::make_shared<const Members>(std::move(m))) {}
  ~Channel() {
    if (scratch) cuda::release(scratch);
  }
  // Made when it is used first: of many communicators few are.
  cuda::StreamHandle stream() {
    if (!stream_) stream_.emplace(cuda::Stream::Priority::high);
    return stream_->handle();
  }

  std::shared_ptr<const Members> members;
  std::timed_mutex calls;  // NCCL wants one thread at a time
  Comm* comm = nullptr;    // none before it is made, and after an abort
  // Where NCCL puts the communicator that it makes: a split when its thread has finished, which may be long after the
  // call has returned. So this object must live until the parent has finished, or was aborted.
  Comm* made = nullptr;
  std::atomic<bool> making = false;
  uint64_t next = 0;        // sequence number
  void* scratch = nullptr;  // 8 bytes of the device, for barriers

 private:
  std::optional<cuda::Stream> stream_;
};

// How often a collective of a graph was done, in pinned memory where the device counts, and when it is at its end: so a
// launch of a graph is seen without events, which tell nothing of graphs.
struct Count {
  std::shared_ptr<uint32_t> done;
  uint32_t enough = 0;
  bool is_reached() const { return int32_t(std::atomic_ref(*done).load(std::memory_order_acquire) - enough) >= 0; }
};

// These numbers. A block of them is freed, which waits for the device, when no graph of its numbers is left.
class Counters {
 public:
  std::shared_ptr<uint32_t> next();  // Errors: the host has no pinned memory left

 private:
  static constexpr int per_block = 1024;
  std::shared_ptr<uint32_t> block_;
  int left_ = 0;
};

// A collective under way; making a communicator is one too.
struct Operation {
  // once: in place; captured: runs with the launches of a graph, and has no place among the channel's collectives;
  // launched: as a part of a graph.
  enum class Kind : uint8_t { once, captured, launched };
  struct Events {
    cuda::Event begin, end;
  };

  std::shared_ptr<Channel> channel;
  Kind how;
  uint64_t sequence, number;  // in the channel; in the flight recorder
  std::string kind, call;     // "all_reduce", "all_reduce(sum) f32[8]"
  Clock::time_point queued, deadline;
  std::optional<Events> events = {};  // none where it is launched
  Count count = {};                   // where it is launched
  bool issued = false;                // its events are recorded, or it is launched
  bool forgotten = false;
  std::vector<Buffers> buffers = {};  // kept until the compute stream waits for its end

  bool has_begun() const { return events && events->begin.is_done(); }
  bool is_done() const { return events ? events->end.is_done() : count.is_reached(); }
};

// One that a graph has, as it was captured.
struct CapturedCall {
  std::shared_ptr<Channel> channel;
  Signature call;
  std::shared_ptr<uint32_t> done;
};

// A graph that can be destroyed by any thread, for good.
class SharedGraph {
 public:
  void set(cuda::Graph graph) {
    std::lock_guard lock(mutex_);
    graph_ = std::move(graph);
  }
  void launch(cuda::StreamHandle stream) {
    std::lock_guard lock(mutex_);
    if (graph_.defined()) graph_.launch(stream);
  }
  void destroy() { set({}); }
  size_t nodes() const { return graph_.nodes(); }

 private:
  std::mutex mutex_;
  cuda::Graph graph_;
};

// A thread that looks at all operations and at the store. What lasts longer than the deadline, an error that NCCL
// reports, and the failure of another rank end everything: the first cause goes to all ranks through the store, all
// communicators are aborted, the flight recorder is written, and every later call throws the cause.
//
// In the store: "failure" is the first cause; "inquiry" is there when some rank wants to know what the others do, and
// "record/R" is what rank R answers; "ended" is how many ranks have ended, and "ended/N" the N-th of them, from 1, with
// its last words.
class Watchdog {
 public:
  Watchdog(int rank, int world, int device, Api api, std::shared_ptr<Store> store, Options options);
  ~Watchdog();  // after its channels were closed: waits for NCCL to let go of them

  const Api& api() const { return api_; }
  Store& store() { return *store_; }
  void throw_if_failed();

  // In a capture, what begins is `captured`.
  std::shared_ptr<Operation> begin(std::shared_ptr<Channel> channel, Signature call, std::vector<Buffers> buffers = {},
                                   Operation::Kind how = Operation::Kind::once);
  // Waits until a call of NCCL is no longer in progress. Errors: it failed, or something else did meanwhile.
  void finish_call(Operation& op, Result result);
  void issued(const std::shared_ptr<Operation>& op);  // watched by its events from now on
  void forget(const std::shared_ptr<Operation>& op, bool done);
  void wait_on_host(Operation& op);
  void wait_on_stream(Operation& op, cuda::StreamHandle stream);

  // Of the rank's thread, while it captures a stream: the calls of its graph so far.
  struct Capture {
    cuda::StreamHandle stream;
    std::vector<CapturedCall> calls = {};
  };
  std::optional<Capture> capture;
  Counters counters;  // of the rank's thread
  // NCCL's abort of a communicator waits until the graphs that have collectives of it are destroyed, so they are then.
  void add(const std::shared_ptr<SharedGraph>& graph);
  // Launches it for the `launch`-th time, from 1; all its calls begin. Errors: the world has failed.
  void launch(SharedGraph& graph, const std::vector<CapturedCall>& calls, uint32_t launch, cuda::StreamHandle stream);

  // All ranks of `members` make their channels in one order.
  std::shared_ptr<Channel> new_channel(Members members);
  // Its communicator is being made from now on.
  void open(const std::shared_ptr<Channel>& channel);
  // Waits until it is there and can be used.
  void finish_opening(Operation& making);
  void close(const std::shared_ptr<Channel>& channel);
  // All ranks end with `reason`, unless something failed before.
  void abort(const std::string& reason);
  // This rank begins nothing more. Returns when no rank does.
  void end();

 private:
  void run();
  void look_at_operations();
  void look_at_channels();
  void look_at_store();
  void look_at_ended();
  void destroy_closed();
  void fail_result(Channel& channel, const Operation* op, Result result);
  void fail_late(const Operation& op);
  std::string explain_late(const Operation& op);
  std::map<int, std::string> ask_others(const std::vector<int>& ranks);
  void answer();

  bool first_to_fail();
  void settle(const std::string& own, const std::string& others);
  void conclude(std::string failure);
  void abort_all();
  std::string write_recorder(const std::string& failure);

  int rank_, world_, device_;
  Api api_;
  std::shared_ptr<Store> store_;
  Options options_;
  std::map<std::pair<std::vector<int>, bool>, int> instances_;  // of ranks, and whether it is a lane

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  FlightRecorder recorder_;
  std::list<std::shared_ptr<Operation>> operations_;
  std::vector<std::shared_ptr<Channel>> open_, closed_;
  std::vector<std::weak_ptr<SharedGraph>> graphs_;
  // What the watchdog's thread held last. To free it may mean to wait for the device, which may hang: so the rank's
  // thread does it, when it begins something.
  std::vector<std::shared_ptr<void>> to_free_;
  bool failing_ = false, answered_ = false, stop_ = false, ending_ = false;
  int64_t have_ended_ = 0;  // ranks
  std::string failure_;

  // Of the watchdog's thread:
  std::vector<std::shared_ptr<Operation>> under_way_;  // what it looks at now
  std::map<int, std::string> ended_;                   // last words by rank
  std::thread thread_;
};

}  // namespace dtensor::nccl
