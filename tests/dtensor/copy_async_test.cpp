#include "dtensor/local/copy_async.h"

#include <catch2/catch.hpp>

#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

TEST_CASE("copies between host tensors of any size and place write these bytes and no others") {
  auto allocator = std::make_shared<Allocator>();
  for (int64_t n : {0, 1, 15, 16, 4095, 16384, 16385, 16384 + 31, 5 * 16384, 100000})
    for (int64_t begin : {0, 1, 7, 16}) {
      Tensor from(allocator, DType::boolean, {n + 40}), to(allocator, DType::boolean, {n + 40});  // of one byte
      for (int64_t i = 0; i < n + 40; ++i) from.bytes_data()[i] = std::byte(i * 7 + i / 256), to.bytes_data()[i] = {};
      std::vector<std::byte> expected(size_t(n + 40));
      std::copy_n(from.bytes_data() + 3, n, expected.begin() + begin);
      std::ignore = copy_async(from.narrow(0, 3, n), to.narrow(0, begin, n));
      INFO(n << " from " << begin);
      CHECK(std::equal(expected.begin(), expected.end(), to.bytes_data()));
    }
}

TEST_CASE("between host tensors an asynchronous copy is over at once, and on meta nothing happens") {
  auto rank = Rank::single();
  Tensor from = Tensor::of<float>({2, 2}, {1, 2, 3, 4}), to(rank->host_allocator(), DType::f32, {2, 2});
  AsyncCopy c = copy_async(from, to);
  CHECK(values<float>(to) == std::vector<float>{1, 2, 3, 4});
  CHECK(c.is_done());
  c.wait(), c.synchronize();
  CHECK(AsyncCopy().is_done());
  auto dry = Rank::recorded(2);
  Tensor a(dry->allocator(), DType::f32, {5}), b(dry->host_allocator(), DType::f32, {5});
  CHECK(copy_async(a, b).is_done());
  CHECK((dry->allocator()->bytes_in_use() == 20 && dry->host_allocator()->bytes_in_use() == 20));
  int order[] = {1, 0};
  CHECK_THROWS_WITH(copy_async(from, Tensor::of<float>({4}, {1, 2, 3, 4})),
                    Equals("[copy_async] f32[2,2] on cpu to f32[4] on cpu"));
  CHECK_THROWS_WITH(
      copy_async(from.permute(order), to),
      Equals("[copy_async] f32[2,2] on cpu to f32[2,2] on cpu: one of them is not contiguous; use its contiguous()"));
}
