// A build without CUDA.
#include "dtensor/cuda/allocator.h"
#include "dtensor/cuda/local.h"
#include "dtensor/cuda/random.h"
#include "dtensor/cuda/runtime.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {
[[noreturn]] void none() { fail("[cuda] this build has no CUDA: configure it where nvcc is found, or use the CPU"); }
}  // namespace

bool is_built() { return false; }
int device_count() { return 0; }
std::string unavailable() { return "this build has no CUDA: configure it where nvcc is found"; }

DeviceProperties properties(int) { none(); }
void use_device(int) { none(); }
int current_device() { none(); }
void enable_peer_access(int, int) { none(); }

Event::Event(bool) { none(); }
Event::~Event() = default;
void Event::record(StreamHandle) { none(); }
bool Event::is_done() const { none(); }
void Event::synchronize() const { none(); }
double Event::milliseconds_since(const Event&) const { none(); }

Stream::Stream(Priority) { none(); }
Stream::~Stream() = default;
void wait(StreamHandle, const Event&) { none(); }
void synchronize(StreamHandle) { none(); }
bool is_idle(StreamHandle) { none(); }

void* allocate(int64_t) { none(); }
void release(void*) { none(); }
void* allocate_pinned(int64_t) { none(); }
void release_pinned(void*) { none(); }
int64_t free_memory() { none(); }
void copy(void*, const void*, int64_t, StreamHandle) { none(); }
void zero(void*, int64_t, StreamHandle) { none(); }
void count_up(StreamHandle, uint32_t*) { none(); }

Graph::~Graph() = default;
void Graph::begin(StreamHandle) { none(); }
Graph Graph::end(StreamHandle) { none(); }
void Graph::abandon(StreamHandle) noexcept {}
bool Graph::is_capturing(StreamHandle) { return false; }
void Graph::launch(StreamHandle) const { none(); }

void fail_call(const char*, int) { none(); }

std::shared_ptr<Allocator> make_allocator(int) { none(); }
std::shared_ptr<Allocator> make_pinned_allocator() { none(); }
Transfer::Transfer(Tensor, Tensor) { none(); }
Transfer::~Transfer() = default;
void Transfer::wait() { none(); }
void Transfer::synchronize() const { none(); }
bool Transfer::is_done() const { none(); }
PrivatePool::PrivatePool(std::shared_ptr<Allocator>) { none(); }
PrivatePool::~PrivatePool() = default;
void PrivatePool::begin() { none(); }
void PrivatePool::end() { none(); }

void copy_strided(StreamHandle, int64_t, int, const int64_t*, const int64_t*, const int64_t*, const void*, void*) {
  none();
}
void fill(StreamHandle, int64_t, int64_t, const void*, void*) { none(); }
void scale(StreamHandle, DType, int64_t, double, void*) { none(); }
void convert(StreamHandle, DType, DType, int64_t, const void*, void*) { none(); }
void reduce_tree(StreamHandle, DType, Reduce, int, const void* const*, int64_t, void*, int64_t) { none(); }

void fill_normal(const RandomFill&, double, double) { none(); }
void fill_uniform(const RandomFill&, double, double) { none(); }
void fill_bernoulli(const RandomFill&, double) { none(); }

}  // namespace dtensor::cuda
