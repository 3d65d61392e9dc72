// A vector of at most N elements that never allocates and constructs only those it has.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace dtensor {

// For the hot path of the dispatcher. The caller keeps to the capacity.
template <class T, size_t N>
class InlineVector {
 public:
  InlineVector() = default;
  ~InlineVector() { std::destroy_n(begin(), size_); }
  InlineVector(const InlineVector&) = delete;
  InlineVector& operator=(const InlineVector&) = delete;

  template <class... Args>
  T& emplace_back(Args&&... args) {
    return *std::construct_at(begin() + size_++, std::forward<Args>(args)...);
  }
  size_t size() const { return size_; }
  T* data() { return begin(); }
  const T* data() const { return std::launder(reinterpret_cast<const T*>(bytes_)); }
  T* begin() { return std::launder(reinterpret_cast<T*>(bytes_)); }
  T* end() { return begin() + size_; }
  T& operator[](size_t i) { return begin()[i]; }

 private:
  alignas(T) std::byte bytes_[N * sizeof(T)];
  size_t size_ = 0;
};

}  // namespace dtensor
