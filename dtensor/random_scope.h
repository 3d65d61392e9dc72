// What modules see of a step that is random: whether it is training, and which numbers dropout draws (law 5).
#pragma once

#include <map>
#include <string>

#include "dtensor/random.h"

namespace dtensor {

// The number of the step that a run is at, in memory that kernels read and that stays where it is: a captured graph,
// launched again after set(), draws the numbers of the new step.
class StepNumber {
 public:
  explicit StepNumber(const DeviceMesh& mesh, int64_t step = 0);
  StepNumber(const StepNumber&) = delete;

  // Before a step. Backward passes of an earlier step that are still to come are errors from now on. Errors: a graph is
  // being captured, which would set this number again and again.
  void set(int64_t step);
  int64_t get() const { return step_; }
  const DistributedTensor& tensor() const { return tensor_; }  // i64 of no dimension, Replicate

 private:
  int64_t step_;
  DistributedTensor tensor_;
};

struct RandomScopeOptions {
  uint64_t seed = 0;
  bool training = true;  // false: nothing is dropped
  // Where this forward pass is in the global batch; absent: it is all of it, in order. i64 [rows], the global row of
  // each row (dimension 0): of a micro-batch (micro_batch_rows), say. i64 [sequence], the position of each element of
  // dimension 1 of what has 3 dimensions or more, [batch, sequence, ...]: where the sequence is permuted, say.
  DistributedTensor rows = {}, positions = {};
};

// While it is open, Rank::random_scope. Modules drop by the streams (seed, "dropout", the path of the innermost module,
// the step, how often that path has drawn in this scope): so one scope is open for each forward pass, of a micro-batch
// too, and the numbers depend neither on the mesh nor on how the batch is cut. `step` must outlive it, and where a
// graph is captured, step, rows and positions must outlive that.
class RandomScope {
 public:
  RandomScope(const StepNumber& step, RandomScopeOptions options);
  ~RandomScope();
  RandomScope(const RandomScope&) = delete;

  bool training() const { return options_.training; }
  const StepNumber& step() const { return step_; }
  const DistributedTensor& rows() const { return options_.rows; }
  const DistributedTensor& positions() const { return options_.positions; }
  // What follows in this pass is of a sequence in another order: RandomScopeOptions::positions from now on.
  void set_positions(DistributedTensor positions) { options_.positions = std::move(positions); }
  // The innermost module's next stream for this purpose, at step 0.
  uint64_t next_key(std::string_view purpose);

 private:
  const StepNumber& step_;
  RandomScopeOptions options_;
  RandomScope* outer_;
  std::map<std::string, int64_t, std::less<>> calls_;  // by purpose and path
};

// The rows of the global batch that are in micro-batch `part` of `parts`, for RandomScopeOptions::rows: each data
// rank's rows are cut into `parts` runs, in order. i64 [rows / parts], laid out as dimension 0 of `batch` is. Errors:
// rows that are no multiple of ranks times parts.
DistributedTensor micro_batch_rows(const DeviceMesh& mesh, const Layout& batch, int64_t rows, int parts, int part);

}  // namespace dtensor
