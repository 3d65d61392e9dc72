// Training a small Llama by a plan, on batches that are the same on every mesh.
#pragma once

#include "tests/nn/helpers.h"

namespace dtensor::testing {

using namespace dtensor::nn;

struct Run {
  std::vector<double> losses, norms;
  Entries entries;  // of the second step
};

// Steps on batches that are the same on every mesh.
inline Run train(const std::string& mesh, const ParallelPlan& plan, int64_t steps, int64_t micro_batch_size = 0,
                 int64_t seq = 16, DType dtype = DType::f32, double lr = 1e-2) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    LlamaTrainingOptions o;
    o.lr = lr, o.steps = 200, o.micro_batch_size = micro_batch_size, o.dtype = dtype;
    LlamaTraining training(m, small_llama(4, 64), plan, o);
    Run run{};
    CommLog log(rank);
    for (int64_t step = 0; step < steps; ++step) {
      std::vector<int64_t> ids, targets;
      for (int64_t i = 0; i < 8 * seq; ++i) ids.push_back((i * 7 + i * i * (step + 3)) % 64);
      for (int64_t i = 0; i < 8 * seq; ++i) targets.push_back(ids[size_t((i + 1) % (8 * seq))]);
      Layout layout = batch_layout(m.shape(), plan);
      if (step == 1) log.clear();
      Trainer::Step s =
          training.trainer.step({DistributedTensor::distribute(Tensor::of<int64_t>({8, seq}, ids), m, layout),
                                 DistributedTensor::distribute(Tensor::of<int64_t>({8, seq}, targets), m, layout)});
      if (step == 1) run.entries = log.entries();
      run.losses.push_back(s.loss), run.norms.push_back(s.grad_norm);
    }
    return run;
  })[0];
}

inline ParallelPlan plan_of(const std::string& text) {
  return text.starts_with("{") ? ParallelPlan::from_json(json(text)) : ParallelPlan::load(plan_file(text));
}

}  // namespace dtensor::testing
