// Communicator: what a group of ranks can do together. One file per backend; makers are declared below.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dtensor/comm/captured_graph.h"
#include "dtensor/comm/collective.h"
#include "dtensor/comm/rank_grid.h"
#include "dtensor/local/copy_async.h"
#include "placement/placement.h"

namespace dtensor {

// What a rank gives to and takes from a collective: contiguous tensors that do not overlap, elements in rank order.
//                   in                                    out                                counts[r], elements
//   all_reduce      its contribution                      the reduction, same size           unused
//   all_gather      its piece                             all pieces                         that rank r gives
//   reduce_scatter  its contribution to all pieces        its piece, reduced                 that rank r receives
//   all_to_all      what it sends, to rank 0 first        what it receives, from 0 first     that it sends to r;
//   out_counts[r] from r
//   shift           what it gives                         what it gets                          unused
struct Buffers {
  Tensor in, out;
  std::vector<int64_t> counts = {}, out_counts = {};
  AsyncCopy in_copy = {};  // what brings `in` from the host: the collective begins after it, and kernels do not wait
};

// A collective under way. Its tensors must not be touched before wait() returns; wait() throws what went wrong.
//
// One that is dropped is waited for, because others count on this rank: until the deadline at most, and not once the
// world has failed. It throws nothing; the rank's next wait does. While an exception passes it is abandoned at once:
// others may still read its tensors, which live as long as that takes.
class Work {
 public:
  Work() = default;
  explicit Work(std::function<void()> wait) : wait_(std::move(wait)) {}
  Work(Work&& other) noexcept { swap(other); }
  Work& operator=(Work other) noexcept {
    swap(other);
    return *this;
  }
  ~Work() {
    if (!wait_ || std::uncaught_exceptions() > exceptions_) return;
    try {
      wait_();
    } catch (...) {
    }
  }
  void wait() {
    if (auto w = std::exchange(wait_, nullptr)) w();
  }

 private:
  void swap(Work& other) noexcept {
    wait_.swap(other.wait_);
    std::swap(exceptions_, other.exceptions_);
  }
  std::function<void()> wait_;
  int exceptions_ = std::uncaught_exceptions();  // where it was started
};

// A collective takes a list of tensors and is started once for all of them. All ranks of a communicator start the same
// collectives in the same order. Sums are taken in a balanced binary tree over rank order, which continues the tree of
// a kernel's leaves (docs/architecture.md, the same bits); the halves of n ranks are the first n/2 and the rest.
//
// send and receive are apart from the collectives and from each other: from one rank to another there is a lane, whose
// messages are received in the order in which they were sent, and no lane waits for another one or for a collective.
// Lanes lead to neighbours: rank +- 1, where the last rank and the first are neighbours too.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual Work all_reduce(std::vector<Buffers> list, Reduce reduce) = 0;
  virtual Work reduce_scatter(std::vector<Buffers> list, Reduce reduce) = 0;
  virtual Work all_gather(std::vector<Buffers> list) = 0;
  virtual Work all_to_all(std::vector<Buffers> list) = 0;
  // Gives `in` to the rank that is `distance` further on in the ring of ranks, and gets `out` from the one as far back.
  virtual Work shift(std::vector<Buffers> list, int distance) = 0;
  virtual void barrier() = 0;

  // The tensors must have the element types and sizes that the other rank gives.
  virtual Work send(std::vector<Tensor> list, int to) = 0;
  virtual Work receive(std::vector<Tensor> list, int from) = 0;
  // Before the first send or receive; a call of all ranks together. Nothing happens the second time.
  virtual void open_lanes() {}

  // The communicator of some ranks of this one. All ranks of this one call it together, each with ranks that it is
  // among and that give the same.
  virtual std::shared_ptr<Communicator> split(const RankGrid& ranks) = 0;

  // Whether its collectives can be captured in a CUDA graph; they run at each launch then, with those of other ranks'
  // graphs or with what others start one by one.
  virtual bool can_be_captured() const { return size() == 1; }
  // What `f` gives the stream, with the collectives of all communicators of this rank, which is not run now. Errors:
  // those of `f`, and what is forbidden in a capture; the stream can be used again.
  virtual std::unique_ptr<CapturedGraph> capture(cuda::StreamHandle stream, const std::function<void()>& f);
  // Errors: the world has failed. After it, what the host read from tensors before is what was computed, also where no
  // wait of this rank's could tell.
  virtual void throw_if_failed() {}

  // Ends every wait of every rank with an Error that carries `reason`.
  virtual void abort(const std::string& reason) = 0;
  // This rank starts nothing more: whoever waits for it gets an Error now, not at the deadline. Errors: the world has
  // failed.
  virtual void end() = 0;

  bool are_neighbours(int a, int b) const { return a != b && ((a + 1) % size() == b || (b + 1) % size() == a); }
};

// Ranks are threads of one process (comm/threads.cpp). Element r is for the thread of rank r. A wait that lasts longer
// than the deadline is an Error on every rank that names the collective and the ranks that are missing. A deadline that
// the clock cannot hold is none.
std::vector<std::shared_ptr<Communicator>> make_thread_communicators(int size, std::chrono::milliseconds deadline);

// No data moves (comm/recorded.cpp): rank 0's view of a world of any size, in one process, on meta tensors. Where the
// world is one rank, tensors may have bytes.
std::shared_ptr<Communicator> make_recorded_communicator(int size);

}  // namespace dtensor
