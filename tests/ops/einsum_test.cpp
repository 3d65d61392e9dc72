#include "ops/linalg/einsum.h"

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("einsum refuses equations that do not fit, and names the letter and the operand") {
  OneRank one;
  DistributedTensor a = one({2, 3}), b = one({3, 4}), square = one({2, 2});
  struct Case {
    std::string equation, error;
  };
  for (const Case& c : std::vector<Case>{
           {"ij,jk,kl->il", "\"ij,jk,kl->il\" names 3 operands, and 2 are given"},
           {"ij,ik->jk", "'i' is 2 in operand 0 and 3 in operand 1"},
           {"ijk,jk->i", "operand 0 has 2 dimensions, f32[2,3] x=Replicate, and \"ijk\" names 3"},
           {"ij,...jkl->i", "operand 1 has 2 dimensions, f32[3,4] x=Replicate, and \"...jkl\" names 3"},
           {"ii,jk->k", "operand 0 has 'i' twice; diagonals are not supported"},
           {"ij,jk->ix", "the output has 'x', which is on no operand"},
           {"ij,jk->ii", "the output has 'i' twice"},
           {"i1,jk->i", "operand 0 has '1'; a term is letters and at most one \"...\""},
           {"i..,jk->i", "operand 0 has '.'"},
           {"...i...,jk->i", "operand 0 has '.'"},
           {"i...,j...->ij", "'...' is 3 in operand 0 and 4 in operand 1"},
       }) {
    INFO(c.equation);
    CHECK_THROWS_WITH(ops::einsum(c.equation, {&a, &b}), Contains("[einsum] ") && Contains(c.error));
  }
  DistributedTensor ids = one({3, 4}, DType::i64);
  CHECK_THROWS_WITH(ops::einsum("ij,ij->", {&ids, &ids}), Contains("[einsum] multiplies floating types, not i64[3,4]"));
}

TEST_CASE("einsum equals the sum over all letters, for any number of operands") {
  OneRank one;
  DistributedTensor a = one({2, 3}), b = one({3, 4}), c = one({4, 2}), v = one(Shape{3}), row = one({1, 3}),
                    none = one({0, 3});
  struct Case {
    std::string equation;
    std::vector<const DistributedTensor*> operands;
    std::vector<double> values;
  };
  for (const Case& t : std::vector<Case>{
           {"ij,jk->ik", {&a, &b}, {20, 23, 26, 29, 56, 68, 80, 92}},
           {"ij, jk", {&a, &b}, {20, 23, 26, 29, 56, 68, 80, 92}},
           {"bA,Ac", {&a, &b}, {20, 23, 26, 29, 56, 68, 80, 92}},
           {"ij,jk->ki", {&a, &b}, {20, 56, 23, 68, 26, 80, 29, 92}},
           {"ij->ji", {&a}, {0, 3, 1, 4, 2, 5}},
           {"ij->", {&a}, {15}},
           {"ij->j", {&a}, {3, 5, 7}},
           {"...j->...", {&a}, {3, 12}},
           {"j,j", {&v, &v}, {5}},
           {"i,j->ji", {&v, &v}, {0, 0, 0, 0, 1, 2, 0, 2, 4}},
           {"ij,jk,ki->", {&a, &b, &c}, {20 * 0 + 23 * 2 + 26 * 4 + 29 * 6 + 56 * 1 + 68 * 3 + 80 * 5 + 92 * 7}},
           {"ij,kl->i", {&a, &b}, {3 * 66, 12 * 66}},
           {"ij,ij->ij", {&a, &row}, {0, 1, 4, 0, 4, 10}},
           {"i...,...->i...", {&a, &v}, {0, 1, 4, 0, 4, 10}},
           {"...,...", {&a, &v}, {0, 1, 4, 0, 4, 10}},
           {"ij,kj->ik", {&none, &a}, {}},
           {"ij,ik->jk", {&none, &none}, std::vector<double>(9, 0)},
       }) {
    INFO(t.equation);
    CHECK(numbers(ops::einsum(t.equation, t.operands).full_tensor()) == t.values);
  }
}

TEST_CASE("einsum over a sharded contraction leaves Partial, and moves nothing") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    rank.strict = true;
    auto x = [&](const Shape& s, Placement p) { return DistributedTensor::distribute(iota(s), mesh, {p}); };
    DistributedTensor heads = x({2, 5, 4, 3}, Shard(2)), weight = x({4, 3, 6}, Shard(0));
    expect(ops::einsum("bshd,hdn->bsn", {&heads, &weight}).layout(), Layout({Partial()}));
    DistributedTensor scores = ops::einsum("bshd,bthd->bhst", {&heads, &heads});
    expect(scores.layout(), Layout({Shard(1)}));
    DistributedTensor partial = ops::sum(x({2, 6}, Shard(0)), {0}), whole = x({6, 2}, Replicate());
    expect(ops::einsum("i,ij->j", {&partial, &whole}).layout(), Layout({Partial()}));
  });
}

TEST_CASE("matmul of vectors, bmm, and what they refuse") {
  OneRank one;
  DistributedTensor v = one(Shape{3}), m = one({3, 2}), batch = one({2, 3, 2}), number = one(Shape{});
  CHECK(numbers(ops::matmul(v, v).full_tensor()) == std::vector<double>{5});
  CHECK(ops::matmul(v, v).dims() == 0);
  CHECK(numbers(ops::matmul(v, m).full_tensor()) == std::vector<double>{10, 13});
  CHECK(numbers(ops::matmul(ops::transpose(m, 0, 1), v).full_tensor()) == std::vector<double>{10, 13});
  CHECK(numbers(ops::matmul(v, batch).full_tensor()) == std::vector<double>{10, 13, 28, 31});
  DistributedTensor w = one(Shape{2});
  CHECK(to_string(ops::matmul(batch, w).shape()) == "[2,3]");
  DistributedTensor turned = ops::transpose(batch, 1, 2);
  CHECK(numbers(ops::bmm(turned, batch).full_tensor()) == std::vector<double>{20, 26, 26, 35, 200, 224, 224, 251});
  CHECK_THROWS_WITH(ops::matmul(v, number), Contains("[matmul] both operands need a dimension"));
  CHECK_THROWS_WITH(ops::matmul(m, m), Contains("[matmul] inner sizes 2 and 3 differ: f32[3,2]"));
  CHECK_THROWS_WITH(ops::bmm(batch, m), Contains("[bmm] operands are [b,m,k] and [b,k,n], not f32[2,3,2]"));
  CHECK_THROWS_WITH(ops::matmul(one({2, 2}, DType::i64), one({2, 2}, DType::i64)), Contains("use cast()"));
}
