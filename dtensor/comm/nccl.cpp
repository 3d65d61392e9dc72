#include "dtensor/comm/nccl.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "dtensor/comm/nccl_watchdog.h"

namespace dtensor::nccl {
namespace {

DataType type(DType t) {
  switch (t) {
    case DType::f32:
      return DataType::float32;
    case DType::f64:
      return DataType::float64;
    case DType::bf16:
      return DataType::bfloat16;
    case DType::i64:
      return DataType::int64;
    case DType::boolean:
      break;
  }
  return DataType::uint8;
}

// A sum of booleans is whether any is true.
RedOp op(Reduce r, DType t) {
  constexpr RedOp ops[] = {RedOp::sum, RedOp::avg, RedOp::prod, RedOp::min, RedOp::max};
  return r == Reduce::sum && t == DType::boolean ? RedOp::max : ops[int(r)];
}

bool even(const std::vector<int64_t>& counts) {
  return std::all_of(counts.begin(), counts.end(), [&](int64_t n) { return n == counts[0]; });
}

Signature signature(std::string name, const std::vector<Buffers>& list, bool sizes = false) {
  Signature s{std::move(name), {}};
  for (const Buffers& b : list)
    s.list.push_back({b.in.dtype(), sizes ? std::vector{b.in.numel()} : b.counts, b.out_counts});
  return s;
}

class NcclGraph : public CapturedGraph {
 public:
  NcclGraph(std::shared_ptr<Watchdog> watchdog, cuda::StreamHandle stream, const std::function<void()>& f)
      : watchdog_(std::move(watchdog)) {
    check(!watchdog_->capture, "[capture] this rank captures already");
    watchdog_->capture = Watchdog::Capture{stream};
    std::shared_ptr<void> in_the_end(nullptr, [&](void*) { watchdog_->capture.reset(); });
    graph_->set(cuda::Graph::capture(stream, [&] {
      f();
      calls_ = std::move(watchdog_->capture->calls);
      join(stream);
    }));
    watchdog_->add(graph_);
  }
  ~NcclGraph() override { graph_->destroy(); }  // also where the watchdog looks at it now

  void launch(cuda::StreamHandle stream) override { watchdog_->launch(*graph_, calls_, ++launches_, stream); }
  size_t nodes() const override { return graph_->nodes(); }

 private:
  // What the channels count after their collectives is a part of the graph too.
  void join(cuda::StreamHandle stream) {
    std::set<Channel*> channels;
    for (const CapturedCall& c : calls_)
      if (channels.insert(c.channel.get()).second) {
        cuda::Event end;
        end.record(c.channel->stream());
        cuda::wait(stream, end);
      }
  }

  std::shared_ptr<Watchdog> watchdog_;
  std::vector<CapturedCall> calls_;
  std::shared_ptr<SharedGraph> graph_ = std::make_shared<SharedGraph>();
  uint32_t launches_ = 0;
};

class Nccl : public Communicator, public std::enable_shared_from_this<Nccl> {
 public:
  Nccl(std::shared_ptr<Watchdog> watchdog, Members members, int rank)
      : watchdog_(std::move(watchdog)),
        api_(watchdog_->api()),
        channel_(watchdog_->new_channel(std::move(members))),
        rank_(rank) {}
  ~Nccl() override { watchdog_->close(channel_); }

  int rank() const override { return rank_; }
  int size() const override { return int(channel_->members->ranks.size()); }

  // `make` has NCCL begin a communicator at the place that it is given. A split is done when the parent says so.
  template <class F>
  void init(const std::string& name, F make, Operation* splitting = nullptr) {
    auto making = watchdog_->begin(channel_, {name, {}});
    watchdog_->open(channel_);
    Result r = make(&channel_->made);
    if (splitting)
      watchdog_->finish_call(*splitting, r);
    else if (r != Result::in_progress)
      watchdog_->finish_call(*making, r);
    if (size() == 0)  // a part of none
      channel_->making = false;
    else
      watchdog_->finish_opening(*making);
    watchdog_->forget(making, true);
  }

  Work all_reduce(std::vector<Buffers> list, Reduce reduce) override {
    Signature call = signature(fmt::format("all_reduce({})", name(reduce)), list, true);
    return start(std::move(call), std::move(list), [this, reduce](const Buffers& b) {
      DType t = b.in.dtype();
      if (b.in.numel() > 0)
        add(api_.AllReduce(b.in.bytes_data(), b.out.bytes_data(), size_t(b.in.numel()), type(t), op(reduce, t), comm(),
                           stream()));
    });
  }

