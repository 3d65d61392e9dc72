#include "ops/layer/dropout.h"

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
  std::vector<double> from = numbers(x.full_tensor());
  for (double p : {0.2, 0.5, 0.99}) {
    std::vector<double> y = numbers(ops::dropout(x, p, stream).full_tensor());
    for (size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == Approx(number[i] < p ? 0 : from[i] / (1 - p)));
  }
}

TEST_CASE("dropout: p of 0 and evaluation are the identity, 1 gives zeros, and others are refused") {
  OneRank one;
  DistributedTensor x = one({3, 4});
  CHECK(ops::dropout(x, 0, stream).id() == x.id());
  CHECK(ops::dropout(x, 0.5, stream, false).id() == x.id());
  CHECK(numbers(ops::dropout(x, 1, stream).full_tensor()) == std::vector<double>(12, 0));
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
  std::vector<double> dropped = numbers(ops::dropout(x, 0.3, stream).full_tensor()),
                      attended = numbers(attend(ops::mul(x, 0.01), one(keys)).full_tensor());
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "a=2,b=2");
    rank.strict = true;
    for (auto [a, b] :
         {std::pair{Shard(0), Shard(1)}, {Shard(2), Shard(0)}, {Shard(1), Shard(2)}, {Shard(2), Shard(2)}}) {
      auto y = DistributedTensor::distribute(whole, mesh, {a, b});
      DistributedTensor d = ops::dropout(y, 0.3, stream);
      expect(numbers(d.full_tensor()), dropped);
      auto of_keys = [](Placement p) { return p == Shard(2) ? Placement(Replicate()) : p; };
      auto k = DistributedTensor::distribute(keys, mesh, {of_keys(a), of_keys(b)});
      Moved moved(rank);
      DistributedTensor o = attend(ops::mul(y, 0.01), k);
      expect(moved.log, "");
      expect(numbers(o.full_tensor()), attended);
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

namespace {

// Which elements of a tensor of ones are kept, on one rank.
std::vector<double> mask_of(const OneRank& one, const Shape& shape, const RandomStream& from, double p = 0.5) {
  return numbers(
      ops::dropout(one(Tensor::zeros(std::make_shared<Allocator>(), DType::f32, shape)) + 1, p, from).full_tensor());
}

}  // namespace

TEST_CASE("dropout in a RandomScope: by seed, the innermost module's path, step and the path's calls") {
  OneRank one;
  StepNumber step(one.mesh);
  DistributedTensor x = ops::add(ops::mul(one({6, 5}), 0), 1);
  auto drop = [&](const char* path) {
    LabelScope outer(*one.rank, Label::Kind::module, "model"), label(*one.rank, Label::Kind::module, path);
    return numbers(ops::dropout(x, 0.5).full_tensor());
  };
  auto stream_of = [](const char* path, int64_t at, int64_t call) {
    return RandomStream{.seed = 3, .purpose = "dropout", .path = path, .step = at, .call = call};
  };
  CHECK_THROWS_WITH(ops::dropout(x, 0.5),
                    Contains("[dropout] no RandomScope is open, which says whether this is training, and which step: "
                             "open one, with {.training = false} for evaluation"));
  CHECK(ops::dropout(x, 0).id() == x.id());
  {
    RandomScope evaluation(step, {.training = false});
    CHECK(ops::dropout(x, 0.5).id() == x.id());
  }
  for (int64_t at : {0, 1, 2}) {
    step.set(at);
    CHECK(step.get() == at);
    for (int again : {0, 1}) {  // a scope counts from 0
      RandomScope scope(step, {.seed = 3});
      INFO("step " << at << ", scope " << again);
      CHECK(drop("a") == mask_of(one, {6, 5}, stream_of("a", at, 0)));
      CHECK(drop("a") == mask_of(one, {6, 5}, stream_of("a", at, 1)));
      CHECK(drop("b") == mask_of(one, {6, 5}, stream_of("b", at, 0)));
      RandomScope inner(step, {.seed = 4});
      CHECK(drop("a") != mask_of(one, {6, 5}, stream_of("a", at, 2)));
    }
  }
  CHECK(one.rank->random_scope == nullptr);
}

TEST_CASE("a changing step adds no decision") {
  OneRank one;
  StepNumber step(one.mesh);
  DistributedTensor x = one({4, 2, 3, 8});
  size_t before = 0;
  for (int64_t at = 0; at < 5; ++at) {
    step.set(at);
    RandomScope scope(step, {.seed = 1});
    ops::dropout(x, 0.5);
    ops::scaled_dot_product_attention(x, x, x, {.dropout_p = 0.5});
    if (at == 0) before = cached_calls(*one.rank);
  }
  CHECK(cached_calls(*one.rank) == before);
}

TEST_CASE("law 5: a batch has the same masks as one and as micro-batches on two ranks") {
  OneRank one;
  const Shape whole{8, 3, 4};
  auto drop = [](const DistributedTensor& x) {
    DistributedTensor heads = ops::reshape(x, {x.size(0), 1, 3, 4});
    DistributedTensor y = ops::dropout(x, 0.4);
    return std::pair(y, ops::scaled_dot_product_attention(heads, heads, heads, {.dropout_p = 0.4}));
  };
  StepNumber step(one.mesh, 7);
  RandomScope scope(step, {.seed = 5});
  Tensor values = iota(whole);
  auto [y, attended] = drop(ops::sin(one(values)));
  std::vector<double> expected = numbers(y.full_tensor()), expected_attended = numbers(attended.full_tensor());
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2");
    rank.strict = true;
    StepNumber number(mesh, 7);
    for (int part : {0, 1}) {
      DistributedTensor rows = micro_batch_rows(mesh, {Shard(0)}, 8, 2, part);
      expect(numbers(rows.full_tensor()),
             part == 0 ? std::vector<double>{0, 1, 4, 5} : std::vector<double>{2, 3, 6, 7});
      Tensor mine = values.narrow(0, 4 * rank.rank() + 2 * part, 2).clone();
      RandomScope micro(number, {.seed = 5, .rows = rows});
      Moved moved(rank);
      auto [z, a] = drop(ops::sin(DistributedTensor::from_local(mine, mesh, {Shard(0)}, {4, 3, 4})));
      expect(moved.log, "");
      for (int64_t i = 0; i < 24; ++i) {
        auto at = size_t((4 * rank.rank() + 2 * part) * 12 + i);
        expect(element(z.local(), i), expected[at]);
        expect(element(a.local().contiguous(), i), expected_attended[at]);
      }
    }
  });
}

