#include "dtensor/comm/nccl_api.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>
#include <thread>

#include "placement/error.h"

#ifdef DTENSOR_HAS_NCCL_H  // where CMake finds it
#include <nccl.h>
#endif

using namespace dtensor;
using Catch::Matchers::Contains;

#ifdef DTENSOR_HAS_NCCL_H
namespace {

// Calls of the two pass the same bytes: as many arguments, each of the same size.
template <class F>
struct Bytes;
template <class R, class... A>
struct Bytes<R(A...)> {
  static constexpr size_t of[] = {sizeof(R), sizeof(A)...};
};
template <class R, class... A>
struct Bytes<std::function<R(A...)>> : Bytes<R(A...)> {};

template <class Ours, class Theirs>
constexpr bool same_call() {
  if (std::size(Bytes<Ours>::of) != std::size(Bytes<Theirs>::of)) return false;
  for (size_t i = 0; i < std::size(Bytes<Ours>::of); ++i)
    if (Bytes<Ours>::of[i] != Bytes<Theirs>::of[i]) return false;
  return true;
}

#define SAME_CALL(name) static_assert(same_call<decltype(nccl::Api::name), decltype(::nccl##name)>(), #name)
SAME_CALL(GetVersion);
SAME_CALL(GetUniqueId);
SAME_CALL(CommInitRankConfig);
SAME_CALL(CommSplit);
SAME_CALL(CommGetAsyncError);
SAME_CALL(CommCount);
SAME_CALL(CommFinalize);
SAME_CALL(CommDestroy);
SAME_CALL(CommAbort);
SAME_CALL(GroupStart);
SAME_CALL(GroupEnd);
SAME_CALL(AllReduce);
SAME_CALL(AllGather);
SAME_CALL(ReduceScatter);
SAME_CALL(Broadcast);
SAME_CALL(Reduce);
SAME_CALL(Send);
SAME_CALL(Recv);
SAME_CALL(GetErrorString);
SAME_CALL(GetLastError);

#define SAME_FIELD(ours, theirs)                                                  \
  static_assert(offsetof(nccl::Config, ours) == offsetof(ncclConfig_t, theirs) && \
                    sizeof(nccl::Config::ours) == sizeof(ncclConfig_t::theirs),   \
                #theirs)
SAME_FIELD(size, size);
SAME_FIELD(magic, magic);
SAME_FIELD(version, version);
SAME_FIELD(blocking, blocking);
SAME_FIELD(cga_cluster_size, cgaClusterSize);
SAME_FIELD(min_ctas, minCTAs);
SAME_FIELD(max_ctas, maxCTAs);
SAME_FIELD(net_name, netName);
SAME_FIELD(split_share, splitShare);
#if NCCL_VERSION_CODE >= 22800
SAME_FIELD(traffic_class, trafficClass);
SAME_FIELD(comm_name, commName);
SAME_FIELD(collnet_enable, collnetEnable);
SAME_FIELD(cta_policy, CTAPolicy);
SAME_FIELD(shrink_share, shrinkShare);
SAME_FIELD(nvls_ctas, nvlsCTAs);
SAME_FIELD(channels_per_net_peer, nChannelsPerNetPeer);
SAME_FIELD(nvlink_centric_sched, nvlinkCentricSched);
#endif

static_assert(sizeof(nccl::UniqueId) == sizeof(ncclUniqueId));
static_assert(nccl::undefined == NCCL_CONFIG_UNDEF_INT);
static_assert(int(nccl::Result::unhandled_cuda_error) == ncclUnhandledCudaError);
static_assert(int(nccl::Result::system_error) == ncclSystemError);
static_assert(int(nccl::Result::internal_error) == ncclInternalError);
static_assert(int(nccl::Result::invalid_argument) == ncclInvalidArgument);
static_assert(int(nccl::Result::invalid_usage) == ncclInvalidUsage);
static_assert(int(nccl::Result::remote_error) == ncclRemoteError);
static_assert(int(nccl::Result::in_progress) == ncclInProgress);
static_assert(int(nccl::RedOp::sum) == ncclSum && int(nccl::RedOp::prod) == ncclProd);
static_assert(int(nccl::RedOp::max) == ncclMax && int(nccl::RedOp::min) == ncclMin);
static_assert(int(nccl::RedOp::avg) == ncclAvg);
static_assert(int(nccl::DataType::uint8) == ncclUint8 && int(nccl::DataType::int64) == ncclInt64);
static_assert(int(nccl::DataType::float32) == ncclFloat32 && int(nccl::DataType::float64) == ncclFloat64);
static_assert(int(nccl::DataType::bfloat16) == ncclBfloat16);

}  // namespace

TEST_CASE("nccl: our declarations are those of nccl.h") {
  ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  nccl::Config ours;
  CHECK(ours.magic == theirs.magic);
  CHECK(ours.cga_cluster_size == theirs.cgaClusterSize);
  CHECK(ours.nvlink_centric_sched == theirs.nvlinkCentricSched);
  CHECK(ours.comm_name == theirs.commName);
  if (NCCL_VERSION_CODE / 100 == int(ours.version) / 100) CHECK(ours.size == theirs.size);
}
#else
TEST_CASE("nccl: our declarations are those of nccl.h") {
  WARN("not compared: CMake has not found nccl.h, or not with CUDA's headers");
}
#endif

TEST_CASE("law 9: a library that is not there, or is no NCCL, is an error with the remedy") {
  CHECK_THROWS_WITH(
      nccl::load("libno_such_library.so"),
      Contains("[nccl] libno_such_library.so") &&
          Contains(": install NCCL 2.18 or later, or add its folder to LD_LIBRARY_PATH; --comm threads needs none"));
  CHECK_THROWS_WITH(nccl::load("libm.so.6"),
                    Contains("[nccl] libm.so.6 has no ncclGetVersion: install NCCL 2.18 or later"));
}

TEST_CASE("nccl: the real library loads, makes an id and says why it has no GPU") {
  nccl::Api api;
  try {
    api = nccl::load();
  } catch (const Error& e) {
    WARN("skipped: " << e.what());
    return;
  }
  int version = 0;
  REQUIRE(api.GetVersion(&version) == nccl::Result::success);
  CHECK(version >= 21800);
  CHECK(api.GetErrorString(nccl::Result::remote_error) != nullptr);
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  nccl::UniqueId id{};
  REQUIRE(api.GetUniqueId(&id) == nccl::Result::success);
  if (cuda::device_count() > 0) return;  // tests/gpu goes on there
  nccl::Config config;
  nccl::Comm* comm = nullptr;
  nccl::Result r = api.CommInitRankConfig(&comm, 1, id, 0, &config);
  for (int i = 0; i < 500 && r == nccl::Result::in_progress; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    REQUIRE(api.CommGetAsyncError(comm, &r) == nccl::Result::success);
  }
  CHECK(r == nccl::Result::unhandled_cuda_error);
  CHECK(std::string(api.GetLastError(nullptr)) != "");
  if (comm) api.CommAbort(comm);
}
