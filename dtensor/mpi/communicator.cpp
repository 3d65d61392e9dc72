#include "dtensor/mpi/communicator.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <numeric>

#include "dtensor/comm/deadline.h"
#include "dtensor/comm/flight_recorder.h"
#include "dtensor/comm/reduce_ranks.h"

namespace dtensor::mpi {
namespace {

using Clock = std::chrono::steady_clock;

// Bytes for or from a rank.
struct Piece {
  int peer;  // in the group
  std::byte* at;
  int64_t bytes;
};

// What is exchanged before `then` can be done.
struct Stage {
  std::vector<Piece> give, take;
  std::function<void()> then = [] {};
};

// What a rank means by a collective, for another one: the same bytes where both mean the same.
struct Header {
  uint64_t call = 0, gives = 0, takes = 0;  // hashes: of what all must say alike; of the bytes for the other, from it
  char text[232] = {};                      // for people, cut off where it is longer
};

uint64_t hash(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325;  // FNV-1a
  for (char c : text) h = (h ^ uint8_t(c)) * 0x100000001b3;
  return h;
}

// Of the pieces for one rank.
uint64_t hash(const std::vector<Piece>& pieces, int peer) {
  std::string bytes;
  for (const Piece& p : pieces)
    if (p.peer == peer) bytes += std::to_string(p.bytes) + ' ';
  return hash(bytes);
}

// Collectives, and the messages of lanes, which are apart from them and from each other.
enum class Lane : uint8_t { none, up, down };  // to a higher rank, to a lower one

// Tags are numbers of a communicator, lane, operation and whether it is a header. Numbers of operations come again, but
// not while one is under way: there are at least 2^6, and 2^19 with Open MPI.
constexpr int groups = 1 << 9;

// A collective, or one side of a message, from its start to its end.
struct Operation {
  std::vector<int> ranks;  // of the group, in the world
  int me = 0;
  std::vector<int> others;    // in the group, with whom this is done
  int tag = 0;                // of headers; of data the next
  std::string kind, call;     // "all_reduce", "all_reduce(sum) f32[8] in model.norm"
  std::vector<Buffers> list;  // lives until all is done
  std::deque<Stage> stages;

  std::vector<Header> given, taken;  // by `others`
  std::vector<MPI_Request> headers_given, headers_taken, data;
  std::vector<int> data_peers;  // of `data`, in the group
  size_t checked = 0;           // headers that have come
  std::string error;            // of MPI, with data
  bool done = false;
};

class Pause {
 public:
  void operator()() {
    if (++times_ < 1000)
      sched_yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  bool is_long() const { return times_ >= 1000; }

 private:
  int times_ = 0;
};

// What all communicators of this process share.
class World {
 public:
  World(MPI_Comm world, std::shared_ptr<Watch> w, Options o) : watch(std::move(w)), options(std::move(o)) {
    MPI_Comm_dup(world, &data_);
    MPI_Comm_dup(world, &control_);
    for (MPI_Comm c : {data_, control_}) MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN);
    MPI_Comm_rank(world, &rank);
    MPI_Comm_size(world, &size);
    void* bound = nullptr;
    int found = 0;
    MPI_Comm_get_attr(world, MPI_TAG_UB, &bound, &found);
    sequences = ((found ? *static_cast<int*>(bound) : 32767) + int64_t(1)) / (groups * 8);
    ended_.resize(size_t(size));
    for (int r = 0; r < size; ++r)
      if (r != rank) MPI_Irecv(nullptr, 0, MPI_BYTE, r, 0, control_, &end_requests_.emplace_back());
  }

  void start(const std::shared_ptr<Operation>& op) {
    throw_if_failed(op->call);
    size_t n = op->others.size();
    op->given.resize(n), op->taken.resize(n);
    for (size_t i = 0; i < n; ++i) {
      int peer = op->ranks[size_t(op->others[i])];
      fill(*op, op->given[i], op->others[i]);
      receive(&op->taken[i], sizeof(Header), peer, op->tag, op->headers_taken.emplace_back());
      send(&op->given[i], sizeof(Header), peer, op->tag, op->headers_given.emplace_back());
    }
    begin_stage(*op);
    operations_.push_back(op);
    watch->set_doing(op->call);
    progress();
  }

