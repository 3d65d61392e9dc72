// The last collectives of one rank, for finding out afterwards which of them did not end and which rank was missing.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dtensor/comm/communicator.h"

namespace dtensor {

// What all ranks must mean alike by one collective.
struct Signature {
  struct Item {
    DType dtype;
    std::vector<int64_t> counts, out_counts = {};  // as in Buffers; of an all_reduce its size
  };
  std::string name;  // "all_reduce(sum)"
  std::vector<Item> list;

  std::string describe() const;  // "all_reduce(sum) f32[8]"
  std::string kind() const { return name.substr(0, name.find('(')); }
};
// Of ranks a and b of one communicator.
bool agree(const Signature& x, int a, const Signature& y, int b);

// The ranks of one communicator, as ranks of the world in its order. A lane leads from the first to the second of two:
// it is another communicator than the one for all that these two do together.
struct Members {
  std::vector<int> ranks;
  bool lane = false;
  int instance = 0;  // how many of these ranks there were before
  friend bool operator==(const Members&, const Members&) = default;
};

// A ring buffer. Not for several threads at once.
class FlightRecorder {
 public:
  // queued: given to the stream, or about to be; started: the stream has reached it.
  enum class State { queued, started, done };
  struct Entry {
    std::shared_ptr<const Members> members;
    uint64_t sequence;  // of its communicator's collectives, from 0
    Signature call;
    State state = State::queued;
    std::chrono::steady_clock::time_point seen[3] = {};  // in each state, at the latest
  };

  FlightRecorder(int rank, int world, size_t capacity)
      : rank_(rank), world_(world), capacity_(std::max<size_t>(1, capacity)) {}

  // Its number; the oldest entry makes place.
  uint64_t add(std::shared_ptr<const Members> members, uint64_t sequence, Signature call);
  void reached(uint64_t number, State state);  // nothing happens where the entry had to go
  // {"rank", "world", "error", "collectives": [{"ranks", "lane", "instance", "sequence", "call", "name", "items",
  // "state", "queued_s", ...}]}, the last `most` of them, oldest first; seconds since the recorder was made, null where
  // not seen.
  std::string json(const std::string& error, size_t most = SIZE_MAX) const;

 private:
  int rank_, world_;
  size_t capacity_;
  uint64_t first_ = 0;  // number of the oldest entry
  std::deque<Entry> entries_;
  std::chrono::steady_clock::time_point made_ = std::chrono::steady_clock::now();
};

// What the records (json(), by rank of the world) of a communicator's ranks tell about its collective `sequence`.
struct Findings {
  std::string disagreement;          // ranks 0 and 2 disagree: "all_reduce(sum) f32[8]" and "all_gather f32[4+4]"
  std::vector<int> missing, silent;  // ranks that have not begun it; whose records are not there
};
Findings compare(const std::map<int, std::string>& records, const Members& members, uint64_t sequence);

// What a rank leaves when it ends: how many collectives of each communicator it has begun. Whether another rank waits
// in vain with the collective `sequence` of some.
std::string last_words(const std::vector<std::pair<Members, uint64_t>>& begun);
bool will_not_begin(const std::string& last_words, const Members& members, uint64_t sequence);

}  // namespace dtensor
