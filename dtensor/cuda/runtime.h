// The CUDA runtime as the rest of the library sees it: devices, streams, events, memory, graphs. No CUDA header is
// needed to include this one. In a build without CUDA, no_cuda.cpp stands for the folder: everything but is_built(),
// device_count() and unavailable() is an Error there.
//
// Errors: every failed call of the runtime is an Error that names the call and says what the runtime says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace dtensor::cuda {

using StreamHandle = CUstream_st*;  // a cudaStream_t
using EventHandle = CUevent_st*;

bool is_built();
int device_count();         // 0 without a device or a driver
std::string unavailable();  // why no tensor can be on CUDA here; "" where one can

struct DeviceProperties {
  std::string name;
  int major = 0, minor = 0, multiprocessors = 0;
  int64_t memory_bytes = 0, l2_bytes = 0;
};
DeviceProperties properties(int device);
void use_device(int device);  // by this thread from now on
int current_device();         // of this thread
// Lets kernels on `device` read the memory of `peer`. Errors: the two cannot reach each other.
void enable_peer_access(int device, int peer);

class Event {
 public:
  explicit Event(bool timing = false);
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Event();

  void record(StreamHandle stream);
  bool is_done() const;  // true too where nothing was recorded
  void synchronize() const;
  double milliseconds_since(const Event& begin) const;  // both with timing, both done
  EventHandle handle() const { return handle_; }

 private:
  EventHandle handle_ = nullptr;
};

// A stream that does not wait for the default one.
class Stream {
 public:
  enum class Priority : uint8_t { normal, high };
  explicit Stream(Priority priority = Priority::normal);
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Stream();

  StreamHandle handle() const { return handle_; }

 private:
  StreamHandle handle_ = nullptr;
};

void wait(StreamHandle stream, const Event& event);  // what follows on the stream runs after the event
void synchronize(StreamHandle stream);               // the host waits
bool is_idle(StreamHandle stream);

// Memory of the current device, 256-byte aligned; null where there is not enough left.
void* allocate(int64_t bytes);
void release(void* memory);
// Host memory that copies read and write while the host goes on; null where there is not enough left.
void* allocate_pinned(int64_t bytes);
void release_pinned(void* memory);
int64_t free_memory();

// Between any two of device, pinned and other host memory. Other host memory is read before the call returns, and is
// written only when the stream was synchronized.
void copy(void* to, const void* from, int64_t bytes, StreamHandle stream);
void zero(void* memory, int64_t bytes, StreamHandle stream);

// Adds one to a number in pinned memory, which the host may read at any time, when the stream comes to it.
void count_up(StreamHandle stream, uint32_t* number);

// What a stream, and those that join it by events, were given between begin() and end(), to be launched as one.
class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), nodes_(other.nodes_) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_), nodes_ = other.nodes_;
    return *this;
  }
  ~Graph();

  // Of this thread only. What is forbidden meanwhile (synchronizing, allocating from the system, ...) fails there.
  static void begin(StreamHandle stream);
  // Errors: something forbidden happened; the stream is usable again.
  static Graph end(StreamHandle stream);
  // What `f` gives the stream and those that join it. Errors: also those of `f`.
  template <class F>
  static Graph capture(StreamHandle stream, F f) {
    begin(stream);
    try {
      f();
      return end(stream);
    } catch (...) {
      abandon(stream);
      throw;
    }
  }
  // Forgets what was captured, after an error inside.
  static void abandon(StreamHandle stream) noexcept;
  static bool is_capturing(StreamHandle stream);
  void launch(StreamHandle stream) const;
  bool defined() const { return handle_ != nullptr; }
  size_t nodes() const { return nodes_; }

 private:
  CUgraphExec_st* handle_ = nullptr;
  size_t nodes_ = 0;
};

// Throws the Error of a failed call: for .cu files, which cannot format one.
[[noreturn]] void fail_call(const char* call, int error);

}  // namespace dtensor::cuda