  void wait(Operation& op) {
    Clock::time_point until = time_after(options.deadline);
    for (Pause pause; !op.done; pause()) {
      throw_if_failed(op.call);
      progress();
      if (op.done) break;
      if (pause.is_long()) look_for_ended(op);
      if (Clock::now() > until) fail_late(op);
    }
  }

  void end() {
    while (!operations_.empty()) wait(*std::shared_ptr<Operation>(operations_.front()));
    throw_if_failed("the end");
    watch->set_doing("the end");
    for (int r = 0; r < size; ++r)
      if (r != rank) MPI_Isend(nullptr, 0, MPI_BYTE, r, 0, control_, &goodbyes_.emplace_back());
    Clock::time_point until = time_after(options.deadline);
    for (Pause pause; receive_ended() + 1 < size || !all_sent(goodbyes_); pause()) {
      throw_if_failed("the end");
      if (Clock::now() <= until) continue;
      std::vector<int> missing;
      for (int r = 0; r < size; ++r)
        if (r != rank && !ended_[size_t(r)]) missing.push_back(r);
      fail(fmt::format("[end] not complete after {} s: {} has ended, but {} has not{}", seconds(), watch->name(rank),
                       watch->name(missing), watch->ask(missing)));
    }
  }

  void throw_if_failed(const std::string& call) const {
    if (!watch->failed()) return;
    std::string text = watch->failure();
    if (text.find(watch->name(rank)) == text.npos) text += fmt::format("; {} was in {}", watch->name(rank), call);
    throw Error(text);
  }
  [[noreturn]] void fail(const std::string& text) const {
    watch->fail(text);
    throw Error(watch->failure());
  }

  int rank = 0, size = 1;
  int64_t sequences = 1;  // numbers of operations
  int next_group = 1;     // 0 is the world
  std::shared_ptr<Watch> watch;
  Options options;

 private:
  double seconds() const { return double(options.deadline.count()) / 1000; }

  void send(const void* at, int64_t bytes, int peer, int tag, MPI_Request& request) {
    MPI_Isend(at, int(bytes), MPI_BYTE, peer, tag, data_, &request);
  }
  void receive(void* at, int64_t bytes, int peer, int tag, MPI_Request& request) {
    MPI_Irecv(at, int(bytes), MPI_BYTE, peer, tag, data_, &request);
  }

  // A header for a rank of the group.
  static void fill(const Operation& op, Header& h, int peer) {
    const Stage& first = op.stages.front();
    h.call = hash(common(op));
    h.gives = hash(first.give, peer), h.takes = hash(first.take, peer);
    std::snprintf(h.text, sizeof h.text, "%s", op.call.c_str());
  }
  // What all ranks say alike; what is special to a pair of them is in the bytes that they exchange.
  static std::string common(const Operation& op) {
    std::string text = op.call.substr(0, op.call.find(' '));
    if (op.kind == "send" || op.kind == "receive") text = "message";
    for (const Buffers& b : op.list) {
      text += fmt::format(" {}", dtensor::name(b.in.dtype()));
      if (op.kind == "all_reduce") text += fmt::format("{}", b.in.numel());
      if (op.kind == "all_gather" || op.kind == "reduce_scatter") text += fmt::format("{}", fmt::join(b.counts, "+"));
    }
    return text;
  }

  // In parts, where MPI's counts end.
  void begin_stage(Operation& op) {
    auto parts = [&](const Piece& p, auto transfer) {
      for (int64_t at = 0; at < p.bytes; at += options.largest_message) {
        op.data_peers.push_back(p.peer);
        transfer(p.at + at, std::min(options.largest_message, p.bytes - at), op.ranks[size_t(p.peer)], op.tag + 1,
                 op.data.emplace_back());
      }
    };
    op.data.clear(), op.data_peers.clear();
    const Stage& stage = op.stages.front();
    for (const Piece& p : stage.take) parts(p, [this](auto&&... args) { receive(args...); });
    for (const Piece& p : stage.give) parts(p, [this](auto&&... args) { send(args...); });
  }

