#include "ops/attention.h"

#include <cmath>
#include <limits>

#include "ops/dropout.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

namespace {
DistributedTensor attend(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& mask) {
  return ops::scaled_dot_product_attention(q, k, k, {.attn_mask = mask});
}
}  // namespace

TEST_CASE("attention: masks are added or hide, and a row that is left no key gives 0") {
  OneRank one;
  const float inf = std::numeric_limits<float>::infinity();
  DistributedTensor q = ops::mul(one({1, 2, 2, 4}), 0.1), k = ops::mul(one({1, 2, 3, 4}), 0.1);
  DistributedTensor seen = one(Tensor::of<bool>({2, 3}, {true, false, true, false, false, false}));
  DistributedTensor added = one(Tensor::of<float>({1, 2, 3}, {0, -inf, 0, -inf, -inf, -inf}));
  std::vector<double> y = numbers(attend(q, k, seen).full());
  CHECK(y == numbers(attend(q, k, added).full()));
  for (size_t i = 0; i < 16; ++i) CHECK((y[i] == 0) == (i % 8 >= 4));
  // The same as without the hidden key.
  DistributedTensor two = one(Tensor::of<float>({1, 1, 2, 1}, {0, 2})),
                    three = one(Tensor::of<float>({1, 1, 3, 1}, {0, 9, 2}));
  DistributedTensor first = one(Tensor::of<bool>({3}, {true, false, true})),
                    row = one(Tensor::of<float>({1, 1, 1, 1}, {1}));
  CHECK(attend(row, three, first).item() == Approx(attend(row, two, {}).item()));
  CHECK(attend(row, three, first).item() == Approx(2 * std::exp(2.0) / (1 + std::exp(2.0))));
}

TEST_CASE("attention over more than a block of keys and queries equals causal attention where the mask says so") {
  OneRank one;
  DistributedTensor q = ops::mul(one({1, 2, 300, 4}), 1e-3), k = ops::mul(one({1, 1, 300, 4}), 1e-3);
  std::vector<uint8_t> lower;
  for (int i = 0; i < 300; ++i)
    for (int j = 0; j < 300; ++j) lower.push_back(j <= i);
  Tensor triangle =
      ops::cast(one(Tensor::of<int64_t>({300, 300}, std::vector<int64_t>(lower.begin(), lower.end()))), DType::boolean)
          .local();
  std::vector<double> masked = numbers(attend(q, k, one(triangle)).full()),
                      causal = numbers(ops::scaled_dot_product_attention(q, k, k, {.causal = true}).full());
  REQUIRE(masked.size() == causal.size());
  for (size_t i = 0; i < causal.size(); ++i) REQUIRE(masked[i] == Approx(causal[i]).epsilon(1e-5));
}

TEST_CASE("a negative scale is the positive one of negative queries") {
  OneRank one;
  DistributedTensor q = ops::sin(one({1, 2, 3, 4})), k = ops::cos(one({1, 2, 3, 4}));
  for (bool causal : {false, true})
    CHECK(numbers(ops::scaled_dot_product_attention(q, k, k, {.causal = causal, .scale = -0.5}).full()) ==
          numbers(ops::scaled_dot_product_attention(-q, k, k, {.causal = causal, .scale = 0.5}).full()));
}

TEST_CASE("attention is told where the gradient of the queries may be added up in any order") {
  struct Calls : Observer {
    std::string log;
    void on_call(const CallEvent& e) override {
      if (e.op.name == "attention") log += e.attributes.to_string() + "\n";
    }
  };
  OneRank one;
  Calls calls;
  one.rank->add(calls);
  DistributedTensor q = one({1, 2, 3, 4});
  ops::scaled_dot_product_attention(q, q, q);
  ops::scaled_dot_product_attention(q, q, q, {.deterministic = false});
  one.rank->remove(calls);
  CHECK(calls.log == "causal=false scale=0.5 dropout_p=0\ncausal=false scale=0.5 dropout_p=0 deterministic=false\n");
}

TEST_CASE("attention refuses masks that do not fit") {
  OneRank one;
  DistributedTensor q = one({2, 4, 3, 2}), k = one({2, 2, 5, 2}), mask = one({3, 5});
  ops::AttentionOptions both{.causal = true, .attn_mask = mask};
  CHECK_THROWS_WITH(ops::scaled_dot_product_attention(q, k, k, both),
                    Contains("attn_mask and is_causal are both given"));
  CHECK_THROWS_WITH(attend(q, k, one({5, 3})),
                    Contains("attn_mask f32[5,3]") && Contains("[batch, heads, queries, keys] [2,4,3,5]"));
  CHECK_THROWS_WITH(attend(q, k, one({2, 2, 3, 5})), Contains("does not broadcast"));
  CHECK_THROWS_WITH(attend(q, k, one({1, 1, 1, 3, 5})), Contains("has more than 4 dimensions"));
  CHECK_THROWS_WITH(attend(q, k, one({3, 5}, DType::i64)),
                    Contains("attn_mask is bool or of the queries' type, not i64"));
  CHECK_THROWS_WITH(ops::scaled_dot_product_attention(q, k, k, {.dropout_p = 2}), Contains("the probability 2"));
}

TEST_CASE("attention: a mask that is sharded as batch, heads and queries are moves nothing") {
  OneRank one;
  Tensor queries = iota({2, 4, 6, 2}), keys = iota({2, 2, 5, 2}), bias = iota({2, 4, 6, 5});
  auto small = [](const DistributedTensor& x) { return ops::mul(x, 0.01); };
  std::vector<double> whole = numbers(attend(small(one(queries)), small(one(keys)), small(one(bias))).full());
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    rank.strict = true;
    for (int d : {0, 1, 2}) {
      auto q = DistributedTensor::distribute(queries, mesh, {Shard(d)});
      auto k = DistributedTensor::distribute(keys, mesh, {d == 2 ? Placement(Replicate()) : Shard(d)});
      auto m = DistributedTensor::distribute(bias, mesh, {Shard(d)});
      Moved moved(rank);
      DistributedTensor y = attend(small(q), small(k), small(m));
      expect(moved.log, "");
      expect(y.layout(), Layout({Shard(d)}));
      expect(numbers(y.full()), whole);
    }
  });
}
