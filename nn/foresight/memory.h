// Who holds a rank's memory during a step: a dry run's allocations, by category and module.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "dtensor/local/block_pool.h"
#include "dtensor/local/meta_allocator.h"
#include "dtensor/rank.h"

namespace dtensor::nn {

// parameters: as stored, and their copies for computing. gradients: of parameters, from a backward pass to the update.
// optimizer: its states. activations: the batch, what a forward pass leaves for the gradients, and what is computed
// again for them. communication: what a collective fills for use in the same pass, as gathered parameters are.
// temporary: the rest, which begins and ends within one pass.
enum class MemoryKind : uint8_t { parameters, gradients, optimizer, activations, temporary, communication };
constexpr int memory_kinds = 6;
constexpr std::string_view name(MemoryKind k) {
  constexpr std::string_view names[] = {"parameters",  "gradients", "optimizer",
                                        "activations", "temporary", "communication"};
  return names[int(k)];
}

struct MemoryUse {
  int64_t peak_bytes = 0;                         // in use at once during the step
  int64_t reserved_bytes = 0;                     // of segments that a GPU's allocator has taken from the device
  std::string at;                                 // module, or else phase, that was running then
  int64_t of_kind[memory_kinds] = {};             // bytes in use then, which add up to peak_bytes
  std::map<std::string, int64_t> of_module = {};  // the same by the module that allocated them; "" is none
  std::vector<std::pair<int, int64_t>> curve;     // bytes in use after so many calls of the step, where they changed

  int64_t operator[](MemoryKind k) const { return of_kind[int(k)]; }
};

// Sees all allocations of a rank, and observes it, while it exists. What lives through a step is told apart by when it
// was allocated, so say before() what comes; of what a step allocates, the kind follows from when it is freed.
class MemoryTrace : public MemoryLog, public Observer {
 public:
  // Of a dry run. Errors: a rank that is not on meta, or has a log already.
  explicit MemoryTrace(Rank& rank);
  // Of a rank whose allocator tells what `log` points to, all on the rank's own thread.
  MemoryTrace(Rank& rank, MemoryLog*& log);
  ~MemoryTrace() override;
  MemoryTrace(const MemoryTrace&) = delete;

  // What is allocated from now on, until a step begins, is of this kind.
  void before(MemoryKind kind) { stage_ = kind, in_step_ = false; }
  void begin_step();
  // Of the step that has just ended.
  MemoryUse use() const;

  void on_allocate(uint64_t block, int64_t bytes) override;
  void on_free(uint64_t block) override;
  void on_call(const CallEvent&) override { ++calls_; }
  void on_collective(const CollectiveEvent&) override { communicates_ = true; }  // the next allocation is what it fills

 private:
  struct Block {
    int64_t bytes = 0;
    int born = 0, segment = 0;          // in events of the step, and the number of the phase
    int died = -1, death_segment = -1;  // -1: it is alive
    Phase phase = Phase::none;
    bool communication = false, remade = false, persistent = false;
    MemoryKind stage = MemoryKind::temporary;
    int module = 0;
    void* at = nullptr;  // in pool_
  };
  struct Event {
    int64_t bytes;  // more in use, or less
    int call, module;
    Phase phase;
  };
  MemoryKind kind_of(const Block& b) const;
  int module_now();
  void notice_phase();
  void* place(int64_t bytes);

  Rank& rank_;
  MemoryLog*& log_;
  MemoryKind stage_ = MemoryKind::parameters;
  bool in_step_ = false, communicates_ = false;
  int calls_ = 0, segment_ = 0;
  Phase phase_ = Phase::none;
  int64_t in_use_ = 0, at_begin_ = 0;
  std::vector<Block> blocks_;                   // those of the step, and those that were alive when it began
  std::unordered_map<uint64_t, size_t> alive_;  // by number, in blocks_
  std::vector<Event> events_;
  BlockPool pool_;  // what a GPU's allocator would do
  int64_t reserved_ = 0;
  std::vector<std::string> modules_{""};
  std::unordered_map<std::string, int> module_index_{{"", 0}};
};

}  // namespace dtensor::nn