  static bool all_sent(std::vector<MPI_Request>& requests) {
    int all = 0;
    MPI_Testall(int(requests.size()), requests.data(), &all, MPI_STATUSES_IGNORE);
    return all;
  }

  // Brings everything on as far as it goes now.
  void progress() {
    std::vector<std::shared_ptr<Operation>> now(operations_.begin(), operations_.end());
    for (const auto& op : now) {
      advance(*op);
      if (op->done) operations_.remove(op);
    }
  }

  void advance(Operation& op) {
    check_headers(op);
    if (op.error.empty()) advance_data(op);
    if (op.checked < op.others.size()) return;
    if (!op.error.empty())
      fail(fmt::format("[{}] MPI fails on {} in {}: {}", op.kind, watch->name(rank), op.call, op.error));
    op.done = op.stages.empty() && all_sent(op.headers_given);
  }

  // All stages whose data is there. What the ranks mean is known before anything is made of the data.
  void advance_data(Operation& op) {
    while (!op.stages.empty()) {
      int all = 0, code = MPI_SUCCESS;
      std::vector<MPI_Status> statuses(op.data.size());
      code = MPI_Testall(int(op.data.size()), op.data.data(), &all, statuses.data());
      if (code == MPI_ERR_IN_STATUS)
        for (const MPI_Status& s : statuses)
          if (s.MPI_ERROR != MPI_SUCCESS && s.MPI_ERROR != MPI_ERR_PENDING) code = s.MPI_ERROR;
      if (code != MPI_SUCCESS) {
        char text[MPI_MAX_ERROR_STRING];
        int length = 0;
        MPI_Error_string(code, text, &length);
        op.error = {text, size_t(length)};
        return;
      }
      if (!all || op.checked < op.others.size()) return;
      op.stages.front().then();
      op.stages.pop_front();
      if (!op.stages.empty()) begin_stage(op);
    }
  }

  void check_headers(Operation& op) {
    for (size_t i = 0; op.checked < op.others.size() && i < op.others.size(); ++i) {
      if (op.headers_taken[i] == MPI_REQUEST_NULL) continue;
      int here = 0;
      MPI_Test(&op.headers_taken[i], &here, MPI_STATUS_IGNORE);
      if (!here) continue;
      ++op.checked;
      const Header &a = op.given[i], &b = op.taken[i];
      if (a.call != b.call || a.gives != b.takes || a.takes != b.gives) fail_disagreement(op, op.others[i], b);
    }
  }

  [[noreturn]] void fail_disagreement(const Operation& op, int peer, const Header& theirs) {
    int mine = rank, other = op.ranks[size_t(peer)];
    std::string a = op.call, b = theirs.text;
    if (mine > other) std::swap(mine, other), std::swap(a, b);
    fail(
        fmt::format("[collective] {} and {} disagree: \"{}\" and \"{}\"", watch->name(mine), watch->name(other), a, b));
  }

  // In the world: those whose header has not come, or else those whose data has not.
  std::vector<int> missing(const Operation& op) const {
    std::vector<int> ranks;
    for (size_t i = 0; i < op.others.size(); ++i)
      if (op.headers_taken[i] != MPI_REQUEST_NULL) ranks.push_back(op.ranks[size_t(op.others[i])]);
    if (ranks.empty())
      for (size_t i = 0; i < op.data.size(); ++i)
        if (op.data[i] != MPI_REQUEST_NULL) ranks.push_back(op.ranks[size_t(op.data_peers[i])]);
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    return ranks;
  }

  [[noreturn]] void fail_late(const Operation& op) {
    std::vector<int> ranks = missing(op);
    fail(fmt::format("[{}] not complete after {} s: {} waits for {} in {}{}", op.kind, seconds(), watch->name(rank),
                     ranks.empty() ? "MPI" : watch->name(ranks), op.call, watch->ask(ranks)));
  }

