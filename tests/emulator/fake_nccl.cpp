#include "tests/emulator/fake_nccl.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <set>

namespace dtensor::nccl {

struct Comm {
  std::shared_ptr<testing::FakeNccl::Group> group;
  int world_rank, rank;
  uint64_t next = 0, next_split = 0;
  int polls = 0;
  bool alive = true, finalized = false;
  Result later = Result::success;
  Comm** place = nullptr;                                  // of a split under way, where the part is to be stored
  std::shared_ptr<int> graphs = std::make_shared<int>(0);  // held by all graphs with collectives of this
  std::atomic<int> inside{0};
};

}  // namespace dtensor::nccl

namespace dtensor::testing {

using namespace nccl;

struct FakeNccl::Primitive {
  std::string name;
  const void* in;
  void* out;
  size_t n;
  DataType type;
  RedOp op;
  int peer;  // or root
  Comm* comm;
  Stream stream;
};

struct FakeNccl::Group {
  struct Round {
    std::map<int, std::vector<Primitive>> of;  // by rank
    std::map<int, bool> arrived;
    bool stalls = false, done = false;
  };
  struct Split {
    std::map<int, std::pair<int, int>> asked;  // color and key, by rank
    std::map<int, Comm*> made;                 // when all have asked; none without a color
  };
  int size;
  std::map<int, Comm*> members = {};
  std::map<uint64_t, Round> rounds = {};
  std::map<uint64_t, Split> splits = {};
  int finalized = 0;
  std::set<int> aborted = {};  // ranks
};

namespace {

double get(const void* p, DataType t, size_t i) {
  switch (t) {
    case DataType::float32:
      return static_cast<const float*>(p)[i];
    case DataType::float64:
      return static_cast<const double*>(p)[i];
    case DataType::int64:
      return double(static_cast<const int64_t*>(p)[i]);
    case DataType::bfloat16: {
      uint32_t bits = uint32_t(static_cast<const uint16_t*>(p)[i]) << 16;
      float f;
      std::memcpy(&f, &bits, 4);
      return f;
    }
    case DataType::uint8:
      break;
  }
  return static_cast<const uint8_t*>(p)[i];
}

void put(void* p, DataType t, size_t i, double v) {
  switch (t) {
    case DataType::float32:
      static_cast<float*>(p)[i] = float(v);
      return;
    case DataType::float64:
      static_cast<double*>(p)[i] = v;
      return;
    case DataType::int64:
      static_cast<int64_t*>(p)[i] = int64_t(v);
      return;
    case DataType::bfloat16: {
      float f = float(v);
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      static_cast<uint16_t*>(p)[i] = uint16_t(bits >> 16);
      return;
    }
    case DataType::uint8:
      static_cast<uint8_t*>(p)[i] = uint8_t(v);
  }
}

size_t size_of(DataType t) {
  return t == DataType::uint8 ? 1 : t == DataType::bfloat16 ? 2 : t == DataType::float32 ? 4 : 8;
}

double combine(RedOp op, double a, double b) {
  switch (op) {
    case RedOp::prod:
      return a * b;
    case RedOp::max:
      return std::max(a, b);
    case RedOp::min:
      return std::min(a, b);
    default:
      return a + b;
  }
}

}  // namespace

FakeNccl::FakeNccl(int ranks) : ranks_(ranks), calls_(size_t(ranks)), groups_(size_t(ranks)) {}
FakeNccl::~FakeNccl() = default;

namespace {

bool is_pair(const std::string& name) { return name == "Send" || name == "Recv"; }

template <class P>
std::vector<P> only(const std::vector<P>& all, bool pairs) {
  std::vector<P> some;
  std::copy_if(all.begin(), all.end(), std::back_inserter(some), [&](const P& p) { return is_pair(p.name) == pairs; });
  return some;
}

// Whether all ranks mean the same. NCCL does not say so, it hangs.
template <class Round>
bool match(Round& round) {
  auto first = only(round.of.begin()->second, false);
  std::map<std::tuple<int, int>, std::vector<std::pair<size_t, DataType>>> sent, received;
  for (auto& [rank, list] : round.of) {
    auto mine = only(list, false);
    if (mine.size() != first.size()) return false;
    for (size_t i = 0; i < mine.size(); ++i)
      if (mine[i].name != first[i].name || mine[i].n != first[i].n || mine[i].type != first[i].type ||
          mine[i].op != first[i].op || mine[i].peer != first[i].peer)
        return false;
    for (auto& p : only(list, true))
      if (p.name == "Send")
        sent[{rank, p.peer}].push_back({p.n, p.type});
      else
        received[{p.peer, rank}].push_back({p.n, p.type});
  }
  return sent == received;
}

// What all ranks asked for, for all of them. Inputs are read before outputs are written: they may be the same.
template <class Round>
void exchange(Round& round) {
  auto reduced = [&](size_t i, size_t at) {
    double v = 0;
    bool first = true;
    RedOp op = RedOp::sum;
    for (auto& [rank, list] : round.of) {
      auto p = only(list, false)[i];
      double x = get(p.in, p.type, at);
      v = first ? x : combine(p.op, v, x), first = false, op = p.op;
    }
    return op == RedOp::avg ? v / double(round.of.size()) : v;
  };
  auto& any = round.of.begin()->second;
  auto collectives = only(any, false);
  for (size_t i = 0; i < collectives.size(); ++i) {
    const auto& c = collectives[i];
    size_t ranks = round.of.size(), bytes = c.n * size_of(c.type);
    if (c.name == "AllReduce" || c.name == "Reduce" || c.name == "ReduceScatter") {
      std::vector<double> result;
      for (size_t k = 0; k < c.n * (c.name == "ReduceScatter" ? ranks : 1); ++k) result.push_back(reduced(i, k));
      for (auto& [rank, list] : round.of) {
        auto p = only(list, false)[i];
        if (c.name == "Reduce" && rank != c.peer) continue;
        for (size_t k = 0; k < c.n; ++k)
          put(p.out, c.type, k, result[(c.name == "ReduceScatter" ? size_t(rank) : 0) * c.n + k]);
      }
    } else {
      for (auto& [from, given] : round.of) {
        if (c.name == "Broadcast" && from != c.peer) continue;
        const void* in = only(given, false)[i].in;
        for (auto& [to, taken] : round.of)
          std::memmove(
              static_cast<char*>(only(taken, false)[i].out) + (c.name == "AllGather" ? size_t(from) * bytes : 0), in,
              bytes);
      }
    }
  }
  for (auto& [from, list] : round.of)
    for (auto& [to, other] : round.of) {
      std::vector<const void*> sent;
      for (auto& p : only(list, true))
        if (p.name == "Send" && p.peer == to) sent.push_back(p.in);
      size_t next = 0;
      for (auto& p : only(other, true))
        if (p.name == "Recv" && p.peer == from) std::memmove(p.out, sent[next++], p.n * size_of(p.type));
    }
}

}  // namespace

FakeNccl::Effect FakeNccl::effect(int rank, const std::string& function) {
  std::unique_lock lock(mutex_);
  int n = calls_[size_t(rank)][function]++;
  auto it = script_.find({rank, function, n});
  Effect e = it == script_.end() ? Effect() : it->second;
  while (e.blocks && !released_) {
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    lock.lock();
  }
  return e;
}

void FakeNccl::release() {
  std::lock_guard lock(mutex_);
  released_ = true;
}

int FakeNccl::open() {
  std::lock_guard lock(mutex_);
  return int(std::count_if(comms_.begin(), comms_.end(), [](auto& c) { return c->alive; }));
}

std::string FakeNccl::misuse() {
  std::lock_guard lock(mutex_);
  return misuse_;
}

Comm* FakeNccl::make(int rank, std::shared_ptr<Group> group, int index) {
  comms_.push_back(std::make_unique<Comm>());
  Comm& c = *comms_.back();
  c.group = std::move(group), c.world_rank = rank, c.rank = index, c.polls = polls;
  c.group->members[index] = &c;
  return &c;
}

// What CommGetAsyncError says. A communicator is made, and let go of, by all of its ranks together.
Result FakeNccl::state(Comm& c) {
  if (c.later != Result::success) return c.later;
  if (c.polls > 0) return --c.polls, Result::in_progress;
  Group& g = *c.group;
  if (!g.aborted.empty()) return Result::remote_error;
  if (int(g.members.size()) < g.size) return Result::in_progress;
  if (c.place) {
    Group::Split& s = g.splits[c.next_split - 1];
    if (int(s.asked.size()) < g.size) return Result::in_progress;  // else nobody was aborted, and all parts are made
    std::atomic_ref(*c.place).store(s.made[c.rank], std::memory_order_release);
    c.place = nullptr;
  }
  if (c.finalized && (g.finalized < g.size || c.graphs.use_count() > 1)) return Result::in_progress;
  return Result::success;
}

void FakeNccl::leave(Comm& c, bool aborted) {
  c.alive = false;
  if (!aborted) return;
  c.group->aborted.insert(c.rank);
  if (!c.place) return;  // else a split ends here, with a part that is of no use
  Comm* part = c.group->splits[c.next_split - 1].made[c.rank];
  if (!part) part = make(c.world_rank, std::make_shared<Group>(Group{1}), 0);
  part->later = Result::internal_error;
  std::atomic_ref(*c.place).store(part, std::memory_order_release);
  c.place = nullptr;
}

Result FakeNccl::add(int rank, Primitive p) {
  Effect e = effect(rank, p.name);
  groups_[size_t(rank)].push_back(std::move(p));
  return e.result;
}

Result FakeNccl::end_group(int rank) {
  std::vector<Primitive> list = std::move(groups_[size_t(rank)]);
  groups_[size_t(rank)].clear();
  if (list.empty()) return Result::success;
  Effect e = effect(rank, "GroupEnd");
  std::unique_lock lock(mutex_);
  Comm& c = *list[0].comm;
  if (!c.alive) misuse_ += "a collective on a communicator that is gone; ";
  if (state(c) == Result::in_progress && !c.polls) misuse_ += "a collective on a communicator that is not ready; ";
  if (e.result != Result::success && e.result != Result::in_progress) return e.result;
  if (c.later == Result::success) c.later = e.later;
  c.polls = polls;
  bool busy = polls > 0;
  lock.unlock();  // the emulator has a lock of its own, which it holds when it asks
  Stream stream = list[0].stream;
  std::shared_ptr<int> of_graph = emulator::is_capturing(stream) ? c.graphs : nullptr;
  emulator::give_external(
      stream, [this, &c, of_graph, list = std::move(list), stalls = e.stalls] { return begin(c, list, stalls); });
  return busy ? Result::in_progress : Result::success;
}

// At the end of a group: an abort returns when no graph has collectives of the communicator any more, nor a launch of
// one that the device is at.
void FakeNccl::end_aborts(std::unique_lock<std::mutex>& lock) {
  using namespace std::chrono_literals;
  std::vector<Comm*> list = std::move(aborts_[std::this_thread::get_id()].list);
  aborts_.erase(std::this_thread::get_id());
  auto until = std::chrono::steady_clock::now() + 20s;
  for (Comm* c : list)
    while (c->graphs.use_count() > 1) {
      if (std::chrono::steady_clock::now() > until) {
        misuse_ += "CommAbort waits for ever for a graph to be destroyed; ";
        return;
      }
      lock.unlock();
      emulator::go_on();
      std::this_thread::sleep_for(1ms);
      lock.lock();
    }
}

// The first one to be asked when all have come does it for all. One that is aborted ends with nothing done.
emulator::External FakeNccl::begin(Comm& c, const std::vector<Primitive>& list, bool stalls) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<Group> group = c.group;
  Group::Round& round = group->rounds[c.next++];
  round.of[c.rank] = list;
  round.stalls |= stalls;
  return {[this, group, &round, me = c.rank] {
            std::lock_guard inner(mutex_);
            round.arrived[me] = true;
            if (group->aborted.count(me) || round.done) return true;
            return group->aborted.empty() && int(round.arrived.size()) == group->size && !round.stalls && match(round);
          },
          [this, group, &round, me = c.rank] {
            std::lock_guard inner(mutex_);
            if (group->aborted.count(me) || (round.done && group->size > 1)) return;
            round.done = true;
            exchange(round);
          }};
}

