// Ranks as threads of one process. A collective is a round: each rank posts its tensors (shared ownership, not
// pointers), waits until all have, checks that all mean the same, and reads what it needs from the others' tensors.
//   all_gather, all_to_all   one copy per element received
//   shift                    one copy, of what the other gave
//   reduce_scatter           each rank adds its own piece of all contributions
//   all_reduce               small: each rank adds everything; else each adds its slice and writes it to all, two
//   meetings
// A send and its receive are a message, which the rank that comes second copies at once, so that neither waits for the
// other to wait.
// On CUDA the ranks share one device or reach each other's memory. The meeting is the host's; the device orders the
// rest by events: a rank's stream waits until the others' tensors are ready, reads them in one launch per tensor, and
// then until the others have read its own. No kernel waits for another, so any number of ranks can share a device.
#include <fmt/format.h>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "dtensor/comm/communicator.h"
#include "dtensor/comm/deadline.h"
#include "dtensor/comm/reduce_ranks.h"
#include "dtensor/cuda/local.h"

namespace dtensor {
namespace {

using Kind = CollectiveKind;

struct Call {
  Kind kind;
  std::vector<Buffers> list;
  Reduce reduce = Reduce::sum;
  int distance = 0;                                              // of a shift
  std::shared_ptr<cuda::Event> ready = nullptr, read = nullptr;  // on CUDA: `in` is written; all that is read was read

  // Null where the tensors are in host memory.
  cuda::StreamHandle stream() const { return list.empty() ? nullptr : list[0].out.allocator()->stream(); }

  // What must agree on all ranks.
  std::string describe() const {
    std::string text(collective_name(kind));
    if (kind == Kind::all_reduce || kind == Kind::reduce_scatter) text += fmt::format("({})", name(reduce));
    if (kind == Kind::shift) text += fmt::format("({})", distance);
    for (const Buffers& b : list) {
      text += fmt::format(" {}", name(b.in.dtype()));
      if (kind == Kind::all_reduce || kind == Kind::send || kind == Kind::receive)
        text += fmt::format("[{}]", b.in.numel());
      else if (kind == Kind::shift)
        text += fmt::format("[{}->{}]", b.in.numel(), b.out.numel());
      else if (kind == Kind::all_to_all)
        text += fmt::format("[{}->{}]", fmt::join(b.counts, "+"), fmt::join(b.out_counts, "+"));
      else
        text += fmt::format("[{}]", fmt::join(b.counts, "+"));
    }
    return text;
  }
};

// Which ranks of a group have come to some point.
class Arrivals {
 public:
  explicit Arrivals(size_t ranks) : here_(ranks) {}
  void add(int rank) { here_[size_t(rank)] = 1, ++count_; }
  bool all() const { return count_ == here_.size(); }
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (size_t r = 0; r < here_.size(); ++r)
      if (!here_[r]) ranks.push_back(int(r));
    return ranks;
  }

 private:
  std::vector<char> here_;
  size_t count_ = 0;
};

struct Round {
  explicit Round(size_t ranks) : calls(ranks), posted(ranks), reduced(ranks) {}
  std::vector<Call> calls;
  Arrivals posted, reduced;
  size_t done = 0;
};

// From one rank to another. It is in its lane until both have come.
struct Message {
  Call first;
  std::shared_ptr<cuda::Event> copied;  // on CUDA
  bool done = false;
};

// The failure of one rank frees all.
struct World {
  World(size_t ranks, std::chrono::milliseconds d) : deadline(d), ended(ranks) {}
  std::chrono::milliseconds deadline;
  std::mutex mutex;
  std::condition_variable changed;  // one for all groups: a failure must wake every wait
  bool failed = false, any_ended = false;
  std::string reason;
  std::vector<char> ended;  // ranks that will start nothing more
};

struct Group {
  explicit Group(std::vector<int> global) : ranks(std::move(global)), next(ranks.size()) {}
  std::vector<int> ranks;      // global
  std::vector<uint64_t> next;  // per rank, the number of its next round; touched by that rank only
  std::map<uint64_t, Round> rounds;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> lanes;  // what waits, by from and to
  std::map<RankGrid, std::shared_ptr<Group>> parts;                           // made by split
};

constexpr int64_t small = 2048;  // elements up to which one meeting is cheaper than dividing the work

class Threads : public Communicator, public std::enable_shared_from_this<Threads> {
 public:
  Threads(std::shared_ptr<World> world, std::shared_ptr<Group> group, int rank)
      : world_(std::move(world)), group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return int(group_->ranks.size()); }

