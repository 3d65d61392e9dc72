#include "dtensor/local/copy_async.h"

#include <catch2/catch.hpp>

#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

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
