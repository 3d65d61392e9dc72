#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("errors of calls begin with the op and show the values") {
  OneRank one;
  DistributedTensor a = one({5, 7}), vector = one(Shape{7});
  CHECK_THROWS_WITH(ops::matmul(a, one({6, 3})), Contains("[matmul] inner sizes 7 and 6 differ: f32[5,7]"));
  CHECK_THROWS_WITH(call(ops::matmul_op, {&a, &vector}),
                    Contains("[matmul] operand 1 has 1 dimensions, [7]; it needs at least 2"));
  CHECK_THROWS_WITH(ops::add(a, one({5, 3})),
                    Contains("[add] sizes 7 and 3 of one dimension do not broadcast: operand 1 is [5,3]"));
  CHECK_THROWS_WITH(ops::add(a, one({5, 7}, DType::f64)),
                    Contains("[add] element types differ: f32[5,7] and f64[5,7]; use cast()"));
  CHECK_THROWS_WITH(call(ops::add_op, {&a}), Contains("[add] takes 2 operands, not 1"));
  CHECK_THROWS_WITH(call(ops::add_op, {nullptr, nullptr}), Contains("[add] all operands are absent"));
  CHECK_THROWS_WITH(ops::sum(a, {2}), Contains("[sum] dimension 2 is out of range for 2 dimensions"));
  CHECK_THROWS_WITH(ops::sum(a, {0, -2}), Contains("[sum] a dimension is named twice"));
  CHECK_THROWS_WITH(ops::exp(one({3}, DType::i64)), Contains("[exp] element type i64 of [3]: use cast()"));
  CHECK_THROWS_WITH(ops::div(one({3}, DType::i64), one({3}, DType::i64)),
                    Contains("[div] element type i64 of [3]: use cast()"));
  CHECK_THROWS_WITH(ops::mul(one({3}, DType::i64), 0.5), Contains("[mul_scalar] 0.5 is no integer"));
  CHECK_THROWS_WITH(ops::swiglu(a, one({7})), Contains("[swiglu] shapes differ: [5,7] and [7]"));
  CHECK_THROWS_WITH(ops::linear_weight_gradient(a, one({1, 7})),
                    Contains("[linear_weight_gradient] leading dimensions [5] and [1] differ"));
  CHECK_THROWS_WITH(ops::embedding(a, a), Contains("[embedding] indices are i64, not f32[5,7]"));
  CHECK_THROWS_WITH(ops::embedding(one({5}, DType::i64), one({4, 2})),
                    Contains("[embedding] id 4 is outside the vocabulary [0,4)"));
  CHECK_THROWS_WITH(ops::rotary(one({1, 2, 1, 3}), 100),
                    Contains("[rotary] heads of 3 elements; pairs need an even number"));
  CHECK_THROWS_WITH(ops::rms_norm(a, one({5}), 1e-5), Contains("[rms_norm] sizes of d differ"));
}

TEST_CASE("operands on two meshes are an error that names both") {
  OneRank one;
  DeviceMesh other(*one.rank, "y=1");
  DistributedTensor a = one({3}), b = DistributedTensor::distribute(iota({3}), other, Layout());
  CHECK_THROWS_WITH(ops::add(a, b), Contains("[add] operands on two meshes: x=1 and y=1"));
}

TEST_CASE("law 7: in strict mode, communication that nobody asked for is an error") {
  auto run = [](bool strict, bool by_hand) {
    launch(2, [&](Rank& rank) {
      DeviceMesh mesh(rank, "tp=2");
      DistributedTensor a = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(0)});
      DistributedTensor b = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(1)});
      rank.strict = strict;
      if (by_hand) b = b.redistribute({Shard(0)});
      expect(numbers(ops::add(a, b).full())[7], 14);
    });
  };
  run(false, false);
  run(true, true);
  CHECK_THROWS_WITH(run(true, false), Contains("[add] strict mode: ") && Contains("f32[4,6] tp=Shard(") &&
                                          Contains("which nobody asked for") && Contains("redistribute()"));
}

TEST_CASE("calls repeat from the cache: it stays flat") {
  OneRank one;
  DistributedTensor a = one({4, 6}), w = one({3, 6});
  auto step = [&] {
    DistributedTensor y = ops::linear(a, w);
    y = ops::reshape(ops::mul(y, 0.5), {2, 2, -1});
    return ops::sum(ops::transpose(y, 0, 1), {-1});
  };
  step();
  size_t calls = cached_calls(*one.rank);
  CHECK(calls > 0);
  for (int i = 0; i < 10; ++i) step();
  CHECK(cached_calls(*one.rank) == calls);
  ops::mul(a, 0.25);  // another attribute is another call
  ops::mul(a, 0.5);
  CHECK(cached_calls(*one.rank) == calls + 2);
}

TEST_CASE("the wanted layout decides among equals: an embedding's gradient in shards") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor ids = DistributedTensor::distribute(iota({5}, DType::i64), mesh, Layout());
    DistributedTensor dy = DistributedTensor::distribute(iota({5, 4}), mesh, Layout());
    Moved moved(rank);
    auto gradient = [&](const Layout* wanted) {
      return call(ops::embedding_backward_op, {&ids, &dy}, {{"num_embeddings", int64_t(6)}}, {wanted});
    };
    Layout rows{Shard(0)};
    expect(gradient(&rows).layout(), rows);
    expect(gradient(nullptr).layout(), Layout());
    expect(numbers(gradient(&rows).full()), numbers(gradient(nullptr).full()));
  });
}

TEST_CASE("a column-parallel and a row-parallel linear layer need one all-reduce") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto on = [&](const Shape& s, Placement p) { return DistributedTensor::distribute(iota(s), mesh, {p}); };
    DistributedTensor x = on({3, 4}, Replicate()), up = on({8, 4}, Shard(0)), down = on({4, 8}, Shard(1));
    Moved moved(rank);
    DistributedTensor y = ops::linear(ops::relu(ops::linear(x, up)), down);
    expect(y.layout(), Layout{Partial()});
    expect(moved.log, "");
    // A bias is added once.
    DistributedTensor bias = on({4}, Replicate()), z = ops::linear(ops::relu(ops::linear(x, up)), down, bias);
    expect(z.layout(), Layout{Partial()});
    expect(moved.log, "");
    expect(numbers(z.full())[1], numbers(y.full())[1] + 1);
    expect(moved.launches, 2);
  });
}