Result FakeNccl::split(int rank, Comm* comm, int color, int key, Comm** place) {
  Effect e = effect(rank, "CommSplit");
  if (e.result != Result::success) return e.result;
  std::lock_guard lock(mutex_);
  if (state(*comm) == Result::in_progress && !comm->polls) misuse_ += "CommSplit of a communicator that is not ready; ";
  Group& g = *comm->group;
  Group::Split& s = g.splits[comm->next_split++];
  s.asked[comm->rank] = {color, key};
  comm->polls = polls;
  comm->place = place;
  if (comm->later == Result::success) comm->later = e.later;
  if (int(s.asked.size()) < g.size || !g.aborted.empty()) return Result::in_progress;
  std::map<int, std::vector<std::pair<int, int>>> parts;  // by color, key and rank of each
  for (auto& [member, a] : s.asked)
    if (a.first != no_color) parts[a.first].push_back({a.second, member});
  for (auto& [part_color, members] : parts) {
    std::sort(members.begin(), members.end());
    auto group = std::make_shared<Group>(Group{int(members.size())});
    for (size_t i = 0; i < members.size(); ++i) {
      int member = members[i].second;
      s.made[member] = make(g.members[member]->world_rank, group, int(i));
    }
  }
  return Result::in_progress;
}

// The frame of every call on a communicator.
Result FakeNccl::called(int rank, const std::string& function, Comm* c) {
  std::unique_lock lock(mutex_);
  if (!c || !c->alive) return misuse_ += function + " of a communicator that is gone; ", Result::invalid_argument;
  if (c->inside++) misuse_ += function + " while another thread was inside; ";
  lock.unlock();
  Effect e = effect(rank, function);
  lock.lock();
  --c->inside;
  return e.result;
}

