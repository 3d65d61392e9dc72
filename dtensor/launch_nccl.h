// Running one function on the ranks that a launcher started as processes, one GPU each, with NCCL.
#pragma once

#include "dtensor/comm/environment.h"
#include "dtensor/comm/nccl.h"
#include "dtensor/rank.h"

namespace dtensor {

struct NcclLaunchOptions {
  nccl::Options nccl;
  int threads = 0;  // of each rank's host kernels; 0: the cores divided by this host's ranks, at least one
  std::function<nccl::Api()> load = [] { return nccl::load(); };
};

// Calls f(rank) for the rank that this process is, on device LOCAL_RANK (modulo their number, where
// CUDA_VISIBLE_DEVICES or NCCL_HOSTID says that this is right), and returns when all ranks have ended. Every process of
// `environment` calls it, once and before it does anything with CUDA. When a rank fails, all do: each call is then an
// Error with the first cause. Rank 0 serves the store at environment.address and .port.
//
// Unless they are set already: NCCL_NVLS_ENABLE=0, as sums in the switches are not the same bits every time, and
// NCCL_LAUNCH_ORDER_IMPLICIT=1, so that communicators of different axes cannot block each other.
//
// Errors: no GPU; more ranks on this host than GPUs, unless NCCL_HOSTID is set (each process another value: NCCL then
// takes them for hosts, which is slow and for tests).
void launch_nccl(const Environment& environment, const std::function<void(Rank&)>& f,
                 const NcclLaunchOptions& options = {});

}  // namespace dtensor
