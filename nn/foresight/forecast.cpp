#include "nn/foresight/forecast.h"

#include <fmt/ranges.h>
#include <limits>

#include "dtensor/comm/recorded.h"
#include "nn/data/packed_text.h"

namespace dtensor::nn {
Forecast forecast(const MeshShape& shape, const ModelConfig& config, const ParallelPlan& plan,
                  const ForecastOptions& options, const std::optional<Hardware>& hardware) {
  Forecast f;
  f.mesh = shape, f.rank = options.rank;
  auto rank = std::make_shared<Rank>(make_recorded_communicator(shape.world(), options.rank), Device::meta, 1);
  MemoryTrace memory(*rank), host(*rank, static_cast<MetaAllocator&>(*rank->host_allocator()).log);
  DeviceMesh mesh(*rank, shape);
  LlamaTraining training(mesh, config, plan, options.train);
  f.doubts = plan.notes(training.model);
  f.parameters = training.model.parameter_count();
  for (const Parameter* p : training.model.parameters()) f.layouts.emplace_back(p->path(), to_string(p->stored()));
  memory.before(MemoryKind::optimizer), host.before(MemoryKind::optimizer);
  int64_t update = bytes_of_update(training.optimizer), on_host = bytes_of_host_update(training.optimizer);
  memory.before(MemoryKind::activations);
  Batch batch = meta_batch(mesh, batch_layout(shape, plan), options.batch_size, options.seq_len);

  Timeline timeline(*rank);
  CommLog log(*rank, std::numeric_limits<int64_t>::max());  // all of them, however many
  StepFindings findings(*rank, plan);
  std::optional<Alternatives> alternatives;
  for (int i = 0; i <= options.warm_up; ++i) {
    timeline.clear(), log.clear(), findings.clear();
    if (options.explain && i == options.warm_up) alternatives.emplace(*rank);
    memory.begin_step(), host.begin_step();
    training.trainer.step(batch);
  }
  timeline.add_update(update, on_host);

  f.collectives = log.entries();
  if (alternatives) f.alternatives = alternatives->list();
  f.memory = memory.use(), f.host_memory = host.use();
  f.tokens = options.batch_size * options.seq_len;
  f.implicit = findings.implicit();
  check(!options.strict || f.implicit.empty(), "{}\nthat is an error under --strict", fmt::join(f.implicit, "\n"));
  if (std::string wrong = findings.loss(f.tokens); !wrong.empty()) f.doubts.push_back(wrong);
  f.model_flops = timeline.model_operations();
  f.hardware_flops = timeline.operations() * shape.world();
  f.activities = timeline.activities();
  f.modules = timeline.modules();
  if (hardware) {
    f.hardware = hardware;
    f.time = timeline.time(*hardware, shape, options.captured, &f.spans);
    f.mfu = f.model_flops / (f.time.step * shape.world() * hardware->peak(options.train.dtype));
  }
  return f;
}

std::string what_is_wrong(const Forecast& f) {
  std::vector<std::string> list = f.doubts;
  if (std::string memory = what_does_not_fit(f); !memory.empty()) list.push_back(memory);
  return fmt::format("{}", fmt::join(list, "\n"));
}

std::string what_does_not_fit(const Forecast& f) {
  if (!f.hardware || f.memory.peak_bytes <= f.hardware->memory_bytes) return "";
  auto gib = [](int64_t bytes) { return double(bytes) / (1 << 30); };
  std::string kinds;
  for (int k = 0; k < memory_kinds; ++k)
    if (f.memory.of_kind[k])
      kinds += fmt::format("{}{} {:.2f}", kinds.empty() ? "" : ", ", name(MemoryKind(k)), gib(f.memory.of_kind[k]));
  return fmt::format(
      "[forecast] a step needs {:.2f} GiB on a rank ({}), and {} has {:.2f}: shard more (\"fully_shard\", more tensor "
      "parallelism), keep fewer activations (\"activation_checkpoint\"), or take a smaller --micro-batch-size",
      gib(f.memory.peak_bytes), kinds, f.hardware->name, gib(f.hardware->memory_bytes));
}

}  // namespace dtensor::nn
