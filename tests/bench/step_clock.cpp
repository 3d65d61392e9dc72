// step_clock [STEPS], from the root of the repository: what measuring where a step's time goes costs, on one thread.
// Steps with the clock and without take turns; times are the thread's own, so that other programs on the machine matter
// little.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>

#include "nn/report/step_clock.h"
#include "nn/train/causal_lm.h"

using namespace dtensor;

namespace {

double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

void compare(int64_t rows, int64_t tokens, int steps) {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  nn::LlamaTraining training(mesh, nn::ModelConfig::load("examples/configs/llama_tiny.json"), {}, {.steps = 2 * steps});
  std::vector<int64_t> ids(size_t(rows * tokens));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i * 7 % 259);
  auto all = DistributedTensor::distribute(Tensor::of<int64_t>({rows, tokens}, ids), mesh, Layout());
  nn::StepClock clock(*rank);
  std::vector<double> times[2];
  for (int i = 0; i < 2 * steps; ++i) {
    double begin = seconds();
    if (i % 2) clock.begin();
    training.trainer.step({all, all});
    if (i % 2) clock.end(), clock.split();
    times[i % 2].push_back(seconds() - begin);
  }
  for (auto& t : times) std::sort(t.begin(), t.end());
  auto at = [&](int with, size_t percent) { return 1e3 * times[with][times[with].size() * percent / 100]; };
  fmt::print("| {} x {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} |\n", rows, tokens, clock.moments().size(), at(0, 50),
             at(1, 50), at(0, 10), at(1, 10));
}

}  // namespace

int main(int argc, char** argv) {
  int steps = argc > 1 ? std::atoi(argv[1]) : 200;
  fmt::print(
      "| batch | moments | ms without, median | with | without, 10th percentile | with |\n|---|---|---|---|---|---|\n");
  compare(1, 8, steps);
  compare(8, 32, steps);
}
