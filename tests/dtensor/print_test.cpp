#include <catch2/catch.hpp>

#include <limits>
#include <numeric>
#include <sstream>

#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

Tensor counting(const Shape& shape) {
  std::vector<int64_t> v(static_cast<size_t>(numel(shape)));
  std::iota(v.begin(), v.end(), 0);
  return Tensor::of<int64_t>(shape, v);
}

}  // namespace

TEST_CASE("tensors are printed in nested brackets with aligned numbers") {
  float infinite = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Tensor bf16(std::make_shared<Allocator>(), DType::bf16, {1});
  reinterpret_cast<uint16_t*>(bf16.bytes_data())[0] = 0xc040;
  struct Case {
    Tensor tensor;
    std::string text;
  };
  for (const Case& c : std::vector<Case>{
           {{}, "an undefined tensor"},
           {Tensor::of<float>({}, {2.5f}), "f32[]\n2.5"},
           {Tensor::of<float>({0}, {}), "f32[0]\n[]"},
           {Tensor::of<float>({2, 0}, {}), "f32[2,0]\n[[],\n []]"},
           {Tensor::of<float>({2, 2}, {1, -2, 30, 4}), "f32[2,2]\n[[ 1., -2.],\n [30.,  4.]]"},
           {Tensor::of<float>({3}, {0.5f, 1, 0.12345f}), "f32[3]\n[0.5000, 1.0000, 0.1235]"},
           {Tensor::of<float>({3}, {0.5f, -0.f, 0.25f}), "f32[3]\n[ 0.50, -0.00,  0.25]"},
           {Tensor::of<float>({4}, {1, infinite, -infinite, nan}), "f32[4]\n[  1.,  inf, -inf,  nan]"},
           {Tensor::of<float>({2}, {nan, nan}), "f32[2]\n[nan, nan]"},
           {Tensor::of<double>({3}, {1e-9, 1, 0}), "f64[3]\n[1e-09, 1e+00, 0e+00]"},
           {Tensor::of<double>({2}, {1.5e20, -123456789}), "f64[2]\n[ 1.5000e+20, -1.2346e+08]"},
           {Tensor::of<double>({1}, {1e-300}), "f64[1]\n[1e-300]"},
           {Tensor::of<int64_t>({2}, {-1, std::numeric_limits<int64_t>::max()}),
            "i64[2]\n[                 -1, 9223372036854775807]"},
           {Tensor::of<bool>({2}, {true, false}), "bool[2]\n[ true, false]"},
           {bf16, "bf16[1]\n[-3.]"},
           {counting({2, 2, 2}), "i64[2,2,2]\n[[[0, 1],\n  [2, 3]],\n\n [[4, 5],\n  [6, 7]]]"},
           {counting({2, 3}).permute(std::vector{1, 0}), "i64[3,2]\n[[0, 3],\n [1, 4],\n [2, 5]]"},
           {counting({30}),
            "i64[30]\n[ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,\n"
            " 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]"},
           {counting({1001}), "i64[1001]\n[   0,    1,    2, ...,  998,  999, 1000]"},
           {counting({2, 501}),
            "i64[2,501]\n[[   0,    1,    2, ...,  498,  499,  500],\n [ 501,  502,  503, ...,  999, 1000, 1001]]"},
           {counting({501, 2}),
            "i64[501,2]\n[[   0,    1],\n [   2,    3],\n [   4,    5],\n ...,\n [ 996,  997],\n [ 998,  999],\n "
            "[1000, 1001]]"},
           {Tensor(nullptr, DType::f32, {1 << 20, 1 << 20}, Device::meta), "f32[1048576,1048576] meta"},
       }) {
    std::ostringstream out;
    out << c.tensor;
    CHECK(out.str() == c.text);
  }
  std::string many = to_string(counting({1000}));
  CHECK(many.find("...") == std::string::npos);
  std::istringstream lines(many);
  for (std::string line; std::getline(lines, line);) CHECK((line.size() <= 80 && !line.ends_with(' ')));
}
