#include "ops/layer/loss.h"

#include <cmath>

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("cross entropy refuses targets that are no class, and shapes that do not fit") {
  OneRank one;
  DistributedTensor logits = one({4, 3});
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({4}, DType::i64)),
                    Contains("[cross_entropy] target 3 is outside the classes [0,3)"));
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({4, 3}, DType::i64)),
                    Contains("[cross_entropy] logits f32[4,3]") && Contains("one target for each row"));
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({1}, DType::i64)), Contains("one target for each row"));
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({4, 3})),
                    Contains("targets are i64, not f32[4,3]") && Contains("probabilities"));
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({4}, DType::i64), {.class_dim = 0}), Contains("are dimension 0"));
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({4}, DType::i64), {.class_dim = 2}), Contains("[cross_entropy]"));
  CHECK_THROWS_WITH(ops::cross_entropy(logits, one({4}, DType::i64), {.label_smoothing = 1.5}),
                    Contains("label_smoothing 1.5 is outside [0,1]"));
  CHECK_THROWS_WITH(ops::cross_entropy(one(Shape{}), one(Shape{}, DType::i64)), Contains("no dimension of classes"));
  CHECK_THROWS_WITH(ops::mse_loss(logits, one({4})), Contains("[mse_loss]") && Contains("two shapes; use expand()"));
  CHECK_THROWS_WITH(ops::mse_loss(one({4}, DType::i64), one({4}, DType::i64)), Contains("no floating type"));
}

TEST_CASE("linear_cross_entropy refuses what does not fit") {
  OneRank one;
  DistributedTensor hidden = one({4, 3}), weight = one({5, 3}), target = one({4}, DType::i64),
                    doubles = one({4}, DType::f64), scalar = one(Shape{});
  auto call = [&](ops::LinearCrossEntropyOptions o) { ops::linear_cross_entropy(hidden, weight, target, o); };
  CHECK_THROWS_WITH(ops::linear_cross_entropy(hidden, one({5, 4}), target),
                    Contains("they are [..., k] and [classes, k]"));
  CHECK_THROWS_WITH(ops::linear_cross_entropy(hidden, weight, one({5}, DType::i64)),
                    Contains("[linear_cross_entropy] hidden f32[4,3]") && Contains("one i64 target for each row"));
  CHECK_THROWS_WITH(
      call({.reduction = ops::Reduction::none}),
      Contains("[linear_cross_entropy] reduction=none needs the logits of all rows: use cross_entropy(linear(...))"));
  CHECK_THROWS_WITH(call({.label_smoothing = -1}), Contains("[linear_cross_entropy] label_smoothing -1 is outside"));
  CHECK_THROWS_WITH(call({.chunk_rows = 0}), Contains("chunk_rows=0: at least 1"));
  CHECK_THROWS_WITH(call_all(ops::scaled_op, {&hidden, &scalar}, ops::Scaled{DType::f64}),
                    Contains("[scaled] f32 becomes f64: use cast()"));
  CHECK_THROWS_WITH(call_all(ops::sum_exp_op, {&hidden, &doubles}),
                    Contains("[sum_exp] operand 1 is f64[4], not f32: use cast()"));
}

TEST_CASE("cards of statistics refuse bf16, whose statistics are f32") {
  OneRank one;
  DistributedTensor half = one(Tensor::of<BFloat16>({2}, {BFloat16(1), BFloat16(2)}));
  CHECK_THROWS_WITH(call_all(ops::norm_root_op, {&half, &half}, ops::Root{2}),
                    Contains("[norm_root] element type bf16: statistics are f32; use cast()"));
}

TEST_CASE("the mean of cross entropy is over the targets that are not ignored, NaN where there are none") {
  OneRank one;
  DistributedTensor logits = one({2, 3}), target = one(Tensor::of<int64_t>({2}, {2, -100})),
                    none = one(Tensor::of<int64_t>({2}, {-100, -100}));
  double loss = std::log(std::exp(-2.0) + std::exp(-1.0) + 1);  // logits 0, 1, 2 and target 2
  CHECK(ops::cross_entropy(logits, target).item() == Approx(loss));
  CHECK(ops::cross_entropy(logits, target, {.reduction = ops::Reduction::sum}).item() == Approx(loss));
  DistributedTensor each = ops::cross_entropy(logits, target, {.reduction = ops::Reduction::none});
  CHECK(numbers(each.full_tensor())[1] == 0);
  CHECK(std::isnan(ops::cross_entropy(logits, none).item()));
}

TEST_CASE("loss parallel: one all-reduce of maxima, one launch of two sums and by rows one launch of two totals") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor target = DistributedTensor::distribute(Tensor::of<int64_t>({4}, {0, 5, 3, 1}), mesh, Layout());
    rank.strict = true;
    for (int d : {1, 0}) {
      DistributedTensor logits = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(d)});
      DistributedTensor t = d == 0 ? target.redistribute({Shard(0)}) : target;
      Moved moved(rank);
      DistributedTensor loss = ops::cross_entropy(logits, t);
      expect(loss.layout(), Layout());
      expect(moved.log, d == 1 ? "all_reduce 16, all_reduce 16, all_reduce 16" : "all_reduce 8, all_reduce 8");
      expect(moved.launches, d == 1 ? 2 : 1);
    }
  });
}
