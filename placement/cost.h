// What redistributions cost: a model in integers, so that every rank of every kind of machine finds the same plan.
#pragma once

#include <cstdint>
#include <vector>

namespace dtensor {

using Picoseconds = int64_t;

// One mesh axis: time = launch + hop x messages received + bytes received / bandwidth.
struct Link {
  int64_t launch_ns = 8000;        // starting one collective
  int64_t hop_ns = 600;            // each message that a rank receives
  int64_t mb_per_second = 370000;  // received by one rank

  Picoseconds transfer(int64_t bytes) const {  // bytes * 1e6 / mb_per_second, which petabytes would overflow
    return bytes / mb_per_second * 1'000'000 + bytes % mb_per_second * 1'000'000 / mb_per_second;
  }
};

// The defaults are those of NVLink between H100s: launch and hop as PyTorch's cost model has them, the bandwidth that
// nccl-tests reach. Plans must not depend on where they are made, so nothing is measured at run time.
struct CostModel {
  std::vector<Link> links;       // one per mesh axis; the default Link for those beyond the list
  Link local{1000, 0, 1500000};  // padding a piece in memory

  Link link(int axis) const { return size_t(axis) < links.size() ? links[size_t(axis)] : Link{}; }
};

}  // namespace dtensor
