// Ranks as threads of one process. A collective is a round: each rank posts its tensors (shared ownership, not
// pointers), waits until all have, checks that all mean the same, and reads what it needs from the others' tensors.
//   all_gather, all_to_all   one copy per element received
//   reduce_scatter           each rank adds its own piece of all contributions
//   all_reduce               small: each rank adds everything; else each adds its slice and writes it to all, two
//   meetings
// On CUDA the ranks share one device or reach each other's memory. The meeting is the host's; the device orders the
// rest by events: a rank's stream waits until the others' tensors are ready, reads them in one launch per tensor, and
// then until the others have read its own. No kernel waits for another, so any number of ranks can share a device.
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "dtensor/comm/communicator.h"
#include "dtensor/cuda/local.h"

namespace dtensor {
namespace {

enum class Kind { all_reduce, reduce_scatter, all_gather, all_to_all, barrier };
constexpr const char* kind_names[] = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "barrier"};

struct Call {
  Kind kind;
  Reduce reduce = Reduce::sum;
  std::vector<Buffers> list;
  std::shared_ptr<cuda::Event> ready = nullptr, read = nullptr;  // on CUDA: `in` is written; all that is read was read

  // Null where the tensors are in host memory.
  cuda::StreamHandle stream() const { return list.empty() ? nullptr : list[0].out.allocator()->stream(); }

  // What must agree on all ranks.
  std::string describe() const {
    std::string text = kind_names[int(kind)];
    if (kind == Kind::all_reduce || kind == Kind::reduce_scatter) text += fmt::format("({})", name(reduce));
    for (const Buffers& b : list) {
      text += fmt::format(" {}", name(b.in.dtype()));
      if (kind == Kind::all_reduce)
        text += fmt::format("[{}]", b.in.numel());
      else if (kind == Kind::all_to_all)
        text += fmt::format("[{}->{}]", fmt::join(b.counts, "+"), fmt::join(b.out_counts, "+"));
      else
        text += fmt::format("[{}]", fmt::join(b.counts, "+"));
    }
    return text;
  }
};

struct Round {
  std::vector<Call> calls;
  std::vector<char> here;  // which ranks have posted
  int posted = 0, reduced = 0, done = 0;
};

// The failure of one rank frees all.
struct World {
  explicit World(std::chrono::milliseconds d) : deadline(d) {}
  std::chrono::milliseconds deadline;
  std::mutex mutex;
  std::condition_variable changed;  // one for all groups: a failure must wake every wait
  bool failed = false;
  std::string reason;
  std::map<std::vector<int>, std::shared_ptr<struct Group>> groups;  // by global ranks
};

struct Group {
  explicit Group(std::vector<int> global) : ranks(std::move(global)), next(ranks.size()) {}
  std::vector<int> ranks;      // global
  std::vector<uint64_t> next;  // per rank, the number of its next round; touched by that rank only
  std::map<uint64_t, Round> rounds;
};

// NaN wins, as in a sum. Integers wrap around, as unsigned ones do by definition.
template <class T>
T combine(Reduce r, T a, T b) {
  using Wrapping = std::conditional_t<std::is_same_v<T, int64_t>, uint64_t, T>;
  switch (r) {
    case Reduce::product:
      return T(Wrapping(a) * Wrapping(b));
    case Reduce::min:
      return b < a || b != b ? b : a;
    case Reduce::max:
      return a < b || b != b ? b : a;
    default:
      return T(Wrapping(a) + Wrapping(b));
  }
}

// out[0..n) = the reduction of in[first..first+ranks)[at..at+n), as a balanced tree.
template <class T>
void tree(const std::vector<const T*>& in, size_t first, size_t ranks, int64_t at, int64_t n, Reduce r, T* out) {
  constexpr int64_t block = 512;
  if (ranks == 1) {
    std::copy_n(in[first] + at, n, out);
    return;
  }
  size_t half = ranks / 2;
  for (int64_t i = 0; i < n; i += block) {
    int64_t m = std::min(block, n - i);
    T left[block], right[block];
    const T *a = in[first] + at + i, *b = in[first + half] + at + i;
    if (half > 1) tree(in, first, half, at + i, m, r, left), a = left;
    if (ranks - half > 1) tree(in, first + half, ranks - half, at + i, m, r, right), b = right;
    for (int64_t k = 0; k < m; ++k) out[i + k] = combine(r, a[k], b[k]);
  }
}

template <class T>
void reduce_into(const std::vector<const std::byte*>& in, int64_t at, int64_t n, Reduce r, std::byte* out) {
  std::vector<const T*> typed;
  for (const std::byte* p : in) typed.push_back(reinterpret_cast<const T*>(p));
  T* result = reinterpret_cast<T*>(out);
  tree(typed, 0, typed.size(), at, n, r, result);
  if (r == Reduce::avg)
    for (int64_t i = 0; i < n; ++i) result[i] = T(result[i] / T(in.size()));
}

// The same on CUDA, of `contributions` in all: a launch takes a few tensors, so the halves of more are reduced first.
void reduce_tensors(const Tensor& like, std::span<const void* const> in, int64_t n, Reduce r, int64_t contributions,
                    void* out) {
  cuda::StreamHandle stream = like.allocator()->stream();
  if (in.size() <= size_t(cuda::max_reduced))
    return cuda::reduce_tree(stream, like.dtype(), r, int(in.size()), in.data(), n, out, contributions);
  Reduce part = r == Reduce::avg ? Reduce::sum : r;
  Tensor left(like.allocator(), like.dtype(), {n}), right(like.allocator(), like.dtype(), {n});
  reduce_tensors(like, in.first(in.size() / 2), n, part, contributions, left.bytes_data());
  reduce_tensors(like, in.subspan(in.size() / 2), n, part, contributions, right.bytes_data());
  const void* halves[] = {left.bytes_data(), right.bytes_data()};
  cuda::reduce_tree(stream, like.dtype(), r, 2, halves, n, out, contributions);
}

// out[0..n) = the reduction over all ranks of element [at..at+n) of their `in`.
void reduce(const std::vector<Call>& calls, size_t item, int64_t at, int64_t n, Reduce r, std::byte* out) {
  std::vector<const std::byte*> in;
  for (const Call& c : calls) in.push_back(c.list[item].in.bytes_data());
  switch (calls[0].list[item].in.dtype()) {
    case DType::f32:
      return reduce_into<float>(in, at, n, r, out);
    case DType::f64:
      return reduce_into<double>(in, at, n, r, out);
    case DType::i64:
      return reduce_into<int64_t>(in, at, n, r, out);
    case DType::boolean:
      return reduce_into<uint8_t>(in, at, n, r == Reduce::sum ? Reduce::max : r, out);
    case DType::bf16:
      break;
  }
  fail("[{}] bf16 is not supported on the CPU", kind_names[int(calls[0].kind)]);
}

constexpr int64_t small = 2048;  // elements up to which one meeting is cheaper than dividing the work

class Threads : public Communicator {
 public:
  Threads(std::shared_ptr<World> world, std::shared_ptr<Group> group, int rank)
      : world_(std::move(world)), group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return int(group_->ranks.size()); }