  int receive_ended() {
    std::vector<int> found(end_requests_.size());
    int n = 0;
    MPI_Testsome(int(end_requests_.size()), end_requests_.data(), &n, found.data(), MPI_STATUSES_IGNORE);
    for (int i = 0; i < n; ++i) ended_[size_t(found[size_t(i)] + (found[size_t(i)] >= rank))] = true, ++have_ended_;
    return have_ended_;
  }

  // A rank that has ended had begun all that it was to begin, and its messages come before its goodbye.
  void look_for_ended(Operation& op) {
    if (receive_ended() == 0) return;
    progress();
    for (size_t i = 0; i < op.others.size(); ++i)
      if (int r = op.ranks[size_t(op.others[i])]; ended_[size_t(r)] && op.headers_taken[i] != MPI_REQUEST_NULL)
        fail(fmt::format("[{}] {} has ended (its function returned), but {} waits for it in {}", op.kind,
                         watch->name(r), watch->name(rank), op.call));
  }

  MPI_Comm data_ = MPI_COMM_NULL, control_ = MPI_COMM_NULL;
  std::list<std::shared_ptr<Operation>> operations_;  // begun and not done, in order
  std::vector<char> ended_;                           // by rank
  std::vector<MPI_Request> end_requests_, goodbyes_;  // of all ranks but this one, in order
  int have_ended_ = 0;
};

constexpr int64_t small = 2048;  // elements up to which an all_reduce takes one stage

class Mpi : public Communicator {
 public:
  Mpi(std::shared_ptr<World> world, std::vector<int> ranks, int rank, int group)
      : world_(std::move(world)), ranks_(std::move(ranks)), rank_(rank), group_(group) {}

  int rank() const override { return rank_; }
  int size() const override { return int(ranks_.size()); }

  Work all_reduce(std::vector<Buffers> list, Reduce reduce) override {
    check_on_host("all_reduce", list);
    std::deque<Stage> stages(1);
    for (const Buffers& b : list) {
      int64_t n = b.in.numel(), item = itemsize(b.in.dtype());
      if (n > small && stages.size() == 1) stages.emplace_back();
      int64_t slice = n > small ? (n + size() - 1) / size() : n;
      auto begin = [=](int r) { return n > small ? std::min(n, slice * r) : 0; };
      auto length = [=](int r) { return std::min(n - begin(r), slice); };
      for (int r : others()) stages[0].give.push_back({r, b.in.bytes_data() + begin(r) * item, length(r) * item});
      add_reduction(stages[0], b, reduce, begin(rank_), length(rank_), begin(rank_));
      if (n <= small) continue;
      std::byte* out = b.out.bytes_data();
      for (int r : others()) {
        stages[1].give.push_back({r, out + begin(rank_) * item, length(rank_) * item});
        stages[1].take.push_back({r, out + begin(r) * item, length(r) * item});
      }
    }
    std::vector<Signature::Item> items;
    for (const Buffers& b : list) items.push_back({b.in.dtype(), {b.in.numel()}});
    return start({fmt::format("all_reduce({})", name(reduce)), items}, std::move(list), std::move(stages));
  }

  Work reduce_scatter(std::vector<Buffers> list, Reduce reduce) override {
    check_on_host("reduce_scatter", list);
    std::deque<Stage> stages(1);
    for (const Buffers& b : list) {
      int64_t item = itemsize(b.in.dtype());
      auto begin = [&](int r) { return std::accumulate(b.counts.begin(), b.counts.begin() + r, int64_t(0)); };
      for (int r : others())
        stages[0].give.push_back({r, b.in.bytes_data() + begin(r) * item, b.counts[size_t(r)] * item});
      add_reduction(stages[0], b, reduce, begin(rank_), b.counts[size_t(rank_)], 0);
    }
    Signature call = signature(fmt::format("reduce_scatter({})", name(reduce)), list);
    return start(call, std::move(list), std::move(stages));
  }

