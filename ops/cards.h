// Every card, by family, and every function, by name.
#pragma once

#include <span>

#include "ops/core/op.h"

namespace dtensor::ops {

// A family's cards, in the order of docs/ops.md.
using Cards = std::span<const Op* const>;

// Each is defined in its family's file; cards.cpp lists them.
extern const Cards binary_cards, unary_cards, activation_cards, compare_cards, cast_cards;
extern const Cards reduce_cards, statistics_cards, scan_cards, order_cards, softmax_cards;
extern const Cards view_cards, slice_cards, join_cards, rearrange_cards, gather_cards;
extern const Cards matmul_cards, einsum_cards;
extern const Cards norm_cards, layer_norm_cards, embedding_cards, rotary_cards, attention_cards, gla_cards,
    convolution_cards, ring_attention_cards, dropout_cards, loss_cards, linear_cross_entropy_cards;

// All of them.
Cards cards();
// The card of that name; an error that names the nearest. `who` is the public function for the error.
const Op& find(std::string_view name, const char* who = "find");

// Those of all cards, by family: for tools, tests and documents.
std::span<const Function> functions();
// Calls the function of that name. Errors: no such name (the nearest is told), values it does not take.
std::vector<DistributedTensor> call_function(std::string_view name, std::span<const DistributedTensor* const> inputs,
                                             const NamedValues& values = {});

}  // namespace dtensor::ops