  Work all_reduce(std::vector<Buffers> list, Reduce r) override {
    return start({Kind::all_reduce, r, std::move(list)});
  }
  Work reduce_scatter(std::vector<Buffers> list, Reduce r) override {
    return start({Kind::reduce_scatter, r, std::move(list)});
  }
  Work all_gather(std::vector<Buffers> list) override {
    return start({Kind::all_gather, Reduce::sum, std::move(list)});
  }
  Work all_to_all(std::vector<Buffers> list) override {
    return start({Kind::all_to_all, Reduce::sum, std::move(list)});
  }
  void barrier() override { start({Kind::barrier, Reduce::sum, {}}).wait(); }

  std::shared_ptr<Communicator> split(const std::vector<int>& ranks) override {
    std::vector<int> global;
    int mine = -1;
    for (size_t i = 0; i < ranks.size(); ++i) {
      global.push_back(group_->ranks[size_t(ranks[i])]);
      if (ranks[i] == rank_) mine = int(i);
    }
    check(mine >= 0, "[split] rank {} is not among the ranks of the new communicator", rank_);
    std::lock_guard lock(world_->mutex);
    auto& group = world_->groups[global];
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

 private:
  Work start(Call call) {
    for (const Buffers& b : call.list)
      check(
          b.out.device() != Device::meta,
          "[{}] a meta tensor of {} elements has no bytes to move between launched ranks: materialize() it, or run on "
          "Rank::recorded",
          kind_names[int(call.kind)], b.out.numel());
    if (cuda::StreamHandle stream = call.stream()) {
      call.ready = std::make_shared<cuda::Event>(), call.read = std::make_shared<cuda::Event>();
      call.ready->record(stream);
    }
    uint64_t number = group_->next[size_t(rank_)]++;
    {
      std::lock_guard lock(world_->mutex);
      Round& round = group_->rounds[number];
      round.calls.resize(group_->ranks.size());
      round.here.resize(group_->ranks.size());
      round.calls[size_t(rank_)] = std::move(call);
      round.here[size_t(rank_)] = 1;
      ++round.posted;
    }
    world_->changed.notify_all();
    return Work([this, number] { finish(number); });
  }

  void finish(uint64_t number) {
    std::unique_lock lock(world_->mutex);
    Round& round = group_->rounds[number];  // stays where it is until the last rank is done with it
    wait(lock, round, round.posted);
    lock.unlock();
    agree(round);
    const Call& mine = round.calls[size_t(rank_)];
    cuda::StreamHandle stream = mine.stream();
    bool shared_work = stream != nullptr;
    if (stream)
      for (const Call& other : round.calls) cuda::wait(stream, *other.ready);
    for (size_t i = 0; i < mine.list.size(); ++i) shared_work |= run(round, mine, i);
    if (stream) mine.read->record(stream);
    lock.lock();
    if (shared_work) {
      if (++round.reduced == size()) world_->changed.notify_all();
      wait(lock, round, round.reduced);
    }
    if (stream)
      for (const Call& other : round.calls) cuda::wait(stream, *other.read);
    if (++round.done == size()) group_->rounds.erase(number);
  }

  void wait(std::unique_lock<std::mutex>& lock, const Round& round, const int& count) {
    bool in_time = world_->changed.wait_for(lock, world_->deadline, [&] { return count == size() || world_->failed; });
    if (world_->failed) throw Error(world_->reason);
    if (in_time) return;
    std::string missing;
    for (size_t r = 0; r < round.here.size(); ++r)
      if (!round.here[r]) missing += fmt::format("{}{}", missing.empty() ? "" : ",", group_->ranks[r]);
    std::string reason = fmt::format(
        "[{}] not complete after {} s: rank {} waits for {} in {}", kind_names[int(round.calls[size_t(rank_)].kind)],
        double(world_->deadline.count()) / 1000, group_->ranks[size_t(rank_)],
        missing.empty() ? "the others" : "rank " + missing, round.calls[size_t(rank_)].describe());
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
      bool same = mine.kind == other.kind && mine.reduce == other.reduce && mine.list.size() == other.list.size();
      for (size_t i = 0; same && i < mine.list.size(); ++i) same = agree(mine.kind, mine.list[i], other.list[i], r);
      if (same) continue;
      size_t low = std::min(r, size_t(rank_)), high = std::max(r, size_t(rank_));
      std::string reason = fmt::format("[collective] ranks {} and {} disagree: \"{}\" and \"{}\"", group_->ranks[low],
                                       group_->ranks[high], round.calls[low].describe(), round.calls[high].describe());
      end_all(reason);
    }
  }

