// One training step of any model and loss, the same code for runs and dry runs (law 8).
#pragma once

#include <concepts>
#include <memory>

#include "dtensor/cuda/allocator.h"
#include "dtensor/random_scope.h"
#include "nn/record.h"
#include "nn/train/optimizer.h"
#include "nn/train/schedule.h"

namespace dtensor::nn {

// The tensors of a batch: whatever the loss takes. Where there are several micro-batches, dimension 0 of all is rows.
using Batch = std::vector<DistributedTensor>;

// What a model is trained on: the mean, over the global batch, of the terms that `terms` computes of a batch or of a
// micro-batch: the loss of each row, say, or of each token; of a tensor of any shape every element is a term, and one
// number is one. So a batch's mean has the same bits in one pass and in several (TrainerOptions::micro_batch_size).
// Where some terms do not count, `count` is how many do, of the whole batch, as one floating number, and the others are
// zeros. Neither may ask for values on the host, where a step is captured.
//
//     Trainer trainer(model, [&](const Batch& b) { return ops::square(model(b[0]) - b[1]); }, optimizer, {.lr = 0.1});
struct Loss {
  using Function = std::function<DistributedTensor(const Batch&)>;
  template <std::invocable<const Batch&> F>
  Loss(F f, Function count_of = {}) : terms(std::move(f)), count(std::move(count_of)) {}

  Function terms, count;
};

struct TrainerOptions {
  Schedule lr = 1e-3;
  double clip = 1.0;  // of the global gradient norm; 0: none
  // Rows, over all ranks, of one forward and backward pass; 0: all of the batch. A micro-batch is each data rank's next
  // contiguous rows, in order: with 2, 4 or 8 of them the step has the bits of one whole batch where law 6 holds.
  int64_t micro_batch_size = 0;
  // Bad steps in a row that are skipped: they change no weight and no state of the optimizer, but count as steps. Bad
  // is a loss or gradient norm that is not finite, and a norm above `spike` times its average over the good steps
  // (exponential, 0.98), once there were 20 of them. 0: what is not finite is an error, and there are no spikes.
  int64_t skip_bad_steps = 0;
  double spike = 10;
  bool keep_gradients = false;  // for Trainer::gradients(), in memory until the next step
  uint64_t seed = 42;           // of what is random in a step: dropout
  bool graph = true;            // on CUDA: capture a step, where nothing forbids it, and launch it again for each
};

// Trains a model, which has values already: placed by a plan or by hand, then materialized. It owns neither the model
// nor the optimizer, which outlive it. Every rank makes one.
class Trainer {
 public:
  Trainer(Module& model, Loss loss, Optimizer& optimizer, TrainerOptions options);

  struct Step {
    int64_t step;      // from 1
    double loss;       // the mean over every counted term of the global batch
    double grad_norm;  // before clipping, each parameter once
    double lr;
    double host_seconds;   // until all work was given to the device; the rest of the step is waiting for it
    bool skipped = false;  // TrainerOptions::skip_bad_steps
  };
  // Forward, backward, clip, update. Numbers are NaN on meta. Errors, before anything reaches the weights: a loss or
  // gradient norm that is not finite, with the first op or parameter where it is so; more bad steps in a row than are
  // skipped; a batch that does not divide into micro-batches.
  Step step(const Batch& batch);
  // Of the last step, in the order of the optimizer's parameters, before clipping. Errors: they were not kept.
  const std::vector<DistributedTensor>& gradients() const;

  // The loss of a batch, in micro-batches as a step's, where nothing is dropped: no gradients, no update.
  double evaluate(const Batch& batch);

  // What is known of the norms of the good steps, and of the bad ones since. With it a run that goes on skips the same
  // steps.
  struct Norms {
    int64_t good = 0, bad_in_a_row = 0, skipped = 0;
    double average = 0;
  };
  const Norms& norms() const { return norms_; }
  void set_norms(const Norms& norms);

  // Whether steps are launched as one CUDA graph: "captured, 1234 nodes", or why not. Known after the second step.
  const std::string& graph_status() const { return graph_status_; }

 private:
  // What a step leaves to be read.
  struct Results {
    DistributedTensor loss, norm;
    std::vector<DistributedTensor> gradients;
  };
  enum class Pass : uint8_t { train, look, evaluate };  // look: a training pass again, without gradients
  std::pair<DistributedTensor, int64_t> sum_of_terms(const Batch& batch, const DistributedTensor& rows, Pass pass);
  // Over all micro-batches, whose rows in the global batch are given; the loss.
  DistributedTensor passes(const Batch& batch, const std::vector<DistributedTensor>& rows, Pass pass);
  std::vector<DistributedTensor> rows_of(const Batch& batch) const;
  Results run(const Batch& batch);  // all of a step but the numbers that change
  DistributedTensor judged(const DistributedTensor& loss, const DistributedTensor& norm);
  double largest_norm() const;
  void judge(Step& s, const Batch& batch, const std::vector<DistributedTensor>& gradients);
  Results run_or_launch(const Batch& batch);
  std::string why_no_graph(const Batch& batch);
  void capture(cuda::StreamHandle stream);
  std::string agreed(std::string why_not) const;
  void check_as_captured(const Batch& batch) const;
  [[noreturn]] void fail_not_finite(const Step& s, const Batch& batch, const std::vector<DistributedTensor>& gradients);

  Module& model_;
  Loss loss_;
  Optimizer& optimizer_;
  TrainerOptions options_;
  GradientStore gradients_;
  StepNumber step_number_;
  std::vector<DistributedTensor> rows_;  // of each micro-batch in the global batch; a captured step reads them again
  int64_t steps_here_ = 0;               // of this trainer; the optimizer's may go on from a checkpoint
  Norms norms_;
  DistributedTensor limit_;                    // the largest norm of a good step; a captured step reads it again
  std::vector<DistributedTensor> last_grads_;  // where they are kept

  // The captured step: where it reads its batch and leaves its results, and its memory, which must outlive all of them.
  struct Captured {
    explicit Captured(Rank& rank) : pool(rank.allocator()) {}
    cuda::PrivatePool pool;
    Batch batch;
    Results results;
    std::unique_ptr<CapturedGraph> graph;
  };
  std::unique_ptr<Captured> captured_;
  std::string graph_status_;
};

}  // namespace dtensor::nn
