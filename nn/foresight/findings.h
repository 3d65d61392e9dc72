// What a step does that nobody can have meant, though it runs.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "nn/parallel/plan.h"
#include "ops/core/call.h"

namespace dtensor::nn {

// Observes a rank while it exists.
class StepFindings : public Observer {
 public:
  StepFindings(Rank& rank, const ParallelPlan& plan) : rank_(rank), plan_(plan) { rank_.add(*this); }
  ~StepFindings() override { rank_.remove(*this); }
  StepFindings(const StepFindings&) = delete;

  // From here on, of another step.
  void clear();
  // Communication that the dispatcher found because an op could not take an operand as it was, a sentence each: where,
  // what, and which plan line left it so. Of blocks that are alike once.
  std::vector<std::string> implicit() const;
  // "" where the losses of a step saw so many targets, or no cross entropy ran.
  std::string loss(int64_t tokens) const;

  void on_call(const CallEvent& e) override;
  void on_collective(const CollectiveEvent& e) override;
  void on_redistribute(const RedistributeEvent& e) override;

 private:
  struct Implicit {
    std::string collective, axes, from, to;
    int64_t bytes;
    bool is_sum;  // Partial
  };

  Rank& rank_;
  const ParallelPlan& plan_;
  int64_t targets_ = 0;
  bool has_loss_ = false;
  std::vector<Implicit> started_;                      // since the last redistribution
  std::unordered_map<uint64_t, std::string> made_in_;  // values by id, the module that made them
  std::vector<std::string> order_;                     // what implicit() tells
  std::map<std::string, int> times_;
};

}  // namespace dtensor::nn
