#include "tests/emulator/kernel.h"

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "tests/emulator/fiber.h"

namespace dtensor::cuda {  // of dynamic_shared<T>()
alignas(16) constinit thread_local unsigned char dynamic_shared_memory[227 << 10] = {};
}
constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace emulator {
namespace {

struct Thread {
  enum class State : uint8_t { fresh, running, at_block, at_warp, returned };
  uint3 index{};
  State state = State::fresh;
  Fiber* fiber = nullptr;  // while it waits
  Where where;             // it waits there
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;  // given to and taken from a meeting of the warp
};

// What runs blocks on one thread of the host, and keeps the fibers for the next ones.
class Runner {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
  void meet_block(Where where);
  uint64_t meet_warp(unsigned mask, uint64_t value, unsigned source, bool is_vote, Where where);
  unsigned lane() const { return unsigned(current_) % 32; }

 private:
  void run_block();
  void fiber_main(Fiber& self);
  Fiber& next_awake();                          // becomes the one that runs
  void wait(Thread::State state, Where where);  // until another thread calls wake() for it
  void wake(size_t thread);
  void answer(size_t first, unsigned mask, bool is_vote);
  std::string who_waits() const;

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  size_t next_ = 0, current_ = 0, returned_ = 0, at_block_ = 0;
  std::vector<unsigned> at_warp_;  // lanes, for every warp
  std::deque<size_t> awake_;
  std::string failure_;
  Context scheduler_;
  Fiber* fiber_ = nullptr;  // the one that runs
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};

Runner& runner() {
  static thread_local Runner r;
  return r;
}

std::string text(uint3 i) { return fmt::format("({},{},{})", i.x, i.y, i.z); }
std::string text(Where w) { return fmt::format("{}:{} in {}", w.file_name(), w.line(), w.function_name()); }

void Runner::run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  kernel_ = &thread, gridDim = grid, blockDim = block;
  threads_.assign(size_t(block.x) * block.y * block.z, {});
  for (size_t i = 0; i < threads_.size(); ++i)
    threads_[i].index = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / block.x / block.y)};
  unsigned char* shared = dtensor::cuda::dynamic_shared_memory;
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(shared + shared_bytes, sizeof(dtensor::cuda::dynamic_shared_memory) - shared_bytes);
#endif
  for (unsigned z = 0; z < grid.z && failure_.empty(); ++z)
    for (unsigned y = 0; y < grid.y && failure_.empty(); ++y)
      for (unsigned x = 0; x < grid.x && failure_.empty(); ++x) {
        blockIdx = {x, y, z};
        std::memset(shared, 0xff, shared_bytes);
        run_block();
      }
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(shared, sizeof(dtensor::cuda::dynamic_shared_memory));
#endif
  if (failure_.empty()) return;
  idle_.clear(), fibers_.clear(), awake_.clear();
  throw std::runtime_error(std::exchange(failure_, ""));
}

void Runner::run_block() {
  for (Thread& t : threads_) t.state = Thread::State::fresh;
  next_ = returned_ = at_block_ = 0;
  at_warp_.assign((threads_.size() + 31) / 32, 0);
  while (failure_.empty()) {
    if (!awake_.empty()) {
      scheduler_.go(next_awake());
    } else if (next_ < threads_.size()) {
      if (idle_.empty()) {
        fibers_.push_back(std::make_unique<Fiber>([](Fiber& self) { runner().fiber_main(self); }));
        idle_.push_back(fibers_.back().get());
      }
      fiber_ = idle_.back();
      idle_.pop_back();
      scheduler_.go(*fiber_);
    } else {
      break;
    }
  }
  if (failure_.empty() && returned_ < threads_.size())
    failure_ = fmt::format("threads of block {} wait for others that do not come: {}", text(blockIdx), who_waits());
}

Fiber& Runner::next_awake() {
  current_ = awake_.front(), awake_.pop_front();
  threadIdx = threads_[current_].index;
  return *(fiber_ = threads_[current_].fiber);
}

