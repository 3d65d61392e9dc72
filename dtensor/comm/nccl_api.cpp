#include "dtensor/comm/nccl_api.h"

#include "dtensor/shared_library.h"

namespace dtensor::nccl {

Api load(const std::string& name) {
  SharedLibrary library("nccl", name,
                        "install NCCL 2.18 or later, or add its folder to LD_LIBRARY_PATH; --comm threads needs none");
  Api api;
#define FIND(function) library.get("nccl" #function, api.function)
  FIND(GetVersion), FIND(GetUniqueId), FIND(CommInitRankConfig), FIND(CommSplit), FIND(CommGetAsyncError);
  FIND(CommCount), FIND(CommFinalize), FIND(CommDestroy), FIND(CommAbort), FIND(GroupStart), FIND(GroupEnd);
  FIND(AllReduce), FIND(AllGather), FIND(ReduceScatter), FIND(Broadcast), FIND(Reduce), FIND(Send), FIND(Recv);
  FIND(GetErrorString), FIND(GetLastError);
#undef FIND
  return api;
}

}  // namespace dtensor::nccl