  Work reduce_scatter(std::vector<Buffers> list, Reduce reduce) override {
    Signature call = signature(fmt::format("reduce_scatter({})", name(reduce)), list);
    return start(std::move(call), std::move(list), [this, reduce](const Buffers& b) {
      DType t = b.in.dtype();
      const std::byte* in = b.in.bytes_data();
      for (int r = 0; r < size() && !even(b.counts); in += b.counts[size_t(r++)] * itemsize(t))
        if (b.counts[size_t(r)] > 0)
          add(api_.Reduce(in, b.out.bytes_data(), size_t(b.counts[size_t(r)]), type(t), op(reduce, t), r, comm(),
                          stream()));
      if (even(b.counts) && b.counts[0] > 0)
        add(api_.ReduceScatter(in, b.out.bytes_data(), size_t(b.counts[0]), type(t), op(reduce, t), comm(), stream()));
    });
  }

  Work all_gather(std::vector<Buffers> list) override {
    Signature call = signature("all_gather", list);
    return start(std::move(call), std::move(list), [this](const Buffers& b) {
      DType t = b.in.dtype();
      std::byte* out = b.out.bytes_data();
      for (int r = 0; r < size() && !even(b.counts); out += b.counts[size_t(r++)] * itemsize(t))
        if (b.counts[size_t(r)] > 0)
          add(api_.Broadcast(r == rank_ ? b.in.bytes_data() : out, out, size_t(b.counts[size_t(r)]), type(t), r, comm(),
                             stream()));
      if (even(b.counts) && b.counts[0] > 0)
        add(api_.AllGather(b.in.bytes_data(), out, size_t(b.counts[0]), type(t), comm(), stream()));
    });
  }

  Work all_to_all(std::vector<Buffers> list) override {
    Signature call = signature("all_to_all", list);
    return start(std::move(call), std::move(list), [this](const Buffers& b) {
      DType t = b.in.dtype();
      const std::byte* in = b.in.bytes_data();
      std::byte* out = b.out.bytes_data();
      for (int r = 0; r < size(); ++r) {
        int64_t given = b.counts[size_t(r)], taken = b.out_counts[size_t(r)];
        if (given > 0) add(api_.Send(in, size_t(given), type(t), r, comm(), stream()));
        if (taken > 0) add(api_.Recv(out, size_t(taken), type(t), r, comm(), stream()));
        in += given * itemsize(t), out += taken * itemsize(t);
      }
    });
  }

  Work shift(std::vector<Buffers> list, int distance) override {
    int n = size(), way = int((int64_t(distance) % n + n) % n), to = (rank_ + way) % n, from = (rank_ + n - way) % n;
    Signature call{fmt::format("shift({})", distance), {}};
    for (const Buffers& b : list) {  // to whom it gives, and from whom it gets
      std::vector<int64_t> given(size_t(n), 0), taken(size_t(n), 0);
      given[size_t(to)] = b.in.numel(), taken[size_t(from)] = b.out.numel();
      call.list.push_back({b.in.dtype(), given, taken});
    }
    return start(std::move(call), std::move(list), [this, to, from](const Buffers& b) {
      DType t = b.in.dtype();
      if (b.in.numel() > 0) add(api_.Send(b.in.bytes_data(), size_t(b.in.numel()), type(t), to, comm(), stream()));
      if (b.out.numel() > 0) add(api_.Recv(b.out.bytes_data(), size_t(b.out.numel()), type(t), from, comm(), stream()));
    });
  }

  Work send(std::vector<Tensor> list, int to) override { return lane("send", rank_, to).pass("send", list); }
  Work receive(std::vector<Tensor> list, int from) override {
    return lane("receive", from, rank_).pass("receive", list);
  }