// Runs threads to their end, one after the other as long as none has to wait.
void Runner::fiber_main(Fiber& self) {
  for (;;) {
    while (next_ < threads_.size()) {
      current_ = next_++;
      threadIdx = threads_[current_].index;
      threads_[current_].state = Thread::State::running;
      try {
        (*kernel_)();
      } catch (const std::exception& e) {
        failure_ = e.what();
      }
      if (!failure_.empty()) self.go(scheduler_);  // does not come back
      threads_[current_].state = Thread::State::returned;
      ++returned_;
      if (!awake_.empty()) break;
    }
    idle_.push_back(&self);
    self.go(scheduler_);
  }
}

void Runner::wait(Thread::State state, Where where) {
  Thread& t = threads_[current_];
  t.state = state, t.where = where, t.fiber = fiber_;
  t.fiber->go(awake_.empty() ? scheduler_ : next_awake());
}

void Runner::wake(size_t thread) {
  threads_[thread].state = Thread::State::running;
  if (thread != current_) awake_.push_back(thread);
}

void Runner::meet_block(Where where) {
  if (++at_block_ < threads_.size()) return wait(Thread::State::at_block, where);
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (i != current_ && threads_[i].where.line() != where.line())
      throw std::runtime_error(fmt::format("threads {} and {} of block {} are at two __syncthreads: {} and {}",
                                           text(threads_[i].index), text(threadIdx), text(blockIdx),
                                           text(threads_[i].where), text(where)));
    wake(i);
  }
  at_block_ = 0;
}

uint64_t Runner::meet_warp(unsigned mask, uint64_t value, unsigned source, bool is_vote, Where where) {
  Thread& self = threads_[current_];
  size_t warp = current_ / 32;
  unsigned me = 1u << lane();
  if (!(mask & me) || (!is_vote && !(mask >> source & 1)))
    throw std::runtime_error(fmt::format("thread {} of block {}: the mask {:#x} does not have lane {}: {}",
                                         text(threadIdx), text(blockIdx), mask, mask & me ? source : lane(),
                                         text(where)));
  self.mask = mask, self.source = source, self.value = value, self.where = where;
  at_warp_[warp] |= me;
  if ((at_warp_[warp] & mask) != mask) {
    wait(Thread::State::at_warp, where);
    return self.result;
  }
  answer(warp * 32, mask, is_vote);
  at_warp_[warp] &= ~mask;
  return self.result;
}

// The lanes of the mask are all there.
void Runner::answer(size_t first, unsigned mask, bool is_vote) {
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      const Thread &t = threads_[first + i], &me = threads_[current_];
      if (t.mask != mask || t.where.line() != me.where.line() || t.where.column() != me.where.column())
        throw std::runtime_error(
            fmt::format("threads {} and {} of block {} are at two places that the warp should reach together: {} "
                        "and {}",
                        text(t.index), text(me.index), text(blockIdx), text(t.where), text(me.where)));
      votes |= unsigned(t.value != 0) << i;
    }
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      Thread& t = threads_[first + i];
      t.result = is_vote ? votes : threads_[first + t.source].value;
      wake(first + i);
    }
}

std::string Runner::who_waits() const {
  std::string out = fmt::format("{} of {} have returned", returned_, threads_.size());
  const Thread* last = nullptr;
  int more = 0;
  for (const Thread& t : threads_) {
    if (t.state == Thread::State::returned) continue;
    if (last && last->where.line() == t.where.line()) {
      ++more;
      continue;
    }
    if (more) out += fmt::format(" and {} more", std::exchange(more, 0));
    out += fmt::format(", thread {} waits at {}", text(t.index), text(t.where));
    last = &t;
  }
  return more ? fmt::format("{} and {} more", out, more) : out;
}

}  // namespace

void run_kernel(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  runner().run(grid, block, shared_bytes, thread);
}

void meet_block(Where where) { runner().meet_block(where); }
uint64_t meet_warp(unsigned mask, uint64_t value, unsigned source, Where where) {
  return runner().meet_warp(mask, value, source, false, where);
}
unsigned vote(unsigned mask, bool value, Where where) {
  return unsigned(runner().meet_warp(mask, value, 0, true, where));
}
unsigned lane() { return runner().lane(); }

}  // namespace emulator
