// What a model keeps of the tokens that it has seen, so that a pass over the next ones need not see them again.
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "dtensor/distributed_tensor.h"

namespace dtensor::nn {

class Module;

// Of `rows` sequences of up to `capacity` tokens. A row keeps its token of position p at p, whatever the other rows
// have, so that a row attends over the same keys in the same order alone and in any batch. Memory is taken with an
// attention's first keys, whose heads and rows it shards as they are: 2 * rows * capacity * kv_heads * head_dim
// elements of their type; from then on it is written in place.
class KeyValueCache {
 public:
  // Errors: sizes that are negative.
  KeyValueCache(int64_t rows, int64_t capacity);

  // Which of a pass's tokens are new: the first `counts` of each row, i64 [rows]. The others are padding, or were in a
  // pass before: true in `others`, bool [rows, s]. Replicate.
  struct Fresh {
    DistributedTensor counts, others;
  };

  // Before a pass over s tokens of each row: `positions` of these, row by row, and `lengths`, of each row with them:
  // keys from there on are padding, which is not seen, and is written over by later passes. Every rank gives the same.
  // Errors: positions or lengths that are not of `rows` rows; one beyond the capacity.
  void begin_pass(const DeviceMesh& mesh, std::span<const int64_t> positions, std::span<const int64_t> lengths);

  // Of one attention, in a pass: writes its keys and values [rows, kv_heads, s, head_dim] and returns all that it has,
  // [rows, kv_heads, capacity, head_dim], of which lengths() are to be read. Errors: tokens that are not the pass's.
  std::pair<DistributedTensor, DistributedTensor> extend(const Module& attention, const DistributedTensor& keys,
                                                         const DistributedTensor& values);

  // What a module keeps between passes, empty before its first one: of attentions that extend(), two tensors. A module
  // that is no such attention keeps what it likes here (a recurrent state, say), which fresh tokens alone change.
  std::vector<DistributedTensor>& kept(const Module& module) { return kept_[&module]; }

  // Of the pass, for modules that take tokens in their order. Errors: new tokens of a row that do not go on from those
  // that it has.
  const Fresh& fresh(const Module& module);

  const DistributedTensor& lengths() const { return lengths_; }  // i64 [rows], Replicate
  int64_t longest() const { return longest_; }                   // of the lengths
  int64_t longest_before() const { return longest_before_; }     // of those of the pass before; 0: there was none
  size_t modules() const { return kept_.size(); }                // that keep something

 private:
  DistributedTensor write(DistributedTensor& stored, const Module& attention, const DistributedTensor& fresh);

  int64_t rows_, capacity_, longest_ = 0, longest_before_ = 0;
  std::vector<int64_t> positions_, ends_, begins_;                // of the pass; rows go on at begins_ to ends_
  std::optional<Fresh> fresh_;                                    // once somebody asked
  DistributedTensor slots_, lengths_;                             // slots i64 [rows * s]: row * capacity + position
  std::map<const Module*, std::vector<DistributedTensor>> kept_;  // extend()'s are [rows * capacity, heads, dim]
};

}  // namespace dtensor::nn
