#include "dtensor/comm/nccl_api.h"

#include <dlfcn.h>

#include "placement/error.h"

namespace dtensor::nccl {
namespace {

template <class R, class... Args>
void find(void* library, const char* name, std::function<R(Args...)>& function) {
  void* symbol = dlsym(library, name);
  check(symbol != nullptr, "[nccl] the NCCL library has no {}: version 2.18 or a later one of 2 is needed", name);
  function = reinterpret_cast<R (*)(Args...)>(symbol);
}

}  // namespace

Api load(const std::string& name) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // for as long as the process lives
  if (!library) {
    const char* why = dlerror();
    fail("[nccl] {}: install NCCL 2.18 or later, or add its folder to LD_LIBRARY_PATH; --comm threads needs none",
         why ? why : name);
  }
  Api api;
#define FIND(function) find(library, "nccl" #function, api.function)
  FIND(GetVersion), FIND(GetUniqueId), FIND(CommInitRankConfig), FIND(CommSplit), FIND(CommGetAsyncError);
  FIND(CommCount), FIND(CommFinalize), FIND(CommDestroy), FIND(CommAbort), FIND(GroupStart), FIND(GroupEnd);
  FIND(AllReduce), FIND(AllGather), FIND(ReduceScatter), FIND(Broadcast), FIND(Reduce), FIND(Send), FIND(Recv);
  FIND(GetErrorString), FIND(GetLastError);
#undef FIND
  return api;
}

}  // namespace dtensor::nccl