  Work all_gather(std::vector<Buffers> list) override {
    check_on_host("all_gather", list);
    std::deque<Stage> stages(1);
    for (const Buffers& b : list) {
      int64_t item = itemsize(b.in.dtype()), mine = b.counts[size_t(rank_)] * item;
      std::byte* out = b.out.bytes_data();
      for (int r = 0; r < size(); out += b.counts[size_t(r++)] * item) {
        if (r == rank_) {
          copy(out, b.in.bytes_data(), mine);
          continue;
        }
        stages[0].give.push_back({r, b.in.bytes_data(), mine});
        stages[0].take.push_back({r, out, b.counts[size_t(r)] * item});
      }
    }
    Signature call = signature("all_gather", list);
    return start(call, std::move(list), std::move(stages));
  }

  Work all_to_all(std::vector<Buffers> list) override {
    check_on_host("all_to_all", list);
    std::deque<Stage> stages(1);
    for (const Buffers& b : list) {
      int64_t item = itemsize(b.in.dtype());
      std::byte *in = b.in.bytes_data(), *out = b.out.bytes_data();
      for (int r = 0; r < size(); ++r) {
        int64_t given = b.counts[size_t(r)] * item, taken = b.out_counts[size_t(r)] * item;
        if (r == rank_) {
          copy(out, in, std::min(given, taken));
        } else {
          stages[0].give.push_back({r, in, given});
          stages[0].take.push_back({r, out, taken});
        }
        in += given, out += taken;
      }
    }
    Signature call = signature("all_to_all", list);
    return start(call, std::move(list), std::move(stages));
  }

  Work shift(std::vector<Buffers> list, int distance) override {
    check_on_host("shift", list);
    int n = size(), way = int((int64_t(distance) % n + n) % n), to = (rank_ + way) % n, from = (rank_ + n - way) % n;
    std::deque<Stage> stages(1);
    Signature call{fmt::format("shift({})", distance), {}};
    for (const Buffers& b : list) {
      int64_t given = b.in.numel() * itemsize(b.in.dtype()), taken = b.out.numel() * itemsize(b.in.dtype());
      call.list.push_back({b.in.dtype(), {b.in.numel()}, {b.out.numel()}});
      if (way == 0) {
        copy(b.out.bytes_data(), b.in.bytes_data(), taken);
      } else {
        stages[0].give.push_back({to, b.in.bytes_data(), given});
        stages[0].take.push_back({from, b.out.bytes_data(), taken});
      }
    }
    return start(call, std::move(list), std::move(stages));
  }

  void barrier() override { start({"barrier", {}}, {}, std::deque<Stage>(1)).wait(); }

  Work send(std::vector<Tensor> list, int to) override { return pass("send", list, to); }
  Work receive(std::vector<Tensor> list, int from) override { return pass("receive", list, from); }

  // Ranks of different groups that have some in common must have other tags, so all agree on the number of the next.
  std::shared_ptr<Communicator> split(const RankGrid& ranks) override {
    int mine = ranks.find(rank_);
    check(mine >= 0, "[split] rank {} is not among the ranks of the new communicator", rank_);
    Tensor next = Tensor::of<int64_t>({1}, {world_->next_group}), most = next.clone();
    all_reduce({{next, most}}, Reduce::max).wait();
    int group = int(most.data<int64_t>()[0]);
    check(group < groups,
          "[split] {} communicators are all that there are tags for: make meshes once, not in each step", groups - 1);
    world_->next_group = group + 1;
    std::vector<int> global;
    for (int r : ranks.list()) global.push_back(ranks_[size_t(r)]);
    return std::make_shared<Mpi>(world_, global, mine, group);
  }

  void abort(const std::string& reason) override { world_->watch->fail(reason); }
  void end() override { world_->end(); }

 private:
  std::vector<int> others() const {
    std::vector<int> ranks;
    for (int r = 0; r < size(); ++r)
      if (r != rank_) ranks.push_back(r);
    return ranks;
  }

