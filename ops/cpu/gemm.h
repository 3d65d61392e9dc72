// Row-major matrix product whose bits do not depend on how the matrices are sharded.
//
// Every element of the product is the same function of its row of A and its column of B, wherever it lies:
//   l == 1: s = +0, then s = fma(a[k], b[k], s) in the order of k;
//   l > 1:  the sum of the first l/2 leaves + the sum of the last l/2 leaves,
// where leaf i of l is [i*K/l, (i+1)*K/l). Hence shards of M and N have the bits of the whole product, and so have the
// shards k in [r*K/t, (r+1)*K/t) once they are added over r in a balanced binary tree, for every power of two t that
// divides K and l, if each shard is computed with l/t leaves. leaves(K/t) == leaves(K)/t whenever t <= leaves(K).
//
// Source: the blocking of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with one
// accumulator per element and the tree of leaves kept in registers and on the stack.
#pragma once
#include <cstdint>
#include "ops/cpu/scratch.h"

namespace dtensor::cpu {

/// C = A*B, A*B^T (B is N x K) or A^T*B (A is K x M); C is M x N.
enum class Form { NN, NT, TN };

/// The default number of leaves of a sum of K terms: the smallest power of two that makes them at most 127 long.
int64_t leaves(int64_t K);

/// C = product, or C = C + product (one addition per element, after the whole sum). K == 0 gives +0.
/// lda, ldb, ldc: elements from row to row. l: a power of two, 0 for leaves(K). C overlaps neither A nor B.
/// T: float, or double by a slow plain loop under the same law.
template <class T>
void gemm(Form form, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* B, int64_t ldb, T* C,
          int64_t ldc, bool accumulate, int64_t l, Scratch& scratch);

}  // namespace dtensor::cpu
