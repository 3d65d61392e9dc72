// Rank: all mutable state of one rank, in one object. Nothing in the library is global or thread_local, because ranks
// may be threads of one process.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "dtensor/comm/communicator.h"
#include "dtensor/cuda/allocator.h"
#include "dtensor/local/thread_pool.h"
#include "dtensor/observer.h"

namespace dtensor {

class RandomScope;

// Made by launch() or single(); handles of its meshes hold it, and every tensor reaches it through its mesh. Used by
// one thread.
class Rank : public std::enable_shared_from_this<Rank> {
 public:
  // On CUDA, `cuda_device` is the one of this rank, and of this thread from now on. `who` is the public function for
  // errors of `threads`.
  Rank(std::shared_ptr<Communicator> world, Device device, int threads, int cuda_device = 0,
       std::string_view who = "Rank")
      : world_(std::move(world)),
        device_(device),
        allocator_(make_allocator(device, cuda_device)),
        host_allocator_(make_host_allocator(allocator_)),
        pool_(threads, who) {}
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // A world of one rank, without launch().
  static std::shared_ptr<Rank> single(Device device = Device::cpu, int threads = 1) {
    return std::make_shared<Rank>(make_recorded_communicator(1), device, threads);
  }
  // Rank 0 of a world of any size in which nothing moves: for dry runs.
  static std::shared_ptr<Rank> recorded(int world) {
    return std::make_shared<Rank>(make_recorded_communicator(world), Device::meta, 1);
  }

  int rank() const { return world_->rank(); }
  int world() const { return world_->size(); }
  Device device() const { return device_; }  // of new tensors
  ThreadPool& pool() { return pool_; }
  const std::shared_ptr<Allocator>& allocator() const { return allocator_; }
  // Host memory for copy_async from and to this rank's tensors.
  const std::shared_ptr<Allocator>& host_allocator() const { return host_allocator_; }
  // Waits until all that this rank gave its device is done; nothing to wait for on the CPU.
  void synchronize() { allocator_->synchronize(); }
  // Communicators: that of the world, and those that were made with meshes, by their ranks in the world. Errors: there
  // is none of these ranks.
  Communicator& communicator() const { return *world_; }
  Communicator& communicator(const RankGrid& ranks) const;
  Communicator& communicator(const std::vector<int>& ranks) const;
  // Makes one if it is not there. All ranks of the world call it together (Communicator::split). `lanes`: for sending.
  void make_communicator(const RankGrid& ranks, bool lanes);

  // Ids are never used twice: of tensor values, of interned layouts, of collective launches.
  uint64_t next_id() { return ++last_id_; }

  void add(Observer& o) { observers_.push_back(&o); }
  void remove(Observer& o) { std::erase(observers_, &o); }
  const std::vector<Observer*>& observers() const { return observers_; }
  template <class F>
  void notify(F f) {
    for (size_t i = 0; i < observers_.size(); ++i) f(*observers_[i]);
    if (recorder) f(*recorder);
  }

  const std::vector<Label>& labels() const { return labels_; }
  // The innermost label of that kind, or "".
  std::string_view label(Label::Kind kind) const {
    for (size_t i = labels_.size(); i-- > 0;)
      if (labels_[i].kind == kind) return labels_[i].text;
    return "";
  }

  // What runs now, as far as it is known: "linear in model.layers.0.mlp in the forward pass",
  // "the backward pass".
  std::string place() const;
  // place() where the last exception came from that left a label's scope; "" where none did since the last label.
  const std::string& failed_at() const { return failed_at_; }

  Phase phase = Phase::none;
  bool strict = false;              // law 7: implicit communication is an error
  DType reduce_dtype = DType::f32;  // of contributions of bf16 to a sum, in memory and on their way: f32 or bf16
  bool tf32 = false;  // on CUDA, products of float32 may round their factors to tf32, 10 bits of mantissa: faster
  int no_grad = 0;    // open NoGrad scopes: ops and redistributions are not recorded
  Observer* recorder = nullptr;         // the record of the innermost open scope; told after the observers
  KeepPolicy* keep_policy = nullptr;    // of that record; none: it keeps what gradients ask for
  int micro_batches = 1;                // whose sums over rows make up a step's: Context::leaves
  RandomScope* random_scope = nullptr;  // the innermost open one (random_scope.h)
  // What the ops layer keeps per rank: the dispatcher's cache and the kernels' scratch memory.
  std::shared_ptr<void> ops_state;
  std::shared_ptr<void> meshes;  // those made so far, which live as long as the rank (device_mesh.cpp)

 private:
  friend class LabelScope;
  std::shared_ptr<Communicator> world_;
  Device device_;
  std::shared_ptr<Allocator> allocator_, host_allocator_;
  ThreadPool pool_;
  std::map<RankGrid, std::shared_ptr<Communicator>> communicators_;
  uint64_t last_id_ = 0;
  std::vector<Observer*> observers_;
  std::vector<Label> labels_;
  std::string failed_at_;
};

// A label while the scope is open.
class LabelScope {
 public:
  LabelScope(Rank& rank, Label::Kind kind, std::string text) : rank_(rank) {
    rank.failed_at_.clear();
    rank.labels_.push_back({kind, std::move(text)});
  }
  ~LabelScope() {
    if (std::uncaught_exceptions() > exceptions_ && rank_.failed_at_.empty()) rank_.failed_at_ = rank_.place();
    rank_.labels_.pop_back();
  }
  LabelScope(const LabelScope&) = delete;

 private:
  Rank& rank_;
  int exceptions_ = std::uncaught_exceptions();
};

// The phase while the scope is open.
class PhaseScope {
 public:
  PhaseScope(Rank& rank, Phase phase) : rank_(rank), before_(rank.phase) { rank.phase = phase; }
  ~PhaseScope() { rank_.phase = before_; }
  PhaseScope(const PhaseScope&) = delete;

 private:
  Rank& rank_;
  Phase before_;
};

// Nothing is recorded while the scope is open.
class NoGrad {
 public:
  explicit NoGrad(Rank& rank) : rank_(rank) { ++rank.no_grad; }
  ~NoGrad() { --rank_.no_grad; }
  NoGrad(const NoGrad&) = delete;

 private:
  Rank& rank_;
};

}  // namespace dtensor
