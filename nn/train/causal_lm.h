// Training of causal language models on packed text, and of whole models as llama_pretrain does it.
#pragma once

#include "nn/data/dataset.h"
#include "nn/data/packed_text.h"
#include "nn/models/llama.h"
#include "nn/parallel/plan.h"
#include "nn/train/adamw.h"
#include "nn/train/trainer.h"

namespace dtensor::nn {

// The cross entropy of each next token, of batches {inputs, targets} (PackedText::Batch). A target that is `ignored`
// does not count. `model` gives logits of ids and outlives the loss.
Loss causal_lm_loss(Callable<DistributedTensor(const DistributedTensor&)>& model, int64_t ignored = ignored_target);
// The same of a model of nn/models, whose criterion computes it where a plan says so (LinearLossParallel). A batch may
// say more of its tokens: {inputs, targets, positions, documents} (SequenceInputs). In training, z_loss times the
// square of the logarithm of the sum of exp(logits) is added to each token's, which keeps logits from drifting
// (Chowdhery et al., "PaLM", 2022). max_documents: no row has more documents, which ascend and in which positions count
// up (Dataset::max_documents); 0: not known. Errors: a z_loss where the criterion makes no logits.
Loss causal_lm_loss(CausalLM& model, int64_t ignored = ignored_target, double z_loss = 0, int64_t max_documents = 0);

struct LlamaTrainingOptions {
  uint64_t seed = 42;  // of the initial parameters, and of what is random in a step
  int64_t steps = 1;   // of the whole schedule: ScheduleOptions
  double lr = 1e-3;
  int64_t warmup_steps = 0;
  Decay decay = Decay::cosine;
  double min_lr = 0;
  double clip = 1.0;  // TrainerOptions has the meaning of this and the next
  int64_t micro_batch_size = 0;
  DType dtype = DType::f32;  // to compute in, with f32 parameters and states
  double z_loss = 0;         // causal_lm_loss has the meaning of this and the next
  int64_t max_documents = 0;
  int64_t skip_bad_steps = 0;  // TrainerOptions has the meaning of this and the next
  bool keep_gradients = false;
  bool graph = true;
  AdamWOptions adamw;
};

// A language model built on meta, its plan applied, its parts filled; its optimizer; and what trains it. Every rank
// makes one.
struct LlamaTraining {
  // Errors: a plan that does not fit; a mesh axis of several ranks that nothing uses.
  LlamaTraining(const DeviceMesh& mesh, const ModelConfig& config, const ParallelPlan& plan,
                const LlamaTrainingOptions& options);

 private:
  std::unique_ptr<CausalLM> owned_;

 public:
  CausalLM& model;
  AdamW optimizer;
  Trainer trainer;
};

}  // namespace dtensor::nn
