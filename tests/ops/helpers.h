// What tests of ops share: a mesh of one rank, tensors of numbers, and what moved.
#pragma once

#include <fmt/format.h>
#include <catch2/catch.hpp>
#include <numeric>
#include <type_traits>

#include "dtensor/launch.h"
#include "ops/all.h"

namespace dtensor {

// 0, 1, 2, ...
inline Tensor iota(const Shape& shape, DType dtype = DType::f32) {
  std::vector<float> v(size_t(numel(shape)));
  std::iota(v.begin(), v.end(), 0.0f);
  if (dtype == DType::f32) return Tensor::of<float>(shape, v);
  if (dtype == DType::i64) return Tensor::of<int64_t>(shape, std::vector<int64_t>(v.begin(), v.end()));
  return Tensor::of<double>(shape, std::vector<double>(v.begin(), v.end()));
}

inline std::vector<double> numbers(const Tensor& t) {
  std::vector<double> v;
  for (int64_t i = 0; i < t.numel(); ++i) v.push_back(element(t.contiguous(), i));
  return v;
}

// One rank, without launch.
struct OneRank {
  std::shared_ptr<Rank> rank = Rank::single();
  DeviceMesh mesh{*rank, "x=1"};

  DistributedTensor operator()(const Tensor& t) const { return DistributedTensor::distribute(t, mesh, Layout()); }
  DistributedTensor operator()(const Shape& shape, DType dtype = DType::f32) const {
    return (*this)(iota(shape, dtype));
  }
};

// For ranks: Catch's assertions are for one thread, so ranks throw, and the test sees what launch() throws again.
inline std::string shown(const std::string& s) { return s; }
inline std::string shown(int64_t n) { return fmt::format("{}", n); }
inline std::string shown(double x) { return fmt::format("{}", x); }
inline std::string shown(const std::vector<double>& v) { return fmt::format("{}", fmt::join(v, " ")); }
inline std::string shown(const Layout& l) {
  std::string text;
  for (int a = 0; a < 2; ++a) text += (a ? " " : "") + to_string(l[a]);
  return text;
}
template <class T>
void expect(const T& got, const std::type_identity_t<T>& expected) {
  if (got != expected) fail("{} is not {}", shown(got), shown(expected));
}

// The collectives that a rank starts while this lives: "all_reduce 12, all_gather 4", bytes received.
class Moved : public Observer {
 public:
  explicit Moved(Rank& rank) : rank_(rank) { rank.add(*this); }
  ~Moved() override { rank_.remove(*this); }
  void on_collective(const CollectiveEvent& e) override {
    log += fmt::format("{}{} {}", log.empty() ? "" : ", ", collective_name(e.kind), e.bytes);
    launches += e.group != last_;
    last_ = e.group;
  }
  std::string log;
  int64_t launches = 0;

 private:
  Rank& rank_;
  uint64_t last_ = 0;
};

}  // namespace dtensor