TEST_CASE("law 5: a permuted sequence has the masks of its positions") {
  OneRank one;
  StepNumber step(one.mesh, 2);
  std::vector<int64_t> order = {0, 1, 6, 7, 2, 3, 4, 5};
  Tensor values = iota({2, 8, 3});
  auto drop = [&](const Tensor& x, const DistributedTensor& positions) {
    RandomScope scope(step, {.seed = 5, .positions = positions});
    return numbers(ops::dropout(one(x), 0.4).full_tensor());
  };
  DistributedTensor positions = one(Tensor::of<int64_t>({8}, order));
  std::vector<double> whole = drop(values, {}),
                      permuted = drop(ops::index_select(one(values), 1, positions).local().clone(), positions);
  for (size_t i = 0; i < permuted.size(); ++i)
    REQUIRE(permuted[i] == whole[i / 24 * 24 + size_t(order[i / 3 % 8]) * 3 + i % 3]);
  // What has no sequence keeps its own indices.
  RandomScope scope(step, {.seed = 5, .positions = positions});
  CHECK(numbers(ops::dropout(one({2, 5}), 0.4).full_tensor()) == drop(iota({2, 5}), {}));
}

TEST_CASE("RandomScope: what does not fit is an error") {
  OneRank one;
  StepNumber step(one.mesh);
  CHECK_THROWS_WITH(RandomScope(step, {.rows = one({3})}), Contains("[RandomScope] rows are f32[3]"));
  CHECK_THROWS_WITH(RandomScope(step, {.positions = one({3, 1}, DType::i64)}),
                    Contains("[RandomScope] positions are i64[3,1]"));
  RandomScope scope(step, {.rows = one({4}, DType::i64), .positions = one({5}, DType::i64)});
  CHECK_THROWS_WITH(ops::dropout(one({3, 5, 2}), 0.5), Contains("[dropout] x is f32[3,5,2]") && Contains("has 4 rows"));
  CHECK_THROWS_WITH(ops::dropout(one({4, 6, 2}), 0.5),
                    Contains("[dropout] x is f32[4,6,2]") && Contains("has 5 positions"));
  CHECK_THROWS_WITH(micro_batch_rows(one.mesh, Layout(), 8, 3, 0),
                    Contains("[micro_batch_rows] 8 rows on 1 ranks do not make part 0 of 3 equal micro-batches"));
  CHECK_THROWS_WITH(micro_batch_rows(one.mesh, Layout(), 8, 2, 2), Contains("part 2 of 2"));
}
