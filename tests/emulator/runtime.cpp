// Errors, devices, memory and launches.
#include <cuda_runtime.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "tests/emulator/kernel.h"
#include "tests/emulator/state.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

constexpr std::pair<cudaError_t, const char*> error_names[] = {
#define ERROR(name) \
  { name, #name }
    ERROR(cudaSuccess),
    ERROR(cudaErrorInvalidValue),
    ERROR(cudaErrorMemoryAllocation),
    ERROR(cudaErrorInitializationError),
    ERROR(cudaErrorInvalidConfiguration),
    ERROR(cudaErrorInvalidPitchValue),
    ERROR(cudaErrorInsufficientDriver),
    ERROR(cudaErrorInvalidDeviceFunction),
    ERROR(cudaErrorNoDevice),
    ERROR(cudaErrorInvalidDevice),
    ERROR(cudaErrorInvalidResourceHandle),
    ERROR(cudaErrorNotReady),
    ERROR(cudaErrorIllegalAddress),
    ERROR(cudaErrorLaunchOutOfResources),
    ERROR(cudaErrorPeerAccessAlreadyEnabled),
    ERROR(cudaErrorPeerAccessNotEnabled),
    ERROR(cudaErrorLaunchFailure),
    ERROR(cudaErrorNotSupported),
    ERROR(cudaErrorStreamCaptureUnsupported),
    ERROR(cudaErrorStreamCaptureInvalidated),
    ERROR(cudaErrorStreamCaptureMerge),
    ERROR(cudaErrorStreamCaptureUnmatched),
    ERROR(cudaErrorStreamCaptureUnjoined),
    ERROR(cudaErrorStreamCaptureIsolation),
    ERROR(cudaErrorStreamCaptureImplicit),
    ERROR(cudaErrorCapturedEvent),
    ERROR(cudaErrorStreamCaptureWrongThread),
#undef ERROR
};

bool is_device(int device) { return device >= 0 && device < state().devices; }

int64_t used_memory(int device) {
  int64_t bytes = 0;
  for (auto& [_, a] : state().allocations) bytes += a.device == device ? int64_t(a.bytes) : 0;
  return bytes;
}

// The address sanitizer watches memory of its very size; elsewhere whole pages are protected, huge ones where they are
// possible, because this is done at every wait.
#ifdef __SANITIZE_ADDRESS__
void* reserve(size_t bytes) {
  void* at = nullptr;
  return posix_memalign(&at, 256, bytes) == 0 ? at : nullptr;
}
void set_access(void* at, size_t bytes, bool possible) {
  if (possible)
    ASAN_UNPOISON_MEMORY_REGION(at, bytes);
  else
    ASAN_POISON_MEMORY_REGION(at, bytes);
}
#else
constexpr size_t page = 4096, huge_page = 2 << 20;
size_t in_pages(size_t bytes) { return (bytes + page - 1) / page * page; }
void* reserve(size_t bytes) {
  void* at = std::aligned_alloc(bytes < huge_page ? page : huge_page, in_pages(bytes));
  if (at && bytes >= huge_page) madvise(at, in_pages(bytes), MADV_HUGEPAGE);
  return at;
}
void set_access(void* at, size_t bytes, bool possible) {
  mprotect(at, in_pages(bytes), possible ? PROT_READ | PROT_WRITE : PROT_NONE);
}
#endif

void set_access(bool possible) {
  for (auto& [at, a] : state().allocations)
    if (a.device >= 0) set_access(at, a.bytes, possible);
}

cudaError_t allocate(void** memory, size_t bytes, int device) {
  *memory = nullptr;
  if (cudaError_t e = forbidden_in_capture()) return e;
  if (!is_device(current_device())) return cudaErrorNoDevice;
  if (bytes == 0) return cudaSuccess;
  int64_t most = device >= 0 ? state().memory : state().pinned_memory;
  if (used_memory(device) + int64_t(bytes) > most) return cudaErrorMemoryAllocation;
  if (!(*memory = reserve(bytes))) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  if (device >= 0 && state().accesses == 0) set_access(*memory, bytes, false);
  state().allocations[static_cast<char*>(*memory)] = {bytes, device};
  return cudaSuccess;
}

cudaError_t release(void* memory, bool pinned) {
  Lock lock(state().mutex);  // possible after an error too
  if (!memory) return cudaSuccess;
  if (cudaError_t e = forbidden_in_capture()) return noted(e);
  auto at = state().allocations.find(static_cast<char*>(memory));
  if (at == state().allocations.end() || (at->second.device < 0) != pinned) return noted(cudaErrorInvalidValue);
  run_all(lock, -1);
  if (!pinned) set_access(memory, at->second.bytes, true);
  std::free(memory);
  state().allocations.erase(at);
  return noted(state().failure.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}

// Rows of `width` bytes.
struct Rows {
  char* at;
  size_t pitch;
};
void copy_rows(Rows to, Rows from, size_t width, size_t height) {
  for (size_t i = 0; i < height; ++i)
    if (to.at != from.at) std::memcpy(to.at + i * to.pitch, from.at + i * from.pitch, width);
}
size_t span(size_t pitch, size_t width, size_t height) { return width && height ? (height - 1) * pitch + width : 0; }

cudaError_t copy(Lock& lock, Rows to, Rows from, size_t width, size_t height, cudaStream_t stream) {
  if (to.pitch < width || from.pitch < width) return cudaErrorInvalidPitchValue;
  bool to_inside = true, from_inside = true;
  const Allocation* target = find_allocation(to.at, span(to.pitch, width, height), &to_inside);
  const Allocation* source = find_allocation(from.at, span(from.pitch, width, height), &from_inside);
  if (!to_inside || !from_inside) return cudaErrorInvalidValue;
  if (source && target) return give(lock, stream, [=] { copy_rows(to, from, width, height); });
  // What is not known to CUDA cannot be in a graph, is read now, and is written at some time.
  if (state().streams.count(stream) && stream->capture) {
    stream->capture->valid = false;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (source) return give(lock, stream, [=] { copy_rows(to, from, width, height); });
  auto staged = std::make_shared<std::vector<char>>(width * height);
  copy_rows({staged->data(), width}, from, width, height);
  return give(lock, stream, [=] { copy_rows(to, {staged->data(), width}, width, height); });
}

void set_environment_schedule(State& s) {
  const char* text = std::getenv("EMULATOR_SCHEDULE");
  std::string_view name = text ? text : "lazy";
  s.schedule = name == "lazy" ? Schedule::lazy : name == "eager" ? Schedule::eager : Schedule::random;
  s.random.seed(s.schedule == Schedule::random ? std::strtoull(text, nullptr, 10) : 0);
}

}  // namespace

State::State() { reset(); }

void State::reset() {
  devices = 1, memory = int64_t(4) << 30, pinned_memory = INT64_MAX;
  failure.clear();
  peers.clear();
  for (auto& [_, s] : streams) s->queue.clear(), s->done = s->given, s->capture = nullptr, s->tail.clear();
  captures.clear();
  set_environment_schedule(*this);
}

State& state() {
  static State& s = *new State;  // outlives all that is destroyed at the end
  return s;
}
int& current_device() {
  static thread_local int device = 0;
  return device;
}
cudaError_t noted(cudaError_t error) {
  if (error) last_error = error;
  return error;
}

Access::Access() {
  if (state().accesses++ == 0) set_access(true);
}
Access::~Access() {
  if (--state().accesses == 0) set_access(false);
}

const Allocation* find_allocation(const void* at, size_t bytes, bool* inside) {
  char* begin = static_cast<char*>(const_cast<void*>(at));
  auto next = state().allocations.upper_bound(begin);
  if (next != state().allocations.begin()) {
    auto& [start, a] = *std::prev(next);
    if (begin + bytes <= start + a.bytes) return &a;
    if (begin < start + a.bytes && inside) *inside = false;
  }
  if (next != state().allocations.end() && begin + bytes > next->first && inside) *inside = false;
  return nullptr;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, Work thread) {
  return call([&](Lock& lock) {
    dim3 grid = config.gridDim, block = config.blockDim;
    if (state().streams.count(config.stream) && config.stream->device != current_device())
      return cudaErrorInvalidResourceHandle;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 || !block.x ||
        !block.y || !block.z || block.x > 1024 || block.y > 1024 || block.z > 64 ||
        uint64_t(block.x) * block.y * block.z > 1024)
      return cudaErrorInvalidConfiguration;
    auto limit = state().shared_limits.find(kernel);
    size_t shared = config.dynamicSmemBytes;
    if (shared > (limit == state().shared_limits.end() ? 48 << 10 : size_t(limit->second)))
      return cudaErrorInvalidValue;
    return give(lock, config.stream, [=] { run_kernel(grid, block, shared, thread); });
  });
}

void reset() {
  Lock lock(state().mutex);
  state().reset();
  current_device() = 0;
  last_error = cudaSuccess;
}
void set_devices(int count) {
  Lock lock(state().mutex);
  state().devices = count;
}
void set_peer_access(bool possible) {
  Lock lock(state().mutex);
  state().peer_access = possible;
}
void set_memory(int64_t bytes) {
  Lock lock(state().mutex);
  state().memory = bytes;
}
void set_pinned_memory(int64_t bytes) {
  Lock lock(state().mutex);
  state().pinned_memory = bytes;
}
void set_schedule(Schedule schedule, uint64_t seed) {
  Lock lock(state().mutex);
  state().schedule = schedule;
  state().random.seed(seed);
}
Alive alive() {
  Lock lock(state().mutex);
  Alive a;
  for (auto& [_, m] : state().allocations) (m.device < 0 ? a.pinned_bytes : a.device_bytes) += int64_t(m.bytes);
  a.streams = int(state().streams.size()), a.events = int(state().events.size()), a.graphs = state().graphs;
  return a;
}

}  // namespace emulator

