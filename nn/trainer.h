// One training step of a language model, the same code for runs and dry runs (law 8).
#pragma once

#include <memory>

#include "dtensor/cuda/allocator.h"
#include "dtensor/random_scope.h"
#include "nn/data.h"
#include "nn/llama.h"
#include "nn/optim.h"
#include "nn/parallel/plan.h"
#include "nn/record.h"

namespace dtensor::nn {

struct TrainerOptions {
  uint64_t seed = 42;
  int64_t steps = 1;  // of the whole schedule
  double lr = 1e-3;
  int64_t warmup_steps = 0;
  double clip = 1.0;  // of the global gradient norm; 0: none
  // Rows, over all ranks, of one forward and backward pass; 0: all of the batch. A micro-batch is each data rank's next
  // contiguous rows, in order: with 2, 4 or 8 of them the step has the bits of one whole batch where law 6 holds.
  int64_t micro_batch_size = 0;
  DType dtype = DType::f32;  // to compute in, with f32 parameters and states: bf16 on CUDA
  bool graph = true;         // on CUDA: capture a step, where nothing forbids it, and launch it again for each
  AdamWOptions adamw;
};

// The layout of a batch [batch, sequence]: axes dp, dp_replicate and dp_shard shard the rows, and so do those that the
// plan names for data parallelism or fully sharding.
Layout batch_layout(const MeshShape& mesh, const ParallelPlan& plan = {});

// A model built on meta, its plan applied, its parts filled, with optimizer and schedule. Every rank makes one.
class Trainer {
 public:
  // Errors: a plan that does not fit; a mesh axis of several ranks that nothing uses.
  Trainer(const DeviceMesh& mesh, const LlamaConfig& config, const ParallelPlan& plan, const TrainerOptions& options);

  struct Step {
    int64_t step;      // from 1
    double loss;       // the mean over every counted token of the global batch
    double grad_norm;  // before clipping, each parameter once
    double lr;
    double host_seconds;  // until all work was given to the device; the rest of the step is waiting for it
  };
  // Forward, backward, clip, update. Numbers are NaN on meta. Errors: a loss or gradient norm that is not finite, with
  // the first op or parameter where it is so.
  Step step(const PackedText::Batch& batch);

  // Whether steps are launched as one CUDA graph: "captured, 1234 nodes", or why not. Known after the second step.
  const std::string& graph_status() const { return graph_status_; }

  LlamaForCausalLM& model() { return model_; }
  int64_t parameter_count();

 private:
  // What a step leaves to be read.
  struct Results {
    DistributedTensor loss, norm;
    std::vector<DistributedTensor> gradients;
  };
  DistributedTensor forward(const PackedText::Batch& batch);  // the loss
  DistributedTensor pass(const PackedText::Batch& batch);     // forward and backward; the loss
  DistributedTensor passes(const PackedText::Batch& batch);
  void prepare_rows(const DistributedTensor& inputs);
  Results run(const PackedText::Batch& batch);  // all of a step but the numbers that change
  Results run_or_launch(const PackedText::Batch& batch);
  std::string why_no_graph(const PackedText::Batch& batch);
  [[noreturn]] void fail_not_finite(const Step& s, const PackedText::Batch& batch,
                                    const std::vector<DistributedTensor>& gradients);

  TrainerOptions options_;
  LlamaForCausalLM model_;
  GradientStore gradients_;
  std::vector<Parameter*> parameters_;
  AdamW optimizer_;
  StepNumber step_number_;
  std::vector<DistributedTensor> rows_;  // of each micro-batch in the global batch; a captured step reads them again

  // The captured step: where it reads its batch and leaves its results, and its memory, which must outlive all of them.
  struct Captured {
    explicit Captured(Rank& rank) : pool(rank.allocator()) {}
    cuda::PrivatePool pool;
    PackedText::Batch batch;
    Results results;
    cuda::Graph graph;
  };
  std::unique_ptr<Captured> captured_;
  std::string graph_status_;
};

}  // namespace dtensor::nn
