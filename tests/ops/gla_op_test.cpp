// Gated linear attention and the causal convolution: what they refuse, parts of a sequence, bf16.
#include <cmath>

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("gated linear attention refuses operands that do not fit") {
  OneRank one;
  DistributedTensor q = one({2, 4, 3, 2}), v = one({2, 4, 3, 5}), wrong = one({2, 5, 3, 2});
  CHECK_THROWS_WITH(ops::gated_linear_attention(q, wrong, v, q),
                    Contains(": q, k and g are [batch, sequence, heads, d], and v is [batch, sequence, heads, e]"));
  CHECK_THROWS_WITH(ops::gated_linear_attention(q, q, v, q, {.initial_state = one({2, 3, 2, 2})}),
                    Contains(" is not [batch, heads, d, e] [2,3,2,5]"));
  DistributedTensor q64 = one({2, 4, 3, 2}, DType::f64);
  CHECK_THROWS_WITH(ops::gated_linear_attention(q64, q, v, q),
                    Contains("queries, keys and values are f32 and f64: cast some"));
  CHECK_THROWS_WITH(ops::gated_linear_attention(q, q, v, q64),
                    Contains("gates and states of f32 keys are f32, not f64: cast them"));
  DistributedTensor i = one({2, 4, 3, 2}, DType::i64), iv = one({2, 4, 3, 5}, DType::i64);
  CHECK_THROWS_WITH(ops::gated_linear_attention(i, i, iv, i), Contains("keys are i64, no floating numbers"));
  DistributedTensor states = ops::cast(one({2, 3, 4, 3, 2}), DType::bf16), decay = one({2, 3, 4, 3}), none;
  CHECK_THROWS_WITH(call_all(ops::state_scan_op, {&decay, &states, &none}),
                    "[state_scan] operand 1 is bf16, and states are f32 or f64: use cast()");
}

TEST_CASE(
    "gated linear attention in bf16 rounds what it gives alone: gates and states are float32, and so are its sums") {
  OneRank one;
  auto wave = [&](const Shape& shape, double seed) {
    std::vector<float> v;
    for (int64_t i = 0; i < numel(shape); ++i) v.push_back(float(std::sin(seed + 2.3 * double(i))));
    return one(Tensor::of<float>(shape, v));
  };
  auto rounded = [](const DistributedTensor& x) { return ops::cast(x, DType::bf16); };
  for (double strength : {1e-3, 0.1, 20.0}) {
    INFO("gates to -" << strength);
    DistributedTensor q = rounded(wave({2, 200, 3, 8}, 1)), k = rounded(wave({2, 200, 3, 8}, 2)),
                      v = rounded(wave({2, 200, 3, 5}, 3)),
                      g = ops::mul(ops::sub(wave({2, 200, 3, 8}, 4), 1), strength / 2), state = wave({2, 3, 8, 5}, 5);
    auto [out, last] = ops::gated_linear_attention(q, k, v, g, {.initial_state = state});
    CHECK(out.dtype() == DType::bf16);
    CHECK(last.dtype() == DType::f32);
    auto wide = [](const DistributedTensor& x) { return ops::cast(x, DType::f32); };
    auto [exact, exact_last] = ops::gated_linear_attention(wide(q), wide(k), wide(v), g, {.initial_state = state});
    CHECK(numbers(wide(out).local()) == numbers(wide(rounded(exact)).local()));
    CHECK(numbers(last.local()) == numbers(exact_last.local()));
  }
}

TEST_CASE("a causal convolution refuses operands that do not fit") {
  OneRank one;
  DistributedTensor x = one({2, 4, 3}), weight = one({3, 2});
  CHECK_THROWS_WITH(ops::causal_convolution(x, one({2, 2})),
                    Contains("x is [batch, sequence, channels], and weight [channels, width]"));
  CHECK_THROWS_WITH(ops::causal_convolution(x, weight, one({2, 2, 3})),
                    Contains(" is not [batch, width - 1, channels] [2,1,3]"));
}

TEST_CASE("a sequence in parts: unequal ones are refused, equal ones give the whole's convolution") {
  OneRank one;
  std::vector<double> whole = numbers(ops::causal_convolution(one({2, 4, 3}), one({3, 3})).full_tensor());
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "cp=2");
    auto divided = [&](const Shape& s) { return DistributedTensor::distribute(iota(s), mesh, {Shard(1)}); };
    auto weight = DistributedTensor::distribute(iota({3, 3}), mesh, {Replicate()});
    rank.strict = true;
    DistributedTensor y = ops::causal_convolution(divided({2, 4, 3}), weight);
    rank.strict = false;
    expect(numbers(y.full_tensor()), whole);
    auto refused = [](auto f, std::string_view text) {
      try {
        f();
      } catch (const Error& e) {
        if (std::string_view(e.what()).find(text) != std::string_view::npos) return;
        throw;
      }
      fail("no error: {}", text);
    };
    refused([&] { ops::causal_convolution(divided({2, 5, 3}), weight); }, "parts must be equal and have at least");
    DistributedTensor q = divided({2, 5, 3, 2});
    refused([&] { ops::gated_linear_attention(q, q, q, q); }, "): use another length or fewer ranks");
    refused([&] { ops::gated_linear_attention(q, q, q, q); }, "does not divide evenly over");
  });
}
