// dtensor_calibrate: measures this machine, for --hardware of llama_pretrain and dtensor_plan.
//
//     dtensor_calibrate --output here.json [--device cuda] [--steps 9]
//     llama_pretrain --model config.json --mesh dp=2 --dry-run --hardware here.json
//
// Some seconds in which the machine should have nothing else to do. Exit codes: 0 done, 1 the measurement failed, 2 bad
// input.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "dtensor/cuda/runtime.h"
#include "examples/program/program.h"
#include "nn/foresight/calibrate.h"
#include "placement/error.h"

using namespace dtensor;

int main(int argc, char** argv) {
  CLI::App app("Measures this machine, for --hardware of llama_pretrain and dtensor_plan.", "dtensor_calibrate");
  std::string output, device = "auto";
  int steps = 9;
  app.add_option("--output", output, "JSON file to write")->required();
  app.add_option("--device", device, "cpu, cuda, or auto: a GPU where there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--steps", steps, "of each size that are measured: more where the machine is not quiet")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  bool cuda = false;
  std::ofstream file;
  auto open = [&] {
    cuda = device == "cuda" || (device == "auto" && cuda::unavailable().empty());
    check(!cuda || cuda::unavailable().empty(), "[dtensor_calibrate] --device cuda: {}; use --device cpu",
          cuda::unavailable());
    file.open(output);
    check(bool(file), "[dtensor_calibrate] cannot write --output {}: does the folder exist?", output);
  };
  return run_program(app, argc, argv, open, [&] {
    nn::CalibrateOptions options{.device = cuda ? Device::cuda : Device::cpu,
                                 .memory_bytes = cuda ? cuda::properties(0).memory_bytes
                                                      : int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE),
                                 .cores = std::max(1, int(std::thread::hardware_concurrency())),
                                 .steps = steps};
    options.note = [](const std::string& what) { std::fprintf(stderr, "%s\n", what.c_str()); };
    file << nn::calibrate(options).to_json().dump(2) << "\n";
    check(bool(file.flush()), "[dtensor_calibrate] cannot write --output {}: is the disk full?", output);
  });
}