  bool agree(Kind kind, const Buffers& a, const Buffers& b, size_t other) const {
    if (a.in.dtype() != b.in.dtype()) return false;
    if (kind == Kind::all_reduce) return a.in.numel() == b.in.numel();
    if (kind == Kind::all_to_all) return a.out_counts[other] == b.counts[size_t(rank_)];
    return a.counts == b.counts;
  }

  // out = the reduction over all ranks of elements [at..at+n) of their tensor i.
  static void reduce_on_device(const Round& round, size_t i, int64_t at, int64_t n, Reduce r, const Tensor& out) {
    std::vector<const void*> in;
    for (const Call& c : round.calls) in.push_back(c.list[i].in.bytes_data() + at * itemsize(out.dtype()));
    reduce_tensors(out, in, n, r, int64_t(in.size()), out.bytes_data());
  }

  // Into the tensor `to`, at `out`.
  static void move(const Tensor& to, std::byte* out, const std::byte* from, int64_t bytes) {
    if (to.device() == Device::cuda)
      cuda::copy(out, from, bytes, to.allocator()->stream());
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
        if (b.in.device() == Device::cuda) return reduce_on_device(round, i, 0, n, mine.reduce, b.out), false;
        if (n <= small) return reduce(round.calls, i, 0, n, mine.reduce, out), false;
        int64_t slice = (n + size() - 1) / size(), begin = std::min(n, slice * rank_), end = std::min(n, begin + slice);
        reduce(round.calls, i, begin, end - begin, mine.reduce, out + begin * item);
        for (size_t r = 0; r < round.calls.size(); ++r)
          if (r != me)
            std::memcpy(round.calls[r].list[i].out.bytes_data() + begin * item, out + begin * item,
                        size_t((end - begin) * item));
        return true;
      }
      case Kind::reduce_scatter: {
        int64_t at = 0;
        for (size_t r = 0; r < me; ++r) at += b.counts[r];
        if (b.in.device() == Device::cuda)
          reduce_on_device(round, i, at, b.counts[me], mine.reduce, b.out);
        else
          reduce(round.calls, i, at, b.counts[me], mine.reduce, out);
        return false;
      }
      case Kind::all_gather:
        for (size_t r = 0; r < round.calls.size(); ++r) {
          move(b.out, out, round.calls[r].list[i].in.bytes_data(), b.counts[r] * item);
          out += b.counts[r] * item;
        }
        return false;
      case Kind::all_to_all:
        for (size_t r = 0; r < round.calls.size(); ++r) {
          const Buffers& from = round.calls[r].list[i];
          int64_t at = 0;
          for (size_t q = 0; q < me; ++q) at += from.counts[q];
          move(b.out, out, from.in.bytes_data() + at * item, from.counts[me] * item);
          out += from.counts[me] * item;
        }
        return false;
      case Kind::barrier:
        return false;
    }
    return false;
  }

  std::shared_ptr<World> world_;
  std::shared_ptr<Group> group_;
  int rank_;
};

}  // namespace

std::vector<std::shared_ptr<Communicator>> make_thread_communicators(int size, std::chrono::milliseconds deadline) {
  auto world = std::make_shared<World>(deadline);
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  auto group = world->groups[ranks] = std::make_shared<Group>(ranks);
  std::vector<std::shared_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_shared<Threads>(world, group, r));
  return all;
}

}  // namespace dtensor
