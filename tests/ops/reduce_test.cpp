#include <cmath>
#include <functional>

#include "tests/ops/helpers.h"

using namespace dtensor;

TEST_CASE("reductions over some or all dimensions") {
  OneRank one;
  DistributedTensor x = one({2, 3});
  CHECK(ops::sum(x).item() == 15);
  CHECK(ops::sum(x).shape() == Shape{});
  CHECK(numbers(ops::sum(x, {0}).full_tensor()) == std::vector<double>{3, 5, 7});
  CHECK(numbers(ops::sum(x, {-1}).full_tensor()) == std::vector<double>{3, 12});
  CHECK(ops::sum(x, {1}, true).shape() == Shape{2, 1});
  CHECK(ops::mean(x).item() == 2.5);
  CHECK(numbers(ops::amax(x, {1}).full_tensor()) == std::vector<double>{2, 5});
  CHECK(ops::sum_squares(x).item() == 55);
  CHECK(ops::sum_squares(x).dtype() == DType::f64);
  CHECK(ops::sum(one(Shape{})).item() == 0);
  CHECK(numbers(ops::sum(one({0, 2}), {0}).full_tensor()) == std::vector<double>{0, 0});
  CHECK(numbers(ops::sum_to(one({2, 3}), {1, 3}).full_tensor()) == std::vector<double>{3, 5, 7});
  CHECK(numbers(ops::sum_to(one({2, 3}), {3}).full_tensor()) == std::vector<double>{3, 5, 7});
  CHECK(ops::norm(one(Tensor::of<double>({2}, {3e200, -4e200}))).item() == Approx(5e200));  // whose squares overflow
}

TEST_CASE("a sharded dimension that is reduced leaves a Partial, and nothing moves") {
  launch(3, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=3");
    Moved moved(rank);
    DistributedTensor x = DistributedTensor::distribute(iota({4, 5}), mesh, {Shard(0)});  // 2, 2 and 0 rows
    expect(ops::sum(x, {0}).layout(), Layout{Partial(Reduce::sum)});
    expect(ops::amax(x, {0}).layout(), Layout{Partial(Reduce::max)});
    expect(ops::sum(x, {1}).layout(), Layout{Shard(0)});
    expect(ops::mean(x, {0}).layout(), Layout{Partial(Reduce::sum)});
    expect(moved.log, "");
    expect(numbers(ops::mean(x, {0}).full_tensor())[1], 8.5);
    expect(numbers(ops::amax(x, {0}).full_tensor())[0], 15);
  });
}

TEST_CASE("what reductions and their family refuse, and how they say it") {
  OneRank one;
  DistributedTensor x = one({2, 3}), ids = one({2, 3}, DType::i64), empty = one({0, 3});
  using Catch::Contains;
  CHECK_THROWS_WITH(ops::mean(ids), Contains("[mean] element type i64 of i64[2,3]") && Contains("use cast()"));
  CHECK_THROWS_WITH(ops::var(ids), Contains("[var] element type i64") && Contains("cast()"));
  CHECK_THROWS_WITH(ops::norm(ids), Contains("[norm] element type i64") && Contains("cast()"));
  CHECK_THROWS_WITH(ops::logsumexp(ids, {0}), Contains("[logsumexp] element type i64"));
  CHECK_THROWS_WITH(ops::softmax(ids, 0), Contains("[softmax] element type i64"));
  CHECK_THROWS_WITH(ops::amax(empty, {0}), Contains("[amax] dimension 0 of f32[0,3]"));
  CHECK_THROWS_WITH(ops::amin(empty), Contains("[amin] dimension 0"));
  CHECK_THROWS_WITH(ops::argmax(empty, 0), Contains("has no elements along dimension 0"));
  CHECK_THROWS_WITH(ops::argmin(empty), Contains("[argmin]"));
  CHECK_THROWS_WITH(ops::norm(empty, -1.0, {0}), Contains("[norm] p=-1 of no elements"));
  CHECK_THROWS_WITH(ops::any(x, {0, 0}), Contains("[any] a dimension is named twice"));
  CHECK_THROWS_WITH(ops::std(x, {2}), Contains("[std] dimension 2 is out of range"));
  CHECK_THROWS_WITH(ops::cumsum(x, 5), Contains("[cumsum] dimension 5"));
  CHECK_THROWS_WITH(ops::topk(x, 4, 1), Contains("[topk] k=4 of 3 elements along dimension 1 of [2,3]"));
  CHECK_THROWS_WITH(ops::layer_norm(x, {2}), Contains("[layer_norm] normalized_shape [2] is not the end of f32[2,3]"));
  CHECK_THROWS_WITH(ops::layer_norm(x, {3}, one({2})), Contains("[layer_norm] weight f32[2]"));
}

// What moves, in strict mode, for x [4,6] in f32 sharded along its reduced dimension: nothing is gathered.
TEST_CASE("a sharded dimension costs small all-reduces, and none where it is whole") {
  struct Row {
    const char* what;
    std::function<DistributedTensor(const DistributedTensor& x, const DistributedTensor& w)> f;
    const char* log;
  };
  using X = const DistributedTensor&;
  const Row rows[] = {
      {"softmax", [](X x, X) { return ops::softmax(x, -1); }, "all_reduce 16, all_reduce 16"},
      {"log_softmax", [](X x, X) { return ops::log_softmax(x, -1); }, "all_reduce 16, all_reduce 16"},
      {"var", [](X x, X) { return ops::var(x, {-1}); }, "all_reduce 16, all_reduce 16"},
      {"std", [](X x, X) { return ops::std(x, {-1}); }, "all_reduce 16, all_reduce 16"},
      {"norm", [](X x, X) { return ops::norm(x, 2, {-1}); }, "all_reduce 16, all_reduce 16"},
      {"logsumexp", [](X x, X) { return ops::logsumexp(x, {-1}); }, "all_reduce 16, all_reduce 16"},
      {"argmax", [](X x, X) { return ops::argmax(x, -1); }, "all_reduce 16, all_reduce 32"},
      {"layer_norm", [](X x, X w) { return ops::layer_norm(x, {6}, w, w); }, "all_reduce 16, all_reduce 16"},
      {"rms_norm", [](X x, X w) { return ops::rms_norm(x, w, 1e-5); }, "all_reduce 16"},
      {"prod", [](X x, X) { return ops::prod(x, {-1}); }, ""},
      {"amax", [](X x, X) { return ops::amax(x, {-1}); }, ""},
      {"any", [](X x, X) { return ops::any(x, {-1}); }, ""},
  };
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    rank.strict = true;
    for (const Row& row : rows)
      for (int d : {1, 0}) {
        DistributedTensor x = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(d)});
        DistributedTensor w = DistributedTensor::distribute(iota({6}), mesh, {d ? Shard(0) : Replicate()});
        Moved moved(rank);
        row.f(x, w);
        if (moved.log != (d ? row.log : "")) fail("{} on Shard({}) moves {}", row.what, d, moved.log);
      }
  });
}