  static void check_on_host(const char* kind, const Tensor& t) {
    check(t.device() == Device::cpu,
          "[{}] MPI moves tensors in host memory, but one of {} elements is on {}: on GPUs use --comm nccl", kind,
          t.numel(), name(t.device()));
  }
  static void check_on_host(const char* kind, const std::vector<Buffers>& list) {
    for (const Buffers& b : list) check_on_host(kind, b.in), check_on_host(kind, b.out);
  }

  static void copy(std::byte* to, const std::byte* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, size_t(bytes));
  }

  static Signature signature(std::string name, const std::vector<Buffers>& list) {
    Signature s{std::move(name), {}};
    for (const Buffers& b : list) s.list.push_back({b.in.dtype(), b.counts, b.out_counts});
    return s;
  }

  // Takes elements [at, at + n) of the others' `in` and reduces them with this rank's.
  void add_reduction(Stage& stage, const Buffers& b, Reduce reduce, int64_t at, int64_t n, int64_t out_at) {
    std::vector<Tensor> parts(static_cast<size_t>(size()));
    for (int r = 0; r < size(); ++r) {
      if (r == rank_) {
        parts[size_t(r)] = b.in.view({b.in.numel()}).narrow(0, at, n);
        continue;
      }
      parts[size_t(r)] = Tensor(b.out.allocator(), b.in.dtype(), {n});
      stage.take.push_back({r, parts[size_t(r)].bytes_data(), n * itemsize(b.in.dtype())});
    }
    stage.then = [before = std::move(stage.then), parts, reduce, n, out = b.out, out_at] {
      before();
      std::vector<const Tensor*> all;
      for (const Tensor& t : parts) all.push_back(&t);
      reduce_ranks(all, 0, n, reduce, out, out_at);
    };
  }

  // One side of a message.
  Work pass(const char* kind, const std::vector<Tensor>& tensors, int peer) {
    bool gives = kind[0] == 's';
    std::deque<Stage> stages(1);
    std::vector<Buffers> list;
    Signature call{kind, {}};
    for (const Tensor& t : tensors) {
      check_on_host(kind, t);
      list.push_back({t, t});
      call.list.push_back({t.dtype(), {t.numel()}});
      (gives ? stages[0].give : stages[0].take).push_back({peer, t.bytes_data(), t.numel() * itemsize(t.dtype())});
    }
    Lane lane = (rank_ < peer) == gives ? Lane::up : Lane::down;
    return start(call, std::move(list), std::move(stages), lane, {peer});
  }

  Work start(const Signature& call, std::vector<Buffers> list, std::deque<Stage> stages) {
    return start(call, std::move(list), std::move(stages), Lane::none, others());
  }
  Work start(const Signature& call, std::vector<Buffers> list, std::deque<Stage> stages, Lane lane,
             std::vector<int> with) {
    auto op = std::make_shared<Operation>();
    uint64_t number = next_[{lane, lane == Lane::none ? 0 : with[0]}]++;
    op->ranks = ranks_, op->me = rank_, op->others = std::move(with);
    op->tag = int(((group_ * 4 + int(lane)) * world_->sequences + int64_t(number) % world_->sequences) * 2);
    std::string where = world_->options.where();
    op->kind = call.kind(), op->call = call.describe() + (where.empty() ? "" : " in " + where);
    op->list = std::move(list), op->stages = std::move(stages);
    world_->start(op);
    return Work([world = world_, op] { world->wait(*op); });
  }

  std::shared_ptr<World> world_;
  std::vector<int> ranks_;  // in the world
  int rank_, group_;
  std::map<std::pair<Lane, int>, uint64_t> next_;  // number of the next operation, by lane and peer
};

}  // namespace

std::shared_ptr<Communicator> make_communicator(MPI_Comm world, std::shared_ptr<Watch> watch, const Options& options) {
  auto shared = std::make_shared<World>(world, std::move(watch), options);
  return std::make_shared<Mpi>(shared, RankGrid::whole(shared->size).list(), shared->rank, 0);
}

}  // namespace dtensor::mpi
