// CommLog: every collective with its reason, in order of start.
#pragma once

#include <map>

#include "dtensor/device_mesh.h"

namespace dtensor {

// Records while it exists. The lists of a dry run and of the run itself are equal (law 8).
class CommLog : public Observer {
 public:
  struct Entry {
    std::string collective;  // all_gather, ...
    std::string axes;        // "tp" or "dp,tp"
    std::string tensor;      // "f32[8,16]"
    std::string from, to;    // layouts of the step; "" where there are none: send, receive, shift
    int64_t bytes = 0;       // received by the busiest rank; of a send, given
    int group = 0;           // entries of one launch have one number, from 0
    Phase phase = Phase::none;
    std::string module, op, reason, plan_line;
    bool asked_for = true;
    int peer = -1;  // of send, receive and shift: the coordinate on the axis of the other rank
    friend bool operator==(const Entry&, const Entry&) = default;
  };
  // A column to group entries by.
  enum class By : uint8_t { collective, axes, tensor, phase, module, op, reason, plan_line };

  explicit CommLog(Rank& rank) : rank_(rank) { rank_.add(*this); }
  ~CommLog() override { rank_.remove(*this); }
  CommLog(const CommLog&) = delete;

  const std::vector<Entry>& entries() const { return entries_; }
  void clear() { entries_.clear(), groups_.clear(); }

  void on_collective(const CollectiveEvent& e) override;

 private:
  Rank& rank_;
  std::vector<Entry> entries_;
  std::map<uint64_t, int> groups_;
};

// "backward all_reduce tp 65536 B f32[4,128,128] tp=Partial(sum) -> tp=Replicate  model.layers.0.mlp: gradient of
// rms_norm"; "forward send pp 4096 B f32[4,256] to 2  model.layers.7"
std::string to_string(const CommLog::Entry& e);

// How often each collective ran: {"all_reduce", 4}.
std::map<std::string, int> count_by_kind(const std::vector<CommLog::Entry>& entries);

// What the entries with the same values in some columns add up to.
struct CommTotal {
  std::vector<std::string> key;  // those values
  int launches = 0;              // one launch may carry several tensors; it counts in each key that has some of them
  int tensors = 0;               // entries
  int64_t bytes = 0;
  friend bool operator==(const CommTotal&, const CommTotal&) = default;
};

// In the order in which the keys first occur: totals(log.entries(), {By::phase, By::collective}). Without columns, one
// total of all entries.
std::vector<CommTotal> totals(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by);

// The totals as lines of aligned columns, with a heading and a last line for all:
//     phase     collective      launches  tensors   bytes
//     forward   all_gather             2        3     128
//     backward  reduce_scatter         1        1      64
//     total                            3        4     192
std::string summary(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by);

}  // namespace dtensor