  Work all_reduce(std::vector<Buffers> list, Reduce r) override {
    return start({Kind::all_reduce, std::move(list), r});
  }
  Work reduce_scatter(std::vector<Buffers> list, Reduce r) override {
    return start({Kind::reduce_scatter, std::move(list), r});
  }
  Work all_gather(std::vector<Buffers> list) override { return start({Kind::all_gather, std::move(list)}); }
  Work all_to_all(std::vector<Buffers> list) override { return start({Kind::all_to_all, std::move(list)}); }
  Work shift(std::vector<Buffers> list, int distance) override {
    return start({Kind::shift, std::move(list), Reduce::sum, distance});
  }
  void barrier() override { start({Kind::barrier, {}}).wait(); }
  Work send(std::vector<Tensor> list, int to) override { return meet(Kind::send, std::move(list), to); }
  Work receive(std::vector<Tensor> list, int from) override { return meet(Kind::receive, std::move(list), from); }

  std::shared_ptr<Communicator> split(const RankGrid& ranks) override {
    int mine = ranks.find(rank_);
    check(mine >= 0, "[split] rank {} is not among the ranks of the new communicator", rank_);
    std::vector<int> global;
    for (int r : ranks.list()) global.push_back(group_->ranks[size_t(r)]);
    std::lock_guard lock(world_->mutex);
    auto& group = group_->parts[ranks];
    if (!group) group = std::make_shared<Group>(global);
    return std::make_shared<Threads>(world_, group, mine);
  }

  void abort(const std::string& reason) override {
    {
      std::lock_guard lock(world_->mutex);
      if (!world_->failed) world_->failed = true, world_->reason = reason;
    }
    world_->changed.notify_all();
  }

  void end() override {
    {
      std::lock_guard lock(world_->mutex);
      world_->ended[size_t(global(rank_))] = world_->any_ended = true;
    }
    world_->changed.notify_all();
    std::lock_guard lock(world_->mutex);
    if (world_->failed) throw Error(world_->reason);
  }

 private:
  int global(int rank) const { return group_->ranks[size_t(rank)]; }

  // Others read this call's tensors from now on; on CUDA when their writing has ended.
  static void prepare(Call& call) {
    for (const Buffers& b : call.list)
      check(
          b.out.device() != Device::meta,
          "[{}] a meta tensor of {} elements has no bytes to move between launched ranks: materialize() it, or run on "
          "Rank::recorded",
          collective_name(call.kind), b.out.numel());
    if (cuda::StreamHandle stream = call.stream()) {
      call.ready = std::make_shared<cuda::Event>(), call.read = std::make_shared<cuda::Event>();
      call.ready->record(stream);
    }
  }

  Work start(Call call) {
    prepare(call);
    uint64_t number = group_->next[size_t(rank_)]++;
    {
      std::lock_guard lock(world_->mutex);
      Round& round = group_->rounds.try_emplace(number, group_->ranks.size()).first->second;
      round.calls[size_t(rank_)] = std::move(call);
      round.posted.add(rank_);
    }
    world_->changed.notify_all();
    return Work([self = shared_from_this(), number] { self->finish(number); });
  }

  void finish(uint64_t number) {
    std::unique_lock lock(world_->mutex);
    Round& round = group_->rounds.at(number);  // stays where it is until the last rank is done with it
    const Call& mine = round.calls[size_t(rank_)];
    wait(lock, mine, round.posted);
    lock.unlock();
    agree(round);
    cuda::StreamHandle stream = mine.stream();
    bool shared_work = stream != nullptr;
    if (stream)
      for (const Call& other : round.calls) {
        cuda::wait(stream, *other.ready);
        for (const Buffers& b : other.list) b.in_copy.wait(stream);
      }
    for (size_t i = 0; i < mine.list.size(); ++i) shared_work |= run(round, mine, i);
    if (stream) mine.read->record(stream);
    lock.lock();
    if (shared_work) {
      round.reduced.add(rank_);
      if (round.reduced.all()) world_->changed.notify_all();
      wait(lock, mine, round.reduced);
    }
    if (stream)
      for (const Call& other : round.calls) cuda::wait(stream, *other.read);
    if (!stream) drop(round.calls[size_t(rank_)], shared_work);
    if (++round.done == round.calls.size()) group_->rounds.erase(number);
  }

  // What no rank reads any more, so that one that is ahead of the others does not hold it until they have come by: the
  // outputs, and where all have met again the inputs. Where shifts disagree, messages tell the outputs' sizes.
  static void drop(Call& mine, bool all_have_read) {
    for (Buffers& b : mine.list) {
      if (mine.kind != Kind::shift) b.out = {};
      if (all_have_read) b.in = {};
    }
  }

