// What a training step will communicate, hold, compute and take: the step itself on meta tensors, observed.
#pragma once

#include <optional>

#include "dtensor/comm_log.h"
#include "nn/foresight/alternatives.h"
#include "nn/foresight/findings.h"
#include "nn/foresight/hardware.h"
#include "nn/foresight/memory.h"
#include "nn/foresight/timeline.h"
#include "nn/train/causal_lm.h"

namespace dtensor::nn {

struct ForecastOptions {
  int64_t batch_size = 1, seq_len = 1;  // rows over all ranks
  LlamaTrainingOptions train;
  bool strict = false;    // communication that nobody asked for is an error
  bool captured = false;  // the step is one graph: no time of the host
  bool explain = false;   // with the alternatives of each collective
  int rank = 0;           // which one is looked at
  // The steps before the one that is reported. What a first step makes and a later one finds (gathered parameters of
  // stages 1 and 2, what a budget keeps) is there after one.
  int warm_up = 1;
};

// One steady step of one rank.
struct Forecast {
  MeshShape mesh;
  int rank = 0;
  std::vector<CommLog::Entry> collectives;
  std::vector<std::vector<Alternative>> alternatives;  // of each of them, where they were asked for
  MemoryUse memory;
  MemoryUse host_memory;      // of what is offloaded
  double model_flops = 0;     // of all ranks: three times the forward pass, attention as its mask has it
  double hardware_flops = 0;  // of all ranks, as this one does it: what is computed twice is counted twice
  int64_t tokens = 0;         // of a step, over all ranks
  int64_t parameters = 0;     // of the model
  std::vector<std::pair<std::string, std::string>> layouts;  // of parameters as stored, by path: f32[8,16] tp=Shard(0)
  // What runs and can hardly be meant, a sentence each: ParallelPlan::notes, and a loss that does not see every token.
  std::vector<std::string> doubts;
  std::vector<std::string> implicit;  // communication that nobody asked for: StepFindings::implicit

  std::optional<Hardware> hardware;  // of the following
  StepTime time;
  double mfu = 0;  // the share of the devices' peak that the model's operations are
  std::vector<Activity> activities;
  std::vector<std::string> modules;  // of the activities
  std::vector<Span> spans;

  double tokens_per_second() const { return time.step > 0 ? double(tokens) / time.step : 0; }
};

// Errors: whatever a run would find: a plan that does not fit, shapes that do not; a rank that the mesh lacks; where
// `strict`, all that is implicit.
Forecast forecast(const MeshShape& mesh, const ModelConfig& model, const ParallelPlan& plan,
                  const ForecastOptions& options, const std::optional<Hardware>& hardware = {});

// What --check refuses, a line each: doubts, and memory that does not fit; "" where there is nothing.
std::string what_is_wrong(const Forecast& f);
// "[forecast] ... needs ...": where the peak is more than the hardware's device has; "" where it fits.
std::string what_does_not_fit(const Forecast& f);

nlohmann::ordered_json to_json(const Forecast& f);
// Collectives, memory, and time where there is hardware, as tables.
std::string to_string(const Forecast& f);
// Each collective, why it is there and what it would have cost otherwise; those of blocks that are alike once.
std::string explanation(const Forecast& f);

}  // namespace dtensor::nn
