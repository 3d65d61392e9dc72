// Working memory of the kernels in this folder. The caller owns one Scratch per worker thread and passes it down, so
// nothing is global and nothing is allocated once the sizes have settled.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace dtensor::cpu {

/// Who uses a slot. A kernel that calls another one uses other slots, so their contents never meet.
enum class Slot {
  gemm_a,
  gemm_b,
  gemm_cuts,
  gemm_tree,
  attention_state,
  attention_scores,
  attention_gradients,
  attention_keep,
  caller,  // free for who calls the kernels
  count
};

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Room for n values of T at a 64-byte boundary, contents undefined. Valid until more is asked of the slot than ever.
  template <class T>
  T* get(Slot slot, int64_t n) {
    Block& block = blocks_[static_cast<size_t>(slot)];
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    if (block.bytes < bytes) {
      block.memory.reset();  // free first, so that the peak is the larger size, not the sum
      block.bytes = 0;
      block.memory.reset(static_cast<std::byte*>(::operator new(bytes, alignment)));
      block.bytes = bytes;
    }
    return reinterpret_cast<T*>(block.memory.get());
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, alignment); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> memory;
    size_t bytes = 0;
  };
  std::array<Block, static_cast<size_t>(Slot::count)> blocks_;
};

}  // namespace dtensor::cpu
