// Ranks with the fake of NCCL, as threads of one process.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dtensor/comm/nccl.h"
#include "dtensor/launch_nccl.h"
#include "tests/emulator/fake_nccl.h"

namespace dtensor::testing {

using Strings = std::vector<std::string>;
struct Own {
  Communicator& comm;
  std::shared_ptr<Allocator> memory;
};

struct World {
  explicit World(int n);
  ~World();

  // What each rank threw, "" for nothing.
  Strings run(const std::function<void(Own)>& f);
  nlohmann::json record(int rank);

  int ranks;
  std::filesystem::path folder;
  FakeNccl fake;
  StoreServer server{"127.0.0.1", 0};
  nccl::Options options;

 private:
  void run_rank(int r, const std::function<void(Own)>& f);
};

// Small whole numbers: sums and products are the same in any order.
Tensor made(const std::shared_ptr<Allocator>& memory, DType t, int64_t n, int rank, size_t item, bool zero = false);
Buffers some(const Own& o, int64_t n = 8, DType t = DType::f32);
void reduce(const Own& o, int64_t n = 8);
// The host waits for the device, as a program that prints its loss.
void read(const Own& o);

struct Scenario {
  const char* name;
  int ranks;
  std::function<void(World&)> script;
  std::function<void(Own)> program;
  Strings errors;  // parts of what each rank throws; "" for success
};
// Every rank must end, in time, with the error that is its own.
void play(const Scenario& s);

int free_port();
// Processes as threads: each has an environment, as torchrun would give it. What each threw.
Strings launch_all(int n, int local, const std::function<void(Rank&)>& f,
                   const std::function<void(int, NcclLaunchOptions&)>& set = nullptr);

}  // namespace dtensor::testing
