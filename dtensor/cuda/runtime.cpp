#include "dtensor/cuda/runtime.h"

#include <cuda_runtime_api.h>

#include "placement/error.h"

namespace dtensor::cuda {
namespace {

void check_call(cudaError_t e, const char* call) {
  if (e != cudaSuccess) fail_call(call, int(e));
}

}  // namespace

void fail_call(const char* call, int error) {
  cudaGetLastError();  // an error that can be got over is not reported again
  fail("[cuda] {} failed: {} ({})", call, cudaGetErrorString(cudaError_t(error)), cudaGetErrorName(cudaError_t(error)));
}

bool is_built() { return true; }

int device_count() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess ? n : (cudaGetLastError(), 0);
}

std::string unavailable() {
  int n = 0;
  cudaError_t e = cudaGetDeviceCount(&n);
  cudaGetLastError();
  if (e != cudaSuccess) return fmt::format("no CUDA device can be used: {}", cudaGetErrorString(e));
  return n > 0 ? "" : "there is no CUDA device";
}

DeviceProperties properties(int device) {
  cudaDeviceProp p;
  check_call(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  return {p.name, p.major, p.minor, p.multiProcessorCount, int64_t(p.totalGlobalMem), int64_t(p.l2CacheSize)};
}

void use_device(int device) { check_call(cudaSetDevice(device), "cudaSetDevice"); }

int current_device() {
  int device = 0;
  check_call(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

void enable_peer_access(int device, int peer) {
  if (device == peer) return;
  int can = 0;
  check_call(cudaDeviceCanAccessPeer(&can, device, peer), "cudaDeviceCanAccessPeer");
  check(can, "[cuda] device {} cannot read the memory of device {}: run one process per device with --comm nccl",
        device, peer);
  use_device(device);
  cudaError_t e = cudaDeviceEnablePeerAccess(peer, 0);
  if (e == cudaErrorPeerAccessAlreadyEnabled)
    cudaGetLastError();
  else
    check_call(e, "cudaDeviceEnablePeerAccess");
}

Event::Event(bool timing) {
  check_call(cudaEventCreateWithFlags(&handle_, timing ? cudaEventDefault : cudaEventDisableTiming),
             "cudaEventCreateWithFlags");
}
Event::~Event() {
  if (handle_) cudaEventDestroy(handle_);
}
void Event::record(StreamHandle stream) { check_call(cudaEventRecord(handle_, stream), "cudaEventRecord"); }
bool Event::is_done() const {
  cudaError_t e = cudaEventQuery(handle_);
  if (e == cudaErrorNotReady) return cudaGetLastError(), false;
  check_call(e, "cudaEventQuery");
  return true;
}
void Event::synchronize() const { check_call(cudaEventSynchronize(handle_), "cudaEventSynchronize"); }
double Event::milliseconds_since(const Event& begin) const {
  float ms = 0;
  check_call(cudaEventElapsedTime(&ms, begin.handle_, handle_), "cudaEventElapsedTime");
  return double(ms);
}

Stream::Stream(Priority priority) {
  int least = 0, greatest = 0;
  check_call(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check_call(
      cudaStreamCreateWithPriority(&handle_, cudaStreamNonBlocking, priority == Priority::high ? greatest : least),
      "cudaStreamCreateWithPriority");
}
Stream::~Stream() {
  if (handle_) cudaStreamDestroy(handle_);
}
void wait(StreamHandle stream, const Event& event) {
  check_call(cudaStreamWaitEvent(stream, event.handle(), 0), "cudaStreamWaitEvent");
}
void synchronize(StreamHandle stream) { check_call(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); }
bool is_idle(StreamHandle stream) {
  cudaError_t e = cudaStreamQuery(stream);
  if (e == cudaErrorNotReady) return cudaGetLastError(), false;
  check_call(e, "cudaStreamQuery");
  return true;
}

namespace {

// New memory is harmless to a graph that this thread captures.
template <class F>
cudaError_t though_capturing(F f) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check_call(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  cudaError_t e = f();
  check_call(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  return e;
}

}  // namespace

void* allocate(int64_t bytes) {
  void* memory = nullptr;
  cudaError_t e = though_capturing([&] { return cudaMalloc(&memory, size_t(bytes)); });
  if (e == cudaErrorMemoryAllocation) return cudaGetLastError(), nullptr;
  check_call(e, "cudaMalloc");
  return memory;
}
void release(void* memory) { cudaFree(memory); }
void* allocate_pinned(int64_t bytes) {
  void* memory = nullptr;
  cudaError_t e = though_capturing([&] { return cudaMallocHost(&memory, size_t(bytes)); });
  if (e == cudaErrorMemoryAllocation) return cudaGetLastError(), nullptr;
  check_call(e, "cudaMallocHost");
  return memory;
}
void release_pinned(void* memory) { cudaFreeHost(memory); }
int64_t free_memory() {
  size_t free = 0, total = 0;
  check_call(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return int64_t(free);
}

void copy(void* to, const void* from, int64_t bytes, StreamHandle stream) {
  if (bytes) check_call(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}
void zero(void* memory, int64_t bytes, StreamHandle stream) {
  if (bytes) check_call(cudaMemsetAsync(memory, 0, size_t(bytes), stream), "cudaMemsetAsync");
}

Graph::~Graph() {
  if (handle_) cudaGraphExecDestroy(handle_);
}
void Graph::begin(StreamHandle stream) {
  check_call(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}
Graph Graph::end(StreamHandle stream) {
  cudaGraph_t captured = nullptr;
  check_call(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
  Graph graph;
  cudaGraphGetNodes(captured, nullptr, &graph.nodes_);
  cudaError_t e = cudaGraphInstantiate(&graph.handle_, captured, 0);
  cudaGraphDestroy(captured);
  check_call(e, "cudaGraphInstantiate");
  return graph;
}
void Graph::abandon(StreamHandle stream) noexcept {
  cudaGraph_t captured = nullptr;
  if (cudaStreamEndCapture(stream, &captured) == cudaSuccess) cudaGraphDestroy(captured);
  cudaGetLastError();
}
bool Graph::is_capturing(StreamHandle stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_call(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}
void Graph::launch(StreamHandle stream) const { check_call(cudaGraphLaunch(handle_, stream), "cudaGraphLaunch"); }

}  // namespace dtensor::cuda