  Work meet(Kind kind, std::vector<Tensor> list, int peer) {
    Call call{kind, {}};
    for (Tensor& t : list) call.list.push_back({t, t});
    prepare(call);
    std::shared_ptr<Message> message;
    bool second = false;
    {
      std::lock_guard lock(world_->mutex);
      if (world_->failed) throw Error(world_->reason);
      auto& lane = group_->lanes[kind == Kind::send ? std::pair(rank_, peer) : std::pair(peer, rank_)];
      second = !lane.empty() && lane.front()->first.kind != kind;
      if (second)
        message = std::move(lane.front()), lane.pop_front();
      else
        lane.push_back(message = std::make_shared<Message>(Message{call, nullptr}));
    }
    if (second) {
      agree(call, message->first, peer);
      copy(*message, call);
      {
        std::lock_guard lock(world_->mutex);
        message->done = true;
      }
      world_->changed.notify_all();
    }
    return Work([self = shared_from_this(), message, call = std::move(call), peer] {
      std::unique_lock lock(self->world_->mutex);
      self->wait(
          lock, call, [&] { return message->done; }, [&] { return std::vector{peer}; });
      if (message->copied) cuda::wait(call.stream(), *message->copied);
    });
  }

  // On the stream of the rank that came second.
  static void copy(Message& message, const Call& second) {
    const Call& first = message.first;
    const std::vector<Buffers>&from = first.kind == Kind::send ? first.list : second.list,
          &to = first.kind == Kind::send ? second.list : first.list;
    cuda::StreamHandle stream = second.stream();
    if (stream) cuda::wait(stream, *first.ready);
    for (size_t i = 0; i < to.size(); ++i) {
      const Tensor &in = from[i].in, &out = to[i].out;
      move(stream, out.bytes_data(), in.bytes_data(), in.numel() * itemsize(in.dtype()));
    }
    if (!stream) return;
    message.copied = std::make_shared<cuda::Event>();
    message.copied->record(stream);
  }

  void agree(const Call& mine, const Call& other, int peer) {
    bool same = mine.list.size() == other.list.size();
    for (size_t i = 0; same && i < mine.list.size(); ++i)
      same = mine.list[i].in.dtype() == other.list[i].in.dtype() && mine.list[i].in.numel() == other.list[i].in.numel();
    if (!same) disagree(rank_, mine, peer, other);
  }

  void wait(std::unique_lock<std::mutex>& lock, const Call& mine, const Arrivals& arrivals) {
    wait(
        lock, mine, [&] { return arrivals.all(); }, [&] { return arrivals.missing(); });
  }

  // Until `done`, or a rank of `missing` has ended.
  template <class Done, class Missing>
  void wait(std::unique_lock<std::mutex>& lock, const Call& mine, Done done, Missing missing) {
    int ended = -1;
    bool in_time = world_->changed.wait_until(lock, time_after(world_->deadline), [&] {
      if (done() || world_->failed) return true;
      if (world_->any_ended)
        for (int r : missing())
          if (ended < 0 && world_->ended[size_t(global(r))]) ended = global(r);
      return ended >= 0;
    });
    if (world_->failed) throw Error(world_->reason);
    if (in_time && ended < 0) return;
    std::vector<int> ranks;
    for (int r : missing()) ranks.push_back(global(r));
    std::string_view kind = collective_name(mine.kind);
    std::string reason =
        in_time ? fmt::format("[{}] rank {} has ended (its function returned), but rank {} waits for it in {}", kind,
                              ended, global(rank_), mine.describe())
                : fmt::format("[{}] not complete after {} s: rank {} waits for rank {} in {}", kind,
                              double(world_->deadline.count()) / 1000, global(rank_), fmt::join(ranks, ","),
                              mine.describe());
    lock.unlock();
    end_all(reason);
  }

  // The first cause is the one that all ranks report.
  [[noreturn]] void end_all(const std::string& reason) {
    abort(reason);
    std::lock_guard lock(world_->mutex);
    throw Error(world_->reason);
  }

  void agree(const Round& round) {
    const Call& mine = round.calls[size_t(rank_)];
    for (size_t r = 0; r < round.calls.size(); ++r) {
      const Call& other = round.calls[r];
      bool same = mine.kind == other.kind && mine.reduce == other.reduce && mine.distance == other.distance &&
                  mine.list.size() == other.list.size();
      for (size_t i = 0; same && i < mine.list.size(); ++i) same = agree(mine, mine.list[i], other.list[i], int(r));
      if (!same) disagree(rank_, mine, int(r), other);
    }
  }