using namespace emulator;

const char* cudaGetErrorName(cudaError_t error) {
  for (auto [e, name] : error_names)
    if (e == error) return name;
  return "cudaErrorUnknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  Lock lock(state().mutex);
  if (error != cudaErrorLaunchFailure || state().failure.empty()) return cudaGetErrorName(error);
  static thread_local std::string text;
  text = state().failure;
  return text.c_str();
}
cudaError_t cudaPeekAtLastError() {
  Lock lock(state().mutex);
  return state().failure.empty() ? last_error : cudaErrorLaunchFailure;
}
cudaError_t cudaGetLastError() {
  cudaError_t e = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return e;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  return call([&](Lock&) { return (*count = state().devices) ? cudaSuccess : cudaErrorNoDevice; });
}
cudaError_t cudaSetDevice(int device) {
  return call([&](Lock&) {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    return current_device() = device, cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return call([&](Lock&) { return *device = current_device(), cudaSuccess; });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  return call([&](Lock&) {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *p = {"Emulated NVIDIA H200",
          size_t(state().memory),
          48 << 10,
          227 << 10,
          228 << 10,
          9,
          0,
          132,
          60 << 20,
          32,
          1024,
          2048};
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (cudaError_t e = cudaGetDeviceProperties(&p, device)) return e;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = p.maxThreadsPerBlock, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = int(p.sharedMemPerBlock), cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = p.warpSize, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = p.multiProcessorCount, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = p.l2CacheSize, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = p.maxThreadsPerMultiProcessor, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = p.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = p.minor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = int(p.sharedMemPerMultiprocessor), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = int(p.sharedMemPerBlockOptin), cudaSuccess;
  }
  return noted(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return call([&](Lock&) {
    if (!is_device(device) || !is_device(peer)) return cudaErrorInvalidDevice;
    return *can = device != peer && state().peer_access, cudaSuccess;
  });
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  return call([&](Lock&) {
    if (!is_device(peer) || peer == current_device()) return cudaErrorInvalidDevice;
    return state().peers.insert({current_device(), peer}).second ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled;
  });
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return call([&](Lock&) { return allocate(memory, bytes, current_device()); });
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  return call([&](Lock&) { return allocate(memory, bytes, -1); });
}
cudaError_t cudaFree(void* memory) { return release(memory, false); }
cudaError_t cudaFreeHost(void* memory) { return release(memory, true); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return call([&](Lock&) {
    if (!is_device(current_device())) return cudaErrorNoDevice;
    *total = size_t(state().memory);
    *free = size_t(std::max<int64_t>(0, state().memory - used_memory(current_device())));
    return cudaSuccess;
  });
}

// On the default stream, which does not wait for ours and which ours do not wait for.
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return call([&](Lock&) {
    if (cudaError_t e = forbidden_in_capture()) return e;
    Access access;
    return std::memmove(to, from, bytes), cudaSuccess;
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
  return call([&](Lock& lock) {
    return copy(lock, {static_cast<char*>(to), to_pitch}, {static_cast<char*>(const_cast<void*>(from)), from_pitch},
                width, height, stream);
  });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return call([&](Lock& lock) {
    if (!find_allocation(to, bytes)) return cudaErrorInvalidValue;
    return give(lock, stream, [=] { std::memset(to, value, bytes); });
  });
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return call([&](Lock&) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > 227 << 10) return cudaErrorInvalidValue;
    return state().shared_limits[kernel] = value, cudaSuccess;
  });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
  return call([&](Lock&) {
    if (threads < 1) return cudaErrorInvalidValue;
    int warps = (threads + 31) / 32;
    *blocks = threads > 1024 ? 0 : std::min({32, 64 / warps, int((228 << 10) / (shared + 1024))});
    return cudaSuccess;
  });
}
