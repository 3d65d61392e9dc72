// Communicator: what a group of ranks can do together. One file per backend; makers are declared below.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dtensor/local/tensor.h"
#include "placement/placement.h"

namespace dtensor {

// What a rank gives to and takes from a collective: contiguous tensors that do not overlap, elements in rank order.
//                   in                                    out                                counts[r], elements
//   all_reduce      its contribution                      the reduction, same size           unused
//   all_gather      its piece                             all pieces                         that rank r gives
//   reduce_scatter  its contribution to all pieces        its piece, reduced                 that rank r receives
//   all_to_all      what it sends, to rank 0 first        what it receives, from 0 first     that it sends to r;
//   out_counts[r] from r
struct Buffers {
  Tensor in, out;
  std::vector<int64_t> counts = {}, out_counts = {};
};

// A collective under way. Its tensors must not be touched before wait() returns; wait() throws what went wrong.
class Work {
 public:
  Work() = default;
  explicit Work(std::function<void()> wait) : wait_(std::move(wait)) {}
  void wait() {
    if (auto w = std::exchange(wait_, nullptr)) w();
  }

 private:
  std::function<void()> wait_;
};

// A collective takes a list of tensors and is started once for all of them. All ranks of a communicator start the same
// collectives in the same order. Sums are taken in a balanced binary tree over rank order, which continues the tree of
// a kernel's leaves (docs/architecture.md, the same bits); the halves of n ranks are the first n/2 and the rest.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual Work all_reduce(std::vector<Buffers> list, Reduce reduce) = 0;
  virtual Work reduce_scatter(std::vector<Buffers> list, Reduce reduce) = 0;
  virtual Work all_gather(std::vector<Buffers> list) = 0;
  virtual Work all_to_all(std::vector<Buffers> list) = 0;
  virtual void barrier() = 0;
  // The communicator of some ranks of this one, in the order given, which all of them give; this rank is among them.
  virtual std::shared_ptr<Communicator> split(const std::vector<int>& ranks) = 0;
  // Ends every wait of every rank with an Error that carries `reason`.
  virtual void abort(const std::string& reason) = 0;
};

// Ranks are threads of one process (comm/threads.cpp). Element r is for the thread of rank r. A wait that lasts longer
// than the deadline is an Error on every rank that names the collective and the ranks that are missing.
std::vector<std::shared_ptr<Communicator>> make_thread_communicators(int size, std::chrono::milliseconds deadline);

// No data moves (comm/recorded.cpp): rank 0's view of a world of any size, in one process, on meta tensors.
std::shared_ptr<Communicator> make_recorded_communicator(int size);

}  // namespace dtensor
