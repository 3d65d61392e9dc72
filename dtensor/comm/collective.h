// The kinds of communication there are.
#pragma once

#include "placement/step.h"

namespace dtensor {

// permute and all_to_all are one operation (placement/step.h). Of shift, every rank of the group gives to one other; a
// send has its receive on the other rank.
enum class CollectiveKind : uint8_t {
  all_gather,
  permute,
  all_to_all,
  reduce_scatter,
  all_reduce,
  shift,
  send,
  receive,
  barrier
};

// As in logs and JSON.
constexpr std::string_view collective_name(CollectiveKind k) {
  constexpr std::string_view names[] = {"all_gather", "permute", "all_to_all", "reduce_scatter", "all_reduce",
                                        "shift",      "send",    "receive",    "barrier"};
  return names[int(k)];
}

// Of a step that communicates.
constexpr CollectiveKind collective_kind(StepKind k) {
  switch (k) {
    case StepKind::all_gather:
      return CollectiveKind::all_gather;
    case StepKind::permute:
      return CollectiveKind::permute;
    case StepKind::all_to_all:
      return CollectiveKind::all_to_all;
    case StepKind::reduce_scatter:
      return CollectiveKind::reduce_scatter;
    default:
      return CollectiveKind::all_reduce;
  }
}

}  // namespace dtensor