  // Two for each edge of the ring, which joins rank e and e + 1: a communicator's operations run one after the other,
  // so each way has its own. A split makes those of every second edge, and an odd ring has one edge left.
  void open_lanes() override {
    int n = size(), edges = n == 2 ? 1 : n;
    if (n == 1 || !lanes_.empty()) return;
    auto color = [&](int edge) { return edges % 2 && edge == edges - 1 ? 2 : edge % 2; };
    for (bool up : {true, false})
      for (int c = 0; c < 3; ++c) {
        Members lane{{}, true};
        bool any = false;
        for (int e = 0; e < edges; ++e) {
          if (color(e) != c) continue;
          any = true;
          int from = e, to = (e + 1) % n;
          if (!up) std::swap(from, to);
          if (from == rank_ || to == rank_) lane.ranks = {from, to};
        }
        if (!any) continue;
        auto made = divide(lane);
        if (made) lanes_[{lane.ranks[0], lane.ranks[1]}] = std::move(made);
      }
  }

  // The host waits, so what it does next comes after what the others did before.
  void barrier() override {
    if (!channel_->scratch) {
      channel_->scratch = cuda::allocate(8);
      check(channel_->scratch != nullptr, "[barrier] the device has no 8 bytes left");
      cuda::zero(channel_->scratch, 8, stream());
    }
    auto issue = [this] {
      add(api_.AllReduce(channel_->scratch, channel_->scratch, 1, DataType::int64, RedOp::sum, comm(), stream()));
    };
    auto op = watchdog_->begin(channel_, {"barrier", {}});
    run(*op, issue);
    watchdog_->issued(op);
    watchdog_->wait_on_host(*op);
    watchdog_->forget(op, true);
  }

  // Waits until all ranks have ended, without NCCL, which would take it for whatever the others are at.
  void end() override { watchdog_->end(); }

  std::shared_ptr<Communicator> split(const RankGrid& ranks) override {
    check(ranks.find(rank_) >= 0, "[split] rank {} is not among the ranks of the new communicator", rank_);
    return divide({ranks.list()});
  }
  void abort(const std::string& reason) override { watchdog_->abort(reason); }

  bool can_be_captured() const override { return true; }
  std::unique_ptr<CapturedGraph> capture(cuda::StreamHandle stream, const std::function<void()>& f) override {
    return std::make_unique<NcclGraph>(watchdog_, stream, f);
  }
  void throw_if_failed() override { watchdog_->throw_if_failed(); }

 private:
  Comm* comm() const { return channel_->comm; }
  cuda::StreamHandle stream() const { return channel_->stream(); }

  // The communicator of some ranks of this one, which all its ranks call together; null where they are none.
  std::shared_ptr<Nccl> divide(const Members& some) {
    const std::vector<int>& ranks = some.ranks;
    Members global{{}, some.lane};
    for (int r : ranks) global.ranks.push_back(channel_->members->ranks[size_t(r)]);
    int key = int(std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin());
    int color = ranks.empty() ? no_color : *std::min_element(ranks.begin(), ranks.end());  // no two groups share a rank
    auto part = std::make_shared<Nccl>(watchdog_, global, key);
    auto splitting = watchdog_->begin(channel_, {"split", {}});
    Config config;
    auto make = [&](Comm** made) {
      std::lock_guard lock(channel_->calls);
      return comm() ? api_.CommSplit(comm(), color, key, made, &config) : Result::in_progress;
    };
    part->init(fmt::format("{} [{}]", some.lane ? "lane" : "split", fmt::join(global.ranks, ",")), make,
               splitting.get());
    watchdog_->forget(splitting, true);
    if (ranks.empty()) return nullptr;
    int count = 0;
    api_.CommCount(part->comm(), &count);
    check(count == int(ranks.size()),
          "[split] ranks [{}] of the world were to form a communicator, but {} ranks did: all ranks of the parent must "
          "call it together, each with its own group",
          fmt::join(global.ranks, ","), count);
    return part;
  }

  Nccl& lane(const char* who, int from, int to) const {
    auto it = lanes_.find({from, to});
    check(it != lanes_.end(),
          "[{}] there is no lane from rank {} to {}: lanes lead to neighbours, on communicators of one axis of a mesh",
          who, from, to);
    return *it->second;
  }

  // Of a lane: its first rank gives, the other gets.
  Work pass(const char* what, const std::vector<Tensor>& tensors) {
    std::vector<Buffers> list;
    for (const Tensor& t : tensors) list.push_back({t, t});
    return start(signature(what, list, true), list, [this](const Buffers& b) {
      DType t = b.in.dtype();
      size_t n = size_t(b.in.numel());
      if (n > 0 && rank_ == 0) add(api_.Send(b.in.bytes_data(), n, type(t), 1, comm(), stream()));
      if (n > 0 && rank_ == 1) add(api_.Recv(b.out.bytes_data(), n, type(t), 0, comm(), stream()));
    });
  }

