// Running one function on many ranks.
#pragma once

#include <chrono>
#include <functional>

#include "dtensor/rank.h"

namespace dtensor {

struct LaunchOptions {
  std::chrono::milliseconds deadline = std::chrono::minutes(10);  // of one wait in a collective
  int threads = 0;  // of each rank's kernels, up to 1024; 0: the cores divided by the ranks, at least one
  // Of tensors. On CUDA, rank r has device r modulo their number; several ranks may share one.
  Device device = Device::cpu;
};

// Calls f(rank) on `world` threads, one per rank, and returns when all have ended. When a rank throws, the others are
// freed from their collectives; the first error is thrown again, as an Error that names its rank. Errors: threads that
// cannot be started (then f is called on no rank). f may launch other ranks.
void launch(int world, const std::function<void(Rank&)>& f, const LaunchOptions& options = {});

// What a rank of this process threw, for an error: of memory that is exhausted, also what its tensors hold, what to do,
// and the op, module and phase. `who` is the public function; `rank` may be null.
std::string cause_of(const char* who, const std::exception& e, const Rank* rank);

// Calls f on one rank after the other, in their order: for printing. Every rank calls it.
void in_rank_order(Rank& rank, const std::function<void()>& f);

}  // namespace dtensor