Api FakeNccl::api(int rank) {
  Api a;
  a.GetVersion = [](int* version) { return *version = 22809, Result::success; };
  a.GetUniqueId = [=, this](UniqueId* id) { return *id = UniqueId{"fake"}, effect(rank, "GetUniqueId").result; };
  a.CommInitRankConfig = [=, this](Comm** comm, int ranks, UniqueId id, int r, Config* config) {
    Effect e = effect(rank, "CommInitRankConfig");
    if (e.result != Result::success && e.result != Result::in_progress) return e.result;
    std::lock_guard lock(mutex_);
    if (std::string(id.internal) != "fake" || ranks != ranks_ || r != rank || config->blocking) misuse_ += "init; ";
    if (!world_) world_ = std::make_shared<Group>(Group{ranks});
    *comm = make(rank, world_, rank);
    (*comm)->later = e.later;
    return Result::in_progress;
  };
  a.CommSplit = [=, this](Comm* c, int color, int key, Comm** part, Config*) {
    return split(rank, c, color, key, part);
  };
  a.CommGetAsyncError = [=, this](Comm* c, Result* r) {
    Result failed = called(rank, "CommGetAsyncError", c);
    std::lock_guard lock(mutex_);
    if (failed == Result::success) *r = state(*c);
    return failed;
  };
  a.CommCount = [=, this](const Comm* c, int* n) {
    std::lock_guard lock(mutex_);
    return *n = c->group->size, Result::success;
  };
  a.CommFinalize = [=, this](Comm* c) {
    Result r = called(rank, "CommFinalize", c);
    std::lock_guard lock(mutex_);
    c->finalized = true;
    c->polls = polls;
    ++c->group->finalized;
    return r == Result::success ? Result::in_progress : r;
  };
  a.CommDestroy = [=, this](Comm* c) {
    Result r = called(rank, "CommDestroy", c);
    std::lock_guard lock(mutex_);
    if (!c->finalized) misuse_ += "CommDestroy before CommFinalize; ";
    return leave(*c, false), r;
  };
  a.CommAbort = [=, this](Comm* c) {
    Result r = called(rank, "CommAbort", c);
    std::unique_lock lock(mutex_);
    leave(*c, true);
    Aborts& mine = aborts_[std::this_thread::get_id()];
    mine.list.push_back(c);
    if (!mine.in_group) end_aborts(lock);
    return r;
  };
  a.GroupStart = [this] {
    std::lock_guard lock(mutex_);
    aborts_[std::this_thread::get_id()].in_group = true;
    return Result::success;
  };
  a.GroupEnd = [=, this] {
    std::unique_lock lock(mutex_);
    end_aborts(lock);
    lock.unlock();
    return end_group(rank);
  };
  a.AllReduce = [=, this](const void* in, void* out, size_t n, DataType t, RedOp op, Comm* c, Stream s) {
    return add(rank, {"AllReduce", in, out, n, t, op, 0, c, s});
  };
  a.AllGather = [=, this](const void* in, void* out, size_t n, DataType t, Comm* c, Stream s) {
    return add(rank, {"AllGather", in, out, n, t, RedOp::sum, 0, c, s});
  };
  a.ReduceScatter = [=, this](const void* in, void* out, size_t n, DataType t, RedOp op, Comm* c, Stream s) {
    return add(rank, {"ReduceScatter", in, out, n, t, op, 0, c, s});
  };
  a.Broadcast = [=, this](const void* in, void* out, size_t n, DataType t, int root, Comm* c, Stream s) {
    return add(rank, {"Broadcast", in, out, n, t, RedOp::sum, root, c, s});
  };
  a.Reduce = [=, this](const void* in, void* out, size_t n, DataType t, RedOp op, int root, Comm* c, Stream s) {
    return add(rank, {"Reduce", in, out, n, t, op, root, c, s});
  };
  a.Send = [=, this](const void* in, size_t n, DataType t, int peer, Comm* c, Stream s) {
    return add(rank, {"Send", in, nullptr, n, t, RedOp::sum, peer, c, s});
  };
  a.Recv = [=, this](void* out, size_t n, DataType t, int peer, Comm* c, Stream s) {
    return add(rank, {"Recv", nullptr, out, n, t, RedOp::sum, peer, c, s});
  };
  a.GetErrorString = [](Result r) {
    constexpr const char* texts[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "in progress"};
    return texts[int(r)];
  };
  a.GetLastError = [](Comm*) { return "what the fake said last\n"; };
  return a;
}

}  // namespace dtensor::testing
