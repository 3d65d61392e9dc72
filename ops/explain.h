// What a call would do on a mesh of any size, without data: it is made on meta tensors over a communicator that moves
// nothing, so what is explained is what runs (law 8).
#pragma once

#include "ops/core/call.h"
#include "placement/propagate.h"

namespace dtensor {

// The ways to run one card, the best first; of hundreds of thousands that there may be on six axes, the best ones.
struct Ways {
  static constexpr size_t most = 100;
  struct Way {
    Choice choice;
    std::vector<Plan> plans;  // per input
  };
  std::vector<Way> list;
  std::vector<TensorSpec> outputs;  // of the best way

  bool all() const { return list.size() < most; }
  // Why the first was chosen: "the fewest of 4 ways", or "of the 100 best ways".
  std::string why() const;
};
// A null pointer is an absent operand. `reduce_dtype`: Rank::reduce_dtype. Errors: a composite, which is several ops;
// what the card's rule refuses.
Ways ways(const Op& op, const MeshShape& mesh, std::span<const TensorSpec* const> inputs, const Attributes& attributes,
          DType reduce_dtype = DType::f32);

struct Explanation {
  // A tensor brought to another layout, or used as it is: then the plan has no steps.
  struct Move {
    TensorSpec from;
    Layout to;
    Plan plan;
  };
  // A card that ran, or a redistribution that a composite asks for.
  struct Event {
    std::shared_ptr<const Op> op;  // null: a redistribution
    Attributes attributes;
    std::vector<Move> inputs;  // those present
    std::vector<TensorSpec> outputs;
    std::string reason;  // of a redistribution
    Ways ways;           // of a card

    int64_t bytes() const;
  };
  std::vector<Move> inputs;  // of the function; where it is used first
  std::vector<Event> events;
  std::vector<TensorSpec> outputs;
  int launches = 0;  // collectives of one kind that start together are one launch

  int64_t bytes() const;  // received by one rank
  int collectives() const;
};

// A function of ops/cards.h by name. Errors: as call_function.
Explanation explain(std::string_view function, const MeshShape& mesh, std::span<const TensorSpec* const> inputs,
                    const NamedValues& values = {});

}  // namespace dtensor
