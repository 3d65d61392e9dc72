// CommLog: every collective with its reason, in order of start.
#pragma once

#include <compare>
#include <map>
#include <set>

#include "dtensor/device_mesh.h"

namespace dtensor {

// What the collectives with the same values in some columns add up to.
struct CommTotal {
  std::vector<std::string> key;  // those values
  int64_t launches = 0;          // one launch may carry several tensors; it counts in each key that has some of them
  int64_t tensors = 0;           // collectives of one tensor
  int64_t bytes = 0;
  friend bool operator==(const CommTotal&, const CommTotal&) = default;
};

// Records while it exists. The lists of a dry run and of the run itself are equal (law 8).
//
// A launch that came before is kept as its number. So the log of a loop whose steps are alike grows by 4 bytes for each
// launch, up to `most_entries` collectives; what comes then is in the totals only, which do not grow.
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
    friend auto operator<=>(const Entry&, const Entry&) = default;
  };
  // A column to group entries by.
  enum class By : uint8_t { collective, axes, tensor, phase, module, op, reason, plan_line };

  static constexpr int64_t default_most_entries = int64_t(1) << 20;
  explicit CommLog(Rank& rank, int64_t most_entries = default_most_entries);
  ~CommLog() override { rank_.remove(*this); }
  CommLog(const CommLog&) = delete;

  // The list as of now, until the next call. Errors: there were more than `most_entries`.
  const std::vector<Entry>& entries() const;
  int64_t size() const { return size_; }  // of all collectives
  // Of all collectives, listed or not; see totals() below.
  std::vector<CommTotal> totals(const std::vector<By>& by) const;
  std::string summary(const std::vector<By>& by) const;
  void clear();

  void on_collective(const CollectiveEvent& e) override;

 private:
  using Launch = std::vector<const Entry*>;
  struct Counted {
    Launch entries;
    int64_t times;
  };
  void close();

  Rank& rank_;
  int64_t most_entries_, size_ = 0;
  std::set<Entry> different_;         // with group 0
  std::map<Launch, uint32_t> index_;  // of launches_
  std::vector<Counted> launches_;     // those that differ, in the order in which they came first
  std::vector<uint32_t> list_;        // the launches as they came, while there is room
  Launch open_;                       // the latest launch, to which tensors may be added
  uint64_t group_ = 0;                // of open_
  // list_ written out for entries(): launches so far, and the collectives in them.
  mutable std::vector<Entry> entries_;
  mutable size_t written_launches_ = 0, written_entries_ = 0;
};

// "backward all_reduce tp 65536 B f32[4,128,128] tp=Partial(sum) -> tp=Replicate  model.layers.0.mlp: gradient of
// rms_norm"; "forward send pp 4096 B f32[4,256] to 2  model.layers.7"
std::string to_string(const CommLog::Entry& e);

// How often each collective ran: {"all_reduce", 4}.
std::map<std::string, int> count_by_kind(const std::vector<CommLog::Entry>& entries);

// In the order in which the keys first occur: totals(entries, {By::phase, By::collective}). Without columns, one total
// of all entries.
std::vector<CommTotal> totals(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by);

// The totals as lines of aligned columns, with a heading and a last line for all:
//     phase     collective      launches  tensors   bytes
//     forward   all_gather             2        3     128
//     backward  reduce_scatter         1        1      64
//     total                            3        4     192
std::string summary(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by);

}  // namespace dtensor
