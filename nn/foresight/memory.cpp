#include "nn/foresight/memory.h"

#include "dtensor/local/segments.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

MemoryLog*& log_of(Rank& rank) {
  auto* allocator = dynamic_cast<MetaAllocator*>(rank.allocator().get());
  check(allocator && !allocator->log, "[MemoryTrace] rank {} is on {}{}; it is for one log of a dry run", rank.rank(),
        dtensor::name(rank.device()), allocator ? " and has a log" : "");
  return allocator->log;
}

}  // namespace

MemoryTrace::MemoryTrace(Rank& rank) : MemoryTrace(rank, log_of(rank)) {}
MemoryTrace::MemoryTrace(Rank& rank, MemoryLog*& log) : rank_(rank), log_(log) {
  log_ = this;
  rank_.add(*this);
}
MemoryTrace::~MemoryTrace() {
  rank_.remove(*this);
  log_ = nullptr;
}

int MemoryTrace::module_now() {
  std::string_view label = rank_.label(Label::Kind::module);
  auto [it, is_new] = module_index_.emplace(std::string(label), int(modules_.size()));
  if (is_new) modules_.emplace_back(label);
  return it->second;
}

// Passes are numbered: with micro-batches there are several of each kind.
void MemoryTrace::notice_phase() {
  if (rank_.phase == phase_) return;
  phase_ = rank_.phase;
  ++segment_;
}

void MemoryTrace::begin_step() {
  std::vector<Block> alive;
  for (auto& [number, i] : alive_) {
    alive.push_back(blocks_[i]);
    alive.back().persistent = true, alive.back().born = 0;
    if (in_step_) alive.back().stage = kind_of(blocks_[i]);
    i = alive.size() - 1;
  }
  blocks_ = std::move(alive);
  events_.clear();
  in_step_ = true, communicates_ = false;
  calls_ = segment_ = 0;
  phase_ = rank_.phase;
  at_begin_ = in_use_;
}

// Addresses are made up: each segment begins where the ones before it end.
void* MemoryTrace::place(int64_t bytes) {
  int64_t size = Segments::block(bytes);
  if (void* at = pool_.take(size, Segments::is_small(size))) return at;
  int64_t segment = Segments::segment(size);
  pool_.add(reinterpret_cast<void*>(Segments::grain + reserved_), segment, Segments::is_small(size));
  reserved_ += segment;
  return pool_.take(size, Segments::is_small(size));
}

void MemoryTrace::on_allocate(uint64_t block, int64_t bytes) {
  notice_phase();
  in_use_ += bytes;
  Block b{.bytes = bytes, .born = int(events_.size()), .segment = segment_, .phase = rank_.phase, .stage = stage_};
  b.communication = std::exchange(communicates_, false);
  b.module = module_now();
  b.at = place(bytes);
  if (in_step_) {
    b.remade = rank_.label(Label::Kind::reason) == "remade for the gradient";
    events_.push_back({bytes, calls_, b.module, rank_.phase});
  }
  alive_[block] = blocks_.size();
  blocks_.push_back(b);
}

void MemoryTrace::on_free(uint64_t block) {
  notice_phase();
  auto it = alive_.find(block);
  if (it == alive_.end()) return;  // older than this trace
  Block& b = blocks_[it->second];
  in_use_ -= b.bytes;
  pool_.put(b.at);
  b.died = int(events_.size()), b.death_segment = segment_;
  if (in_step_) events_.push_back({-b.bytes, calls_, b.module, rank_.phase});
  alive_.erase(it);
}

MemoryKind MemoryTrace::kind_of(const Block& b) const {
  if (b.persistent) return b.stage;
  bool within = b.death_segment == b.segment;
  if (b.remade) return b.communication && within ? MemoryKind::communication : MemoryKind::activations;
  if (b.phase == Phase::optimizer && b.communication) return MemoryKind::gradients;
  if (within) return b.communication ? MemoryKind::communication : MemoryKind::temporary;
  if (b.phase == Phase::forward) return MemoryKind::activations;
  return b.phase == Phase::backward ? MemoryKind::gradients : MemoryKind::temporary;
}

MemoryUse MemoryTrace::use() const {
  MemoryUse use;
  int64_t now = at_begin_;
  use.peak_bytes = now, use.reserved_bytes = reserved_;
  size_t peak = 0;  // events before it
  use.curve.emplace_back(0, now);
  for (size_t i = 0; i < events_.size(); ++i) {
    now += events_[i].bytes;
    if (now > use.peak_bytes) use.peak_bytes = now, peak = i + 1;
    if (events_[i].call != use.curve.back().first) use.curve.emplace_back(events_[i].call, now);
    use.curve.back().second = std::max(use.curve.back().second, now);
  }
  if (peak > 0) {
    const Event& e = events_[peak - 1];
    use.at = e.module ? modules_[size_t(e.module)] : std::string(name(e.phase));
  }
  for (const Block& b : blocks_) {
    if (b.born >= int(peak) && !b.persistent) continue;
    if (b.died >= 0 && b.died < int(peak)) continue;
    use.of_kind[int(kind_of(b))] += b.bytes;
    use.of_module[modules_[size_t(b.module)]] += b.bytes;
  }
  return use;
}

}  // namespace dtensor::nn
