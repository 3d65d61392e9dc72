// What else would have done what a collective does, and what it would have cost.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ops/core/call.h"

namespace dtensor::nn {

struct Alternative {
  std::string what;   // "all_reduce over tp, slice to tp=Shard(1)", or "linear of dp=Shard(0), Replicate -> Replicate"
  int64_t bytes = 0;  // received by the busiest rank
  friend bool operator==(const Alternative&, const Alternative&) = default;
};

// Observes a rank while it exists: for each collective in the order of their starts, the cheapest things that were not
// done. Of one that was asked for, other steps to the same layout; of one that the dispatcher found, other ways to run
// the op. Point-to-point communication has none.
class Alternatives : public Observer {
 public:
  static constexpr size_t most = 3;  // of each collective

  explicit Alternatives(Rank& rank) : rank_(rank) { rank_.add(*this); }
  ~Alternatives() override { rank_.remove(*this); }
  Alternatives(const Alternatives&) = delete;

  const std::vector<std::vector<Alternative>>& list() const { return list_; }

  void on_collective(const CollectiveEvent& e) override;
  void on_call(const CallEvent& e) override;

 private:
  Rank& rank_;
  std::vector<std::vector<Alternative>> list_;
  std::vector<size_t> of_next_call_;                       // collectives that bring operands to a call that comes
  std::map<std::string, std::vector<Alternative>> found_;  // by what was asked
};

}  // namespace dtensor::nn