  // The first error of a group is the group's.
  void add(Result r) {
    if (result_ == Result::success || result_ == Result::in_progress) result_ = r;
  }

  template <class F>
  Work start(Signature call, std::vector<Buffers> list, F issue) {
    if (list.empty()) return Work();
    for (const Buffers& b : list)
      check(b.out.device() == Device::cuda && b.in.device() == Device::cuda,
            "[{}] NCCL moves tensors between GPUs, but one of {} elements is on {}: use --comm threads there",
            call.kind(), b.out.numel(), name(b.out.device() == Device::cuda ? b.in.device() : b.out.device()));
    cuda::StreamHandle compute = list[0].out.allocator()->stream();
    std::shared_ptr<Operation> op;
    if (cuda::Graph::is_capturing(compute)) {
      check(watchdog_->capture.has_value(), "[{}] a collective is captured by Communicator::capture() only",
            call.kind());
      op = watchdog_->begin(channel_, call, list, Operation::Kind::captured);
      // Events of a capture cannot be asked, and one that has failed is nothing to wait for.
      std::shared_ptr<void> in_the_end(nullptr, [&](void*) { watchdog_->forget(op, false); });
      run_after(*op, compute, list, issue);
      count(std::move(call));
    } else {
      op = watchdog_->begin(channel_, std::move(call), list);
      run_after(*op, compute, list, issue);
      watchdog_->issued(op);
    }
    return Work([watchdog = watchdog_, op, compute] { watchdog->wait_on_stream(*op, compute); });
  }

  // Starts when `compute` has come here and the inputs have come from the host.
  template <class F>
  void run_after(Operation& op, cuda::StreamHandle compute, const std::vector<Buffers>& list, F issue) {
    cuda::Event ready;
    ready.record(compute);
    cuda::wait(stream(), ready);
    for (const Buffers& b : list) b.in_copy.wait(stream());
    run(op, [&] {
      for (const Buffers& b : list) issue(b);
    });
  }

  // Of what was captured just now: each launch of the graph adds one when it is done.
  void count(Signature call) {
    std::shared_ptr<uint32_t> done = watchdog_->counters.next();
    cuda::count_up(stream(), done.get());
    watchdog_->capture->calls.push_back({channel_, std::move(call), std::move(done)});
  }

  // One group of calls between the events of `op`.
  template <class F>
  void run(Operation& op, F issue) {
    op.events->begin.record(stream());
    {
      std::lock_guard lock(channel_->calls);
      watchdog_->throw_if_failed();
      result_ = api_.GroupStart();
      issue();
      add(api_.GroupEnd());
    }
    watchdog_->finish_call(op, result_);
    op.events->end.record(stream());
  }

  std::shared_ptr<Watchdog> watchdog_;
  const Api& api_;
  std::shared_ptr<Channel> channel_;
  int rank_;
  std::map<std::pair<int, int>, std::shared_ptr<Nccl>> lanes_;  // this rank's, by from and to
  Result result_ = Result::success;                             // of the calls of a group so far
};

}  // namespace

std::shared_ptr<Communicator> make_communicator(int rank, int world, int device, Api api, std::shared_ptr<Store> store,
                                                const Options& options) {
  auto watchdog = std::make_shared<Watchdog>(rank, world, device, std::move(api), store, options);
  auto made = std::make_shared<Nccl>(watchdog, Members{RankGrid::whole(world).list()}, rank);
  Config config;
  made->init(fmt::format("init({} ranks)", world), [&](Comm** comm) {
    UniqueId id{};
    if (rank == 0) {
      Result r = watchdog->api().GetUniqueId(&id);
      if (r != Result::success) return r;
      store->set("nccl_id", {id.internal, sizeof id.internal});
    } else {
      std::optional<std::string> bytes;
      while (!(bytes = store->try_get("nccl_id"))) {
        watchdog->throw_if_failed();
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
      std::memcpy(id.internal, bytes->data(), std::min(bytes->size(), sizeof id.internal));
    }
    return watchdog->api().CommInitRankConfig(comm, world, id, rank, &config);
  });
  return made;
}

}  // namespace dtensor::nccl