  [[noreturn]] void disagree(int a, const Call& of_a, int b, const Call& of_b) {
    if (global(a) > global(b)) disagree(b, of_b, a, of_a);
    end_all(fmt::format("[collective] ranks {} and {} disagree: \"{}\" and \"{}\"", global(a), global(b),
                        of_a.describe(), of_b.describe()));
  }

  // The rank that gives to this one in a shift.
  int giver(int distance) const { return int(((rank_ - int64_t(distance)) % size() + size()) % size()); }

  bool agree(const Call& call, const Buffers& a, const Buffers& b, int rank) const {
    Kind kind = call.kind;
    size_t other = size_t(rank);
    if (a.in.dtype() != b.in.dtype()) return false;
    if (kind == Kind::all_reduce) return a.in.numel() == b.in.numel();
    if (kind == Kind::shift) return rank != giver(call.distance) || a.out.numel() == b.in.numel();
    if (kind == Kind::all_to_all) return a.out_counts[other] == b.counts[size_t(rank_)];
    return a.counts == b.counts;
  }

  // Of elements [at, at + n) of all ranks' tensors i.
  void reduce(const Round& round, const Call& mine, size_t i, int64_t at, int64_t n, int64_t out_at) const {
    std::vector<const Tensor*> ranks;
    for (const Call& c : round.calls) ranks.push_back(&c.list[i].in);
    reduce_ranks(ranks, at, n, mine.reduce, mine.list[i].out, out_at);
  }

  // On the host where there is no stream.
  static void move(cuda::StreamHandle stream, std::byte* out, const std::byte* from, int64_t bytes) {
    if (stream)
      cuda::copy(out, from, bytes, stream);
    else if (bytes)
      std::memcpy(out, from, size_t(bytes));
  }

  // This rank's share of item i; true where others wait for it.
  bool run(const Round& round, const Call& mine, size_t i) {
    const Buffers& b = mine.list[i];
    size_t me = size_t(rank_);
    int64_t item = itemsize(b.in.dtype());
    std::byte* out = b.out.bytes_data();
    switch (mine.kind) {
      case Kind::all_reduce: {
        int64_t n = b.in.numel();
        if (n <= small || mine.stream()) return reduce(round, mine, i, 0, n, 0), false;
        int64_t slice = (n + size() - 1) / size(), begin = std::min(n, slice * rank_), end = std::min(n, begin + slice);
        reduce(round, mine, i, begin, end - begin, begin);
        for (size_t r = 0; r < round.calls.size(); ++r)
          if (r != me)
            std::memcpy(round.calls[r].list[i].out.bytes_data() + begin * item, out + begin * item,
                        size_t((end - begin) * item));
        return true;
      }
      case Kind::reduce_scatter: {
        int64_t at = 0;
        for (size_t r = 0; r < me; ++r) at += b.counts[r];
        reduce(round, mine, i, at, b.counts[me], 0);
        return false;
      }
      case Kind::all_gather:
        for (size_t r = 0; r < round.calls.size(); ++r) {
          move(mine.stream(), out, round.calls[r].list[i].in.bytes_data(), b.counts[r] * item);
          out += b.counts[r] * item;
        }
        return false;
      case Kind::shift: {
        const Tensor& from = round.calls[size_t(giver(mine.distance))].list[i].in;
        move(mine.stream(), out, from.bytes_data(), from.numel() * item);
        return false;
      }
      case Kind::permute:
      case Kind::all_to_all:
        for (size_t r = 0; r < round.calls.size(); ++r) {
          const Buffers& from = round.calls[r].list[i];
          int64_t at = 0;
          for (size_t q = 0; q < me; ++q) at += from.counts[q];
          move(mine.stream(), out, from.in.bytes_data() + at * item, from.counts[me] * item);
          out += from.counts[me] * item;
        }
        return false;
      case Kind::send:
      case Kind::receive:
      case Kind::barrier:
        break;
    }
    return false;
  }

  std::shared_ptr<World> world_;
  std::shared_ptr<Group> group_;
  int rank_;
};

}  // namespace

std::vector<std::shared_ptr<Communicator>> make_thread_communicators(int size, std::chrono::milliseconds deadline) {
  auto world = std::make_shared<World>(size_t(size), deadline);
  auto group = std::make_shared<Group>(RankGrid::whole(size).list());
  std::vector<std::shared_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_shared<Threads>(world, group, r));
  return all;
}

}  // namespace dtensor
