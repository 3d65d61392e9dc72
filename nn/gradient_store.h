// GradientStore: the gradients of leaves (parameters), summed over records (micro-batches), and when they are reduced.
#pragma once

#include <deque>
#include <optional>
#include <unordered_map>

#include "dtensor/local/copy_async.h"
#include "dtensor/redistribute.h"
#include "nn/gradient_reduction.h"

namespace dtensor::nn {

class Record;

// A sum of contributions in their order, by the law of dtensor/local/tree.h: 2, 4, 8 of them make the balanced tree
// that a kernel's leaves and the ranks continue.
class TreeSum {
 public:
  // Undefined: nothing came, which counts as a contribution.
  void push(DistributedTensor x);
  DistributedTensor total() const;  // undefined where nothing came

 private:
  int64_t pushed_ = 0;
  std::vector<DistributedTensor> parts_;  // sums of complete subtrees
};

struct GradientStoreOptions {
  // Groups that are on their way at a time. Each holds its gradients unreduced meanwhile.
  int in_flight = 2;
};

// Whose gradients are wanted, and what has come of them. A Record's backward pass adds to it when it has gone well;
// where it fails, nothing is added, so that it can be repeated.
//
// A gradient stays as it arrived, possibly Partial, until it is reduced: brought to its leaf's own layout. Leaves that
// are watched together are reduced in one launch when their GradientReduction says so, mostly by the last backward pass
// (BackwardOptions::reduce), as soon as it has passed their last use; all others by reduce().
//
// The gradient of a leaf in host memory goes there once it is reduced, beside the kernels, and its sums are made there.
class GradientStore {
 public:
  explicit GradientStore(Rank& rank, const GradientStoreOptions& options = {}) : rank_(rank), options_(options) {}
  GradientStore(const GradientStore&) = delete;
  GradientStore& operator=(const GradientStore&) = delete;

  Rank& rank() const { return rank_; }

  // Gradients of this value are wanted, of its element type, or of another floating one: what arrives is cast to it
  // before it is added. `name` is for logs. Errors: an undefined value; one of no floating type; one that a record saw
  // being computed from another watched one.
  void watch(const DistributedTensor& leaf, std::optional<DType> gradient = {}, std::string name = {});
  // The same for several, which are reduced together.
  void watch_together(const std::vector<DistributedTensor>& leaves, const std::vector<std::string>& names,
                      std::optional<DType> gradient = {}, const GradientReduction& reduction = {});
  // The same for many, in groups of at least `bytes` of gradients each, the last leaves first, as a backward pass comes
  // by them. Source: Li et al., "PyTorch Distributed" (2020).
  void watch_in_buckets(const std::vector<DistributedTensor>& leaves, const std::vector<std::string>& names,
                        int64_t bytes, std::optional<DType> gradient = {});
  bool watches(const DistributedTensor& x) const { return x.defined() && by_id_.contains(x.id()); }

  // What has come so far, as it arrived or reduced. Undefined where nothing has.
  DistributedTensor gradient(const DistributedTensor& leaf) const;
  // The gradients of these leaves in their own layouts, all that is left to reduce in as few launches as possible;
  // zeros where nothing came. Errors: a value that is not watched.
  std::vector<DistributedTensor> reduce(const std::vector<DistributedTensor>& leaves);
  // Forgets all gradients, after an optimizer's step.
  void clear();

 private:
  friend class Record;
  struct Leaf {
    DistributedTensor value;
    DType dtype;  // of the gradient
    std::string name;
    int group;  // -1: none
    TreeSum arrived, reduced;
  };

  struct Group {
    std::vector<Leaf*> leaves;
    GradientReduction reduction;
  };
  // A reduced gradient that is copied to the host, and held on the device until this goes.
  struct ToHost {
    DistributedTensor from;
    AsyncCopy copy;
  };
  // Gradients that travel together, in the type that their reduction says, and arrive in their leaves' layouts and
  // types, and in host memory where their leaves are there.
  struct OnItsWay {
    std::vector<Leaf*> leaves;
    std::vector<std::optional<DType>> dtypes;  // in which they travel
    Redistribution redistribution;

    OnItsWay(const GradientStore& store, std::vector<Leaf*> leaves, std::vector<DistributedTensor> sums);
    // `to_host` are the copies to the host under way. Those of before are waited for by the kernels that follow, so
    // that the device holds what is copied of one group at a time.
    std::vector<DistributedTensor> finish(std::vector<ToHost>& to_host);
  };
  // The host waits for the copies, and may read what has come.
  void land(std::vector<ToHost>& to_host);

  // The gradients of one backward pass, which are the store's when it has gone well.
  class Pass {
   public:
    // `uses`: for each group, how often its leaves were used and the pass has not come by yet.
    Pass(GradientStore& store, std::vector<int> uses, bool reduce);
    // The sum of what came in this pass; a card may add to it.
    DistributedTensor& sum(Leaf& leaf) { return sums_[&leaf]; }
    // One use of the leaf, which is in a group, has been passed.
    void passed(Leaf& leaf);
    void commit();

   private:
    void begin_reduce(int group);
    void finish_first();

    GradientStore& store_;
    std::vector<int> uses_;
    bool reduce_;
    std::unordered_map<Leaf*, DistributedTensor> sums_, reduced_;
    std::deque<OnItsWay> on_their_way_;
    std::vector<ToHost> to_host_;
  };

  Leaf* find(uint64_t id) {
    auto it = by_id_.find(id);
    return it == by_id_.end() ? nullptr : it->second;
  }
  void add_leaf(const DistributedTensor& leaf, std::optional<DType> gradient, std::string name, int group);

  Rank& rank_;
  GradientStoreOptions options_;
  std::deque<Leaf> leaves_;
  std::unordered_map<uint64_t, Leaf*> by_id_;
  std::vector<Group> groups_;
  std::vector<Record*> records_;  // those that are alive
};

}  // namespace dtensor::nn
