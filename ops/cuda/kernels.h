// The CUDA kernels of the library's cards, and what they keep between calls.
#pragma once

#include <typeinfo>

#include "ops/core/op.h"

namespace dtensor::cuda {

// Cards are the same in every build and do not name these kernels: they are found by the card, once per decision of the
// dispatcher. Null where a card has none.
Kernel find_kernel(const Op& op);

// A family's kernels: one table per .cpp file, listed in kernels.cpp.
struct CardKernel {
  const Op* op;
  Kernel kernel;
};
using KernelTable = std::vector<CardKernel>;

// A contiguous tensor where it begins at a multiple of 16 bytes, as new ones do, else a copy.
inline Tensor aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.bytes_data()) % 16 ? t.clone() : t; }

// What the kernels of one rank keep between calls: library handles, plans, scratch memory of fixed address.
class Workspace {
 public:
  explicit Workspace(std::shared_ptr<Allocator> allocator) : allocator_(std::move(allocator)) {}

  // The rank's one object of this type, made at first use: T(allocator).
  template <class T>
  T& get() {
    for (auto& [type, object] : objects_)
      if (*type == typeid(T)) return *static_cast<T*>(object.get());
    objects_.emplace_back(&typeid(T), std::make_shared<T>(allocator_));
    return *static_cast<T*>(objects_.back().second.get());
  }

 private:
  std::shared_ptr<Allocator> allocator_;
  std::vector<std::pair<const std::type_info*, std::shared_ptr<void>>> objects_;
};

}  // namespace dtensor::cuda
