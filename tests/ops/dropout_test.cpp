#include "ops/dropout.h"

#include "dtensor/comm_log.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

namespace {
const RandomStream stream{.seed = 7, .purpose = "dropout", .path = "layers.0", .step = 3};
}

TEST_CASE("dropout keeps the elements whose number of fill_unit is at least p, and scales them") {
  OneRank one;
  DistributedTensor x = ops::add(one({40, 25}), 1);
  std::vector<float> number(1000);
  fill_unit(stream.key(), x.shape(), whole_box(x.shape()), number.data());
  std::vector<double> from = numbers(x.full());
  for (double p : {0.2, 0.5, 0.99}) {
    std::vector<double> y = numbers(ops::dropout(x, p, stream).full());
    for (size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == Approx(number[i] < p ? 0 : from[i] / (1 - p)));
  }
}

TEST_CASE("dropout: p of 0 and evaluation are the identity, 1 gives zeros, and others are refused") {
  OneRank one;
  DistributedTensor x = one({3, 4});
  CHECK(ops::dropout(x, 0, stream).id() == x.id());
  CHECK(ops::dropout(x, 0.5, stream, false).id() == x.id());
  CHECK(numbers(ops::dropout(x, 1, stream).full()) == std::vector<double>(12, 0));
  CHECK(ops::dropout(one({0, 3}), 0.5, stream).shape() == Shape{0, 3});
  for (double p : {-0.1, 1.5, double(NAN)})
    CHECK_THROWS_WITH(ops::dropout(x, p, stream), Contains("[dropout] the probability") && Contains("outside [0,1]"));
  CHECK_THROWS_WITH(ops::dropout(one({3}, DType::i64), 0.5, stream), Contains("[dropout] drops elements of floating"));
}

TEST_CASE("law 5: dropout and the dropout of attention are the same on any mesh, and move nothing") {
  OneRank one;
  ops::AttentionOptions options{.dropout_p = 0.3, .stream = stream};
  auto attend = [&](const DistributedTensor& q, const DistributedTensor& k) {
    return ops::scaled_dot_product_attention(q, k, k, options);
  };
  Tensor whole = iota({2, 4, 6, 4}), keys = iota({2, 2, 7, 4});
  DistributedTensor x = one(whole);
  std::vector<double> dropped = numbers(ops::dropout(x, 0.3, stream).full()),
                      attended = numbers(attend(ops::mul(x, 0.01), one(keys)).full());
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "a=2,b=2");
    rank.strict = true;
    for (auto [a, b] :
         {std::pair{Shard(0), Shard(1)}, {Shard(2), Shard(0)}, {Shard(1), Shard(2)}, {Shard(2), Shard(2)}}) {
      auto y = DistributedTensor::distribute(whole, mesh, {a, b});
      DistributedTensor d = ops::dropout(y, 0.3, stream);
      expect(numbers(d.full()), dropped);
      auto of_keys = [](Placement p) { return p == Shard(2) ? Placement(Replicate()) : p; };
      auto k = DistributedTensor::distribute(keys, mesh, {of_keys(a), of_keys(b)});
      Moved moved(rank);
      DistributedTensor o = attend(ops::mul(y, 0.01), k);
      expect(moved.log, "");
      expect(numbers(o.full()), attended);
    }
  });
}

TEST_CASE("dropout's decision is cached over steps") {
  OneRank one;
  DistributedTensor x = one({3, 4});
  size_t before = 0;
  for (int step = 0; step < 5; ++step) {
    ops::dropout(x, 0.5, {.seed = 1, .step = step});
    if (step == 0) before = cached_calls(*one.rank);
  }
  CHECK(cached_calls(*one.rank) == before);
}
