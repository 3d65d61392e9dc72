// Law 9 for ops: bad operands are errors that show them. What belongs to one family is in that family's test.
#include <functional>

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::StartsWith;

TEST_CASE("law 9: bad operands of products, attention, losses and norms are errors that show them") {
  OneRank one;
  DistributedTensor scalar = one(Shape{}), vector = one({3}), matrix = one({2, 3}), empty = one({0, 3});
  DistributedTensor ids = one({2}, DType::i64), words = one({2, 3}, DType::i64), mask = ops::gt(matrix, 1.0);
  DistributedTensor q = one({1, 2, 3, 4}), wide_mask = one({1, 1, 1, 3, 3});
  auto attention = [&](ops::AttentionOptions o) { return ops::scaled_dot_product_attention(q, q, q, o); };
  const Op no_kernel = {.name = "no_kernel", .rule = "...->..."};
  struct Case {
    std::function<void()> call;
    const char* error;
  };
  const Case cases[] = {
      {[&] { ops::matmul(scalar, vector); },
       "[matmul] both operands need a dimension: f32[] x=Replicate and f32[3] x=Replicate; use mul() for a number"},
      {[&] {
         DistributedTensor k = one({1, 2, 3, 5});
         ops::scaled_dot_product_attention(q, k, k);
       },
       "[scaled_dot_product_attention] q f32[1,2,3,4] x=Replicate, k f32[1,2,3,5] x=Replicate and v f32[1,2,3,5] "
       "x=Replicate: k and v have one shape, and q's batch and head_dim"},
      {[&] { ops::scaled_dot_product_attention(matrix, matrix, matrix); },
       "[scaled_dot_product_attention] operands are [batch, heads, sequence, head_dim]: f32[2,3]"},
      {[&] {
         attention({.causal = true, .attn_mask = ops::gt(one({3, 3}), 1.0)});
       },
       "[scaled_dot_product_attention] attn_mask and is_causal are both given: put the triangle into the mask"},
      {[&] {
         attention({.attn_mask = one({3, 3}, DType::i64)});
       },
       "[scaled_dot_product_attention] attn_mask is bool or of the queries' type, not i64: i64[3,3]"},
      {[&] { attention({.attn_mask = wide_mask}); },
       "[scaled_dot_product_attention] attn_mask f32[1,1,1,3,3] x=Replicate has more than 4 dimensions"},
      {[&] {
         attention({.attn_mask = one({2, 3})});
       },
       "[scaled_dot_product_attention] attn_mask f32[2,3] x=Replicate does not broadcast to [batch, heads, queries, "
       "keys] [1,2,3,3]"},
      {[&] {
         ops::scaled_dot_product_attention(q, q, one({1, 2, 3, 5}));
       },
       "[scaled_dot_product_attention] q f32[1,2,3,4] x=Replicate, k f32[1,2,3,4] x=Replicate and v f32[1,2,3,5]"},
      {[&] {
         ops::bmm(one({2, 3, 4}), one({2, 5, 3}));
       },
       "[bmm] operands are [b,m,k] and [b,k,n], not f32[2,3,4]"},
      {[&] { ops::embedding(ids, matrix, 2); },
       "[embedding] padding_idx is 2, outside the 2 rows of the table; -1 is none"},
      {[&] { ops::argsort(matrix, 2); }, "[argsort] dimension 2 is out of range for 2 dimensions"},
      {[&] {
         ops::cross_entropy(one({0, 0}), one({0}, DType::i64));
       },
       "[cross_entropy] logits f32[0,0] x=Replicate have no classes in dimension 1"},
      {[&] { ops::cross_entropy(matrix, matrix); },
       "[cross_entropy] targets are i64, not f32[2,3]: class indices; of class probabilities take "},
      {[&] { ops::cross_entropy(matrix, mask); }, "[cross_entropy] "},
      {[&] {
         call(ops::pick_op, {&matrix, &vector}, ops::Ignore{0});
       },
       "[pick] "},
      {[&] { ops::mse_loss(matrix, vector); },
       "[mse_loss] input f32[2,3] x=Replicate and target f32[3] x=Replicate have two shapes; use expand()"},
      {[&] { ops::mse_loss(words, words); },
       "[mse_loss] input i64[2,3] x=Replicate is of no floating type; use cast()"},
      {[&] { ops::argmax(empty, 0); }, "[argmax] f32[0,3] x=Replicate has no elements along dimension 0"},
      {[&] { ops::norm(empty, -1, {0}); }, "[norm] p=-1 of no elements: f32[0,3] x=Replicate over 0"},
      {[&] { call(no_kernel, {&matrix}); }, "[no_kernel] has no kernel for cpu"},
      {[&] {
         call(ops::rms_norm_op, {&words, &words}, ops::RmsNorm{1e-5});
       },
       "[rms_norm] "},
      {[&] { call(ops::sum_squares_op, {&ids}); }, "[sum_squares] has no CPU kernel for i64"},
      {[&] {
         call(ops::pick_op, {&matrix, &matrix}, ops::Ignore{0});
       },
       "[pick] "},
  };
  for (const Case& c : cases) {
    std::string error;
    try {
      c.call();
    } catch (const Error& e) {
      error = e.what();
    }
    CHECK_THAT(error, StartsWith(c.error));
  }
  DistributedTensor targets = one({2});
  CHECK_THROWS_WITH(call(ops::pick_op, {&matrix, &targets}, ops::Ignore{0}),
                    "[pick] operand 1 is f32[2], not i64: use cast()");
}
