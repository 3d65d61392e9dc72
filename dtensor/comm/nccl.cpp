#include "dtensor/comm/nccl.h"

#include <algorithm>
#include <cstring>
#include <numeric>

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

class Nccl : public Communicator, public std::enable_shared_from_this<Nccl> {
 public:
  Nccl(std::shared_ptr<Watchdog> watchdog, std::vector<int> ranks, int rank)
      : watchdog_(std::move(watchdog)),
        api_(watchdog_->api()),
        channel_(std::make_shared<Channel>(std::make_shared<const std::vector<int>>(std::move(ranks)))),
        rank_(rank) {}
  ~Nccl() override { watchdog_->close(channel_); }

  int rank() const override { return rank_; }
  int size() const override { return int(channel_->ranks->size()); }

  // `make` has NCCL begin a communicator at the pointer that it is given; a split is a call on the parent as well.
  template <class F>
  void init(const std::string& name, F make, Operation* splitting = nullptr) {
    auto making = watchdog_->begin(channel_, {name, {}});
    Comm* begun = nullptr;
    Result r = make(&begun);
    watchdog_->open(channel_, begun);
    if (splitting) watchdog_->finish_call(*splitting, std::exchange(r, Result::in_progress));
    watchdog_->finish_call(*making, r);
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

  std::shared_ptr<Communicator> split(const std::vector<int>& ranks) override {
    auto mine = std::find(ranks.begin(), ranks.end(), rank_);
    check(mine != ranks.end(), "[split] rank {} is not among the ranks of the new communicator", rank_);
    std::vector<int> global;
    for (int r : ranks) global.push_back((*channel_->ranks)[size_t(r)]);
    int color = *std::min_element(ranks.begin(), ranks.end()), key = int(mine - ranks.begin());
    auto part = std::make_shared<Nccl>(watchdog_, global, key);
    auto splitting = watchdog_->begin(channel_, {"split", {}});
    Config config;
    auto make = [&](Comm** made) {
      std::lock_guard lock(channel_->calls);
      return comm() ? api_.CommSplit(comm(), color, key, made, &config) : Result::in_progress;
    };
    part->init(fmt::format("split [{}]", fmt::join(global, ",")), make, splitting.get());
    watchdog_->forget(splitting, true);
    int count = 0;
    api_.CommCount(part->comm(), &count);
    check(count == int(ranks.size()),
          "[split] ranks [{}] of the world were to form a communicator, but {} ranks did: all ranks of the parent must "
          "call it together, each with its own group",
          fmt::join(global, ","), count);
    return part;
  }

  void abort(const std::string& reason) override { watchdog_->abort(reason); }

 private:
  Comm* comm() const { return channel_->comm; }
  cuda::StreamHandle stream() const { return channel_->stream.handle(); }
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
    auto op = watchdog_->begin(channel_, std::move(call), list);
    cuda::Event ready;
    ready.record(compute);
    cuda::wait(stream(), ready);
    run(*op, [&] {
      for (const Buffers& b : list) issue(b);
    });
    // Events of a capture cannot be asked.
    cuda::Graph::is_capturing(compute) ? watchdog_->forget(op, false) : watchdog_->issued(op);
    return Work([watchdog = watchdog_, op, compute] { watchdog->wait_on_stream(*op, compute); });
  }

  // One group of calls between the events of `op`.
  template <class F>
  void run(Operation& op, F issue) {
    op.begin.record(stream());
    {
      std::lock_guard lock(channel_->calls);
      watchdog_->throw_if_failed();
      result_ = api_.GroupStart();
      issue();
      add(api_.GroupEnd());
    }
    watchdog_->finish_call(op, result_);
    op.end.record(stream());
  }

  std::shared_ptr<Watchdog> watchdog_;
  const Api& api_;
  std::shared_ptr<Channel> channel_;
  int rank_;
  Result result_ = Result::success;  // of the calls of a group so far
};

}  // namespace

std::shared_ptr<Communicator> make_communicator(int rank, int world, int device, Api api, std::shared_ptr<Store> store,
                                                const Options& options) {
  auto watchdog = std::make_shared<Watchdog>(rank, world, device, std::move(api), store, options);
  std::vector<int> ranks(static_cast<size_t>(world));
  std::iota(ranks.begin(), ranks.end(), 0);
  auto made = std::make_shared<Nccl>(watchdog, ranks, rank);
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
