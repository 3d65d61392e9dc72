// The part of NCCL that is used here, as a table of functions found at run time: the library is built without NCCL and
// runs where it is missing, and tests put functions of their own into the table. Names, numbers and layouts are those
// of nccl.h 2.28 (tests/dtensor/nccl_api_test.cpp compares them where that header is found).
#pragma once

#include <climits>
#include <cstddef>
#include <functional>
#include <string>

#include "dtensor/cuda/runtime.h"

namespace dtensor::nccl {

struct Comm;  // what an ncclComm_t points to

enum class Result : int {
  success,
  unhandled_cuda_error,
  system_error,
  internal_error,
  invalid_argument,
  invalid_usage,
  remote_error,
  in_progress
};
enum class RedOp : int { sum, prod, max, min, avg };
enum class DataType : int { uint8 = 1, int64 = 4, float32 = 7, float64 = 8, bfloat16 = 9 };
struct UniqueId {
  char internal[128];
};

constexpr int undefined = INT_MIN;
constexpr int no_color = -1;  // in CommSplit: takes part in the call and gets no communicator
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef, version = 22809;
  int blocking = 0;  // calls return at once, perhaps with in_progress
  int cga_cluster_size = undefined, min_ctas = undefined, max_ctas = undefined;
  const char* net_name = nullptr;
  int split_share = undefined, traffic_class = undefined;
  const char* comm_name = nullptr;
  int collnet_enable = undefined, cta_policy = undefined, shrink_share = undefined, nvls_ctas = undefined;
  int channels_per_net_peer = undefined, nvlink_centric_sched = undefined;
};

using Stream = cuda::StreamHandle;

// A name of a member is that of NCCL's function without "nccl". All calls may be made by one thread at a time per
// communicator; GetErrorString and GetLastError by any.
struct Api {
  std::function<Result(int* version)> GetVersion;
  std::function<Result(UniqueId* id)> GetUniqueId;
  std::function<Result(Comm** comm, int ranks, UniqueId id, int rank, Config* config)> CommInitRankConfig;
  std::function<Result(Comm* comm, int color, int key, Comm** part, Config* config)> CommSplit;
  std::function<Result(Comm* comm, Result* error)> CommGetAsyncError;
  std::function<Result(const Comm* comm, int* ranks)> CommCount;
  std::function<Result(Comm*comm)> CommFinalize, CommDestroy, CommAbort;
  std::function<Result()> GroupStart, GroupEnd;
  std::function<Result(const void* in, void* out, size_t n, DataType, RedOp, Comm*, Stream)> AllReduce;
  std::function<Result(const void* in, void* out, size_t in_n, DataType, Comm*, Stream)> AllGather;
  std::function<Result(const void* in, void* out, size_t out_n, DataType, RedOp, Comm*, Stream)> ReduceScatter;
  std::function<Result(const void* in, void* out, size_t n, DataType, int root, Comm*, Stream)> Broadcast;
  std::function<Result(const void* in, void* out, size_t n, DataType, RedOp, int root, Comm*, Stream)> Reduce;
  std::function<Result(const void* in, size_t n, DataType, int peer, Comm*, Stream)> Send;
  std::function<Result(void* out, size_t n, DataType, int peer, Comm*, Stream)> Recv;
  std::function<const char*(Result)> GetErrorString;
  std::function<const char*(Comm* comm)> GetLastError;
};

// Errors: there is no such library, or it is older than 2.18.
Api load(const std::string& library = "libnccl.so.2");

}  // namespace dtensor::nccl
