// A CUDA runtime on the CPU, so that kernels and all that drives them are tested without a GPU and without CUDA.
//
// include/ has headers of CUDA's names with what the library uses of them; LAYER/cuda/*.cu and *.cpp are compiled
// against these by g++ into the program test_emulated, which runs tests/cuda and tests/emulator.
//
// - Kernels: the threads of a block are fibers of one host thread, which runs block after block. A thread runs until it
//   returns or has to wait for others, so there is one order only. It is an error if threads do not meet: some of the
//   block at a __syncthreads and others elsewhere or gone; lanes of a mask at different places.
// - Streams are lazy: work runs only when the host waits for it, together with what events put before it and nothing
//   else. A missing wait therefore shows as wrong values; new memory is full of 0xff bytes (NaN).
// - The host cannot touch a device's memory: a segmentation fault, except while another thread runs work.
// - Pageable host memory is read when a copy is called, pinned memory when it runs.
// - Graphs replay the latest work that can be done first, so that a missing dependency shows here as well.
// - What CUDA forbids is an error here: the checks are on the strict side.
//
// It is not a GPU: nothing is known here of the memory model, of races between the threads of a block, of registers and
// time. compute-sanitizer and the hardware see these (tests/gpu/check.sh). With the address sanitizer, accesses of
// kernels outside of the memory that cudaMalloc gave are found.
#pragma once

#include <cstdint>
#include <functional>

struct CUstream_st;

namespace emulator {

// As at the start: one device of 4 GiB, the schedule of the environment. Drops the error of a failed kernel, and all
// work that has not run. Done before every test case.
void reset();
void set_peer_access(bool possible);  // between devices; true to begin with
void set_devices(int count);          // 0: as without a driver
void set_memory(int64_t bytes);       // of each device
void set_pinned_memory(int64_t bytes);

// lazy: described above. eager: every piece of work runs at once. random: after every call some pieces of some streams
// run. The environment variable EMULATOR_SCHEDULE (lazy, eager, or a seed) chooses what reset() sets.
enum class Schedule { lazy, eager, random };
void set_schedule(Schedule schedule, uint64_t seed = 0);

// What exists now and was not yet freed or destroyed.
struct Alive {
  int64_t device_bytes = 0, pinned_bytes = 0;
  int streams = 0, events = 0, graphs = 0;
  bool operator==(const Alive&) const = default;
};
Alive alive();

// Work that something outside of the stream has to be ready for: a network, say. The stream asks when it has come to
// it, and again until `ready` is true.
struct External {
  std::function<bool()> ready;
  std::function<void()> run;
};
// Gives a stream such work. `begin` is called now, or of a captured stream at each launch of the graph. Neither it nor
// `ready` may call CUDA.
void give_external(CUstream_st* stream, std::function<External()> begin);
// Does one piece of work of each stream that has some which need not wait: a device goes on by itself while the host
// waits for something else.
void go_on();
// Whether the stream is captured.
bool is_capturing(CUstream_st* stream);

}  // namespace emulator
