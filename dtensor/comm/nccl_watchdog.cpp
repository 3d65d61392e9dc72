#include "dtensor/comm/nccl_watchdog.h"

#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "dtensor/comm/deadline.h"
#include "placement/error.h"

namespace dtensor::nccl {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr const char *failure_key = "failure", *inquiry_key = "inquiry", *ended_key = "ended";
std::string record_key(int rank) { return fmt::format("record/{}", rank); }
std::string ended_key_of(int64_t n) { return fmt::format("ended/{}", n); }
constexpr size_t answered_entries = 64;

// Sleeps between looks at something that is usually soon done.
class Pause {
 public:
  void operator()() {
    std::this_thread::sleep_for(time_);
    time_ = std::min(2 * time_, microseconds(2000));
  }

 private:
  microseconds time_{10};
};

std::string name_ranks(const std::vector<int>& ranks) { return fmt::format("rank {}", fmt::join(ranks, ",")); }

}  // namespace

std::shared_ptr<uint32_t> Counters::next() {
  if (left_ == 0) {
    void* memory = cuda::allocate_pinned(per_block * int64_t(sizeof(uint32_t)));
    check(memory != nullptr, "[capture] the host has no {} bytes of pinned memory left", per_block * sizeof(uint32_t));
    block_.reset(static_cast<uint32_t*>(memory), cuda::release_pinned);
    std::fill_n(block_.get(), per_block, 0);
    left_ = per_block;
  }
  return {block_, block_.get() + --left_};
}

Watchdog::Watchdog(int rank, int world, int device, Api api, std::shared_ptr<Store> store, Options options)
    : rank_(rank),
      world_(world),
      device_(device),
      api_(std::move(api)),
      store_(std::move(store)),
      options_(std::move(options)),
      recorder_(rank, world, options_.flight_recorder_size) {
  store_->last_will(failure_key,
                    fmt::format("rank {} failed: its process has ended without a word, killed perhaps: see its output, "
                                "and the system's log for memory",
                                rank));
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  Pause pause;
  for (auto until = time_after(options_.grace); failure_.empty() && !closed_.empty() && Clock::now() < until; pause())
    destroy_closed();
  open_.insert(open_.end(), closed_.begin(), closed_.end());
  abort_all();
}

void Watchdog::throw_if_failed() {
  std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(failure_);
}

std::shared_ptr<Operation> Watchdog::begin(std::shared_ptr<Channel> channel, Signature call,
                                           std::vector<Buffers> buffers, Operation::Kind how) {
  std::string kind = call.kind(), text = call.describe();
  auto op = std::make_shared<Operation>(
      Operation{std::move(channel), how, 0, 0, kind, text, Clock::now(), time_after(options_.deadline)});
  if (how != Operation::Kind::launched) op->events.emplace();
  op->buffers = std::move(buffers);
  std::vector<std::shared_ptr<void>> free_now;  // not under the lock
  std::lock_guard lock(mutex_);
  if (!capture) free_now.swap(to_free_);
  if (!failure_.empty()) throw Error(failure_);
  if (how != Operation::Kind::captured) {
    op->sequence = op->channel->next++;
    op->number = recorder_.add(op->channel->members, op->sequence, std::move(call));
  }
  operations_.push_back(op);
  return op;
}

void Watchdog::add(const std::shared_ptr<SharedGraph>& graph) {
  std::lock_guard lock(mutex_);
  std::erase_if(graphs_, [](const auto& g) { return g.expired(); });
  graphs_.push_back(graph);
}

void Watchdog::launch(SharedGraph& graph, const std::vector<CapturedCall>& calls, uint32_t launch,
                      cuda::StreamHandle stream) {
  throw_if_failed();
  for (const CapturedCall& c : calls) {
    auto op = begin(c.channel, c.call, {}, Operation::Kind::launched);
    op->count = {c.done, launch};
    issued(op);
  }
  graph.launch(stream);
}

void Watchdog::finish_call(Operation& op, Result result) {
  Channel& c = *op.channel;
  for (Pause pause; result == Result::in_progress; pause()) {
    throw_if_failed();  // the watchdog ends what lasts too long
    std::lock_guard lock(c.calls);
    if (!c.comm) continue;
    if (Result r = api_.CommGetAsyncError(c.comm, &result); r != Result::success) result = r;
  }
  if (result != Result::success) fail_result(c, &op, result);
  throw_if_failed();
}

void Watchdog::issued(const std::shared_ptr<Operation>& op) {
  std::lock_guard lock(mutex_);
  op->issued = true;
}

void Watchdog::forget(const std::shared_ptr<Operation>& op, bool done) {
  std::lock_guard lock(mutex_);
  if (done && op->how != Operation::Kind::captured) recorder_.reached(op->number, FlightRecorder::State::done);
  operations_.remove(op);
  op->forgotten = true;
}

void Watchdog::wait_on_host(Operation& op) {
  for (Pause pause; !op.is_done(); pause()) throw_if_failed();
  finish_call(op, Result::in_progress);  // a collective that failed ends too
}

void Watchdog::wait_on_stream(Operation& op, cuda::StreamHandle stream) {
  throw_if_failed();
  cuda::wait(stream, op.events->end);
  std::vector<Buffers> free_now;  // not under the lock
  std::lock_guard lock(mutex_);
  free_now.swap(op.buffers);
}

std::shared_ptr<Channel> Watchdog::new_channel(Members members) {
  members.instance = instances_[{members.ranks, members.lane}]++;
  return std::make_shared<Channel>(std::move(members));
}

void Watchdog::open(const std::shared_ptr<Channel>& channel) {
  channel->making = true;
  std::lock_guard lock(mutex_);
  open_.push_back(channel);
}

void Watchdog::finish_opening(Operation& making) {
  Channel& c = *making.channel;
  for (Pause pause; !std::atomic_ref(c.made).load(std::memory_order_acquire); pause()) throw_if_failed();
  {
    std::lock_guard lock(c.calls);
    throw_if_failed();  // who ends everything ends what was made, too
    c.comm = c.made;
    c.making = false;
  }
  finish_call(making, Result::in_progress);
}

// Whether the other ranks close theirs in this order is not known, so nobody waits here.
void Watchdog::close(const std::shared_ptr<Channel>& channel) {
  {
    std::lock_guard lock(channel->calls);
    if (channel->comm) api_.CommFinalize(channel->comm);
  }
  std::lock_guard lock(mutex_);
  std::erase(open_, channel);
  closed_.push_back(channel);
}

void Watchdog::abort(const std::string& reason) {
  if (first_to_fail()) settle(reason, reason);
}

void Watchdog::run() {
  cuda::use_device(device_);  // else asking for an event would wake device 0
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, options_.poll, [&] { return stop_; })) {
    under_way_.assign(operations_.begin(), operations_.end());
    lock.unlock();
    look_at_operations();
    look_at_channels();
    look_at_store();
    destroy_closed();
    lock.lock();
    for (auto& op : under_way_)
      if (op->forgotten) to_free_.push_back(std::move(op));
    under_way_.clear();
  }
}

void Watchdog::look_at_operations() {
  {
    std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
  }
  try {
    for (const auto& op : under_way_) {
      bool issued;
      {
        std::lock_guard lock(mutex_);
        issued = op->issued;
      }
      if (issued && op->is_done()) {
        forget(op, true);
      } else if (Clock::now() > op->deadline) {
        return fail_late(*op);
      } else if (issued && op->has_begun()) {
        std::lock_guard lock(mutex_);
        recorder_.reached(op->number, FlightRecorder::State::started);
      }
    }
  } catch (const Error& e) {  // of CUDA: a kernel has failed, say
    if (first_to_fail()) settle(e.what(), fmt::format("rank {} failed: {}", rank_, e.what()));
  }
}

void Watchdog::look_at_channels() {
  std::vector<std::shared_ptr<Channel>> all;
  {
    std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
    all = open_;
  }
  for (const auto& c : all) {
    Result error = Result::success;
    {
      std::unique_lock lock(c->calls, std::try_to_lock);
      if (!lock || !c->comm) continue;
      if (Result r = api_.CommGetAsyncError(c->comm, &error); r != Result::success) error = r;
    }
    if (error == Result::success || error == Result::in_progress) continue;
    const Operation* oldest = nullptr;
    {
      std::lock_guard lock(mutex_);
      auto at = std::find_if(operations_.begin(), operations_.end(), [&](auto& op) { return op->channel == c; });
      if (at != operations_.end()) oldest = under_way_.emplace_back(*at).get();
    }
    return fail_result(*c, oldest, error);
  }
}

void Watchdog::look_at_store() {
  try {
    bool failed, answered;
    {
      std::lock_guard lock(mutex_);
      failed = failing_, answered = answered_;
    }
    if (!answered && store_->try_get(inquiry_key)) answer();
    if (failed) return;
    if (auto failure = store_->try_get(failure_key); failure && first_to_fail()) return conclude(*failure);
    look_at_ended();
  } catch (const Error& e) {  // the store is gone, and rank 0 with it
    if (first_to_fail()) conclude(e.what());
  }
}

// What lasts a while may wait for a rank that has ended.
void Watchdog::look_at_ended() {
  std::vector<const Operation*> late;
  for (const auto& op : under_way_)
    if (Clock::now() > op->queued + 10 * options_.poll) late.push_back(op.get());
  {
    std::lock_guard lock(mutex_);
    if (late.empty() && !ending_) return;
  }
  int64_t n = store_->add(ended_key, 0);
  {
    std::lock_guard lock(mutex_);
    have_ended_ = n;
  }
  changed_.notify_all();
  while (!late.empty() && int64_t(ended_.size()) < n) {
    auto entry = store_->try_get(ended_key_of(int64_t(ended_.size()) + 1));
    if (!entry) break;  // it is being written
    size_t space = entry->find(' ');
    ended_[std::stoi(entry->substr(0, space))] = entry->substr(space + 1);
  }
  for (const Operation* op : late)
    for (int r : op->channel->members->ranks) {
      auto it = ended_.find(r);
      if (it == ended_.end() || !will_not_begin(it->second, *op->channel->members, op->sequence)) continue;
      if (!first_to_fail()) return;
      std::string text = fmt::format("[{}] rank {} has ended (its function returned), but rank {} waits for it in {}",
                                     op->kind, r, rank_, op->call);
      return settle(text, fmt::format("rank {} failed: {}", rank_, text));
    }
}

void Watchdog::end() {
  if (world_ == 1) return throw_if_failed();
  std::vector<std::pair<Members, uint64_t>> begun;
  {
    std::lock_guard lock(mutex_);
    for (const auto& c : open_) begun.emplace_back(*c->members, c->next);
    ending_ = true;
  }
  store_->set(ended_key_of(store_->add(ended_key, 1)), fmt::format("{} {}", rank_, last_words(begun)));
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, time_after(options_.deadline),
                           [&] { return have_ended_ == world_ || !failure_.empty(); })) {
    std::string text = fmt::format("[end] not complete after {} s: rank {} has ended, but only {} of {} ranks have",
                                   double(options_.deadline.count()) / 1000, rank_, have_ended_, world_);
    lock.unlock();
    if (first_to_fail()) settle(text, fmt::format("rank {} failed: {}", rank_, text));
    return throw_if_failed();
  }
  if (!failure_.empty()) throw Error(failure_);
}

void Watchdog::destroy_closed() {
  std::vector<std::shared_ptr<Channel>> all;
  {
    std::lock_guard lock(mutex_);
    all = closed_;
  }
  for (const auto& c : all) {
    if (c->making) continue;  // NCCL may write to it
    std::lock_guard calls(c->calls);
    Result state = Result::success;
    if (c->comm && api_.CommGetAsyncError(c->comm, &state) == Result::success && state == Result::in_progress) continue;
    if (c->comm) state == Result::success ? api_.CommDestroy(c->comm) : api_.CommAbort(c->comm);
    c->comm = nullptr;
    std::lock_guard lock(mutex_);
    std::erase(closed_, c);
    to_free_.push_back(c);
  }
}

void Watchdog::fail_result(Channel& c, const Operation* op, Result result) {
  std::string last;
  {
    std::lock_guard lock(c.calls);
    if (const char* text = api_.GetLastError(c.comm)) last = text;
    last.resize(last.find_last_not_of(" \n") + 1);
  }
  std::string text =
      fmt::format("[{}] NCCL fails on rank {} of {} in {}: {}{}", op ? op->kind : "nccl", rank_, world_,
                  op ? op->call : "no collective", api_.GetErrorString(result), last.empty() ? "" : " (" + last + ")");
  if (result == Result::invalid_usage)
    text += ". NCCL needs one GPU per rank: run several ranks on one GPU with --comm threads";
  if (!first_to_fail()) return;
  // A remote error is another rank's failure, which that rank can tell better.
  if (result == Result::remote_error) {
    try {
      return conclude(store_->get(failure_key, options_.grace));
    } catch (const Error&) {  // it did not
    }
  }
  settle(text, fmt::format("rank {} failed: {}", rank_, text));
}

void Watchdog::fail_late(const Operation& op) {
  if (!first_to_fail()) return;
  std::string text = explain_late(op);
  settle(text, fmt::format("rank {} failed: {}", rank_, text));
}

std::string Watchdog::explain_late(const Operation& op) {
  const Members& members = *op.channel->members;
  Findings found;
  std::string who;
  if (op.how == Operation::Kind::captured)
    return fmt::format("[{}] not complete after {} s: {} is being captured on rank {}, perhaps not on all of rank {}",
                       op.kind, double(options_.deadline.count()) / 1000, op.call, rank_,
                       fmt::join(members.ranks, ","));
  try {
    found = compare(ask_others(members.ranks), members, op.sequence);
    if (!found.disagreement.empty()) return "[collective] " + found.disagreement;
    if (!found.missing.empty()) who = name_ranks(found.missing) + ", which has not begun it";
    if (!found.silent.empty())
      who += (who.empty() ? "" : ", and for ") + name_ranks(found.silent) + ", whose process does not answer";
    if (who.empty()) who = "the others, which have begun it: a device or a link hangs";
  } catch (const Error& e) {
    who = fmt::format("the others ({})", e.what());
  }
  return fmt::format("[{}] not complete after {} s: in {}, rank {} waits for {}", op.kind,
                     double(options_.deadline.count()) / 1000, op.call, rank_, who);
}

std::map<int, std::string> Watchdog::ask_others(const std::vector<int>& ranks) {
  answer();
  store_->set(inquiry_key, "");
  std::map<int, std::string> records;
  Pause pause;
  for (auto until = time_after(options_.grace); records.size() < ranks.size() && Clock::now() < until; pause()) {
    for (int r : ranks)
      if (!records.count(r))
        if (auto record = store_->try_get(record_key(r))) records[r] = *record;
    if (store_->try_get(failure_key)) break;
  }
  return records;
}

void Watchdog::answer() {
  std::string record;
  {
    std::lock_guard lock(mutex_);
    answered_ = true;
    record = recorder_.json(failure_, answered_entries);
  }
  store_->set(record_key(rank_), record);
}

// One thread settles what the failure is; others wait for its word.
bool Watchdog::first_to_fail() {
  std::unique_lock lock(mutex_);
  if (!failing_) return failing_ = true;
  if (std::this_thread::get_id() != thread_.get_id()) changed_.wait(lock, [&] { return !failure_.empty(); });
  return false;
}

void Watchdog::settle(const std::string& own, const std::string& others) {
  std::string first = others;
  try {
    first = store_->set_if_absent(failure_key, others);
  } catch (const Error&) {  // nobody can be told
  }
  conclude(first == others ? own : first);
}

void Watchdog::conclude(std::string failure) {
  failure += write_recorder(failure);
  {
    std::lock_guard lock(mutex_);
    failure_ = failure;
  }
  changed_.notify_all();
  abort_all();
}

// In one group, as communicators of one device must be, whose end waits for their graphs to be destroyed, those that
// are captured now too: other threads must not wait for it. A communicator inside of which a call hangs is left alone.
void Watchdog::abort_all() {
  std::vector<std::shared_ptr<Channel>> all, made;
  std::vector<std::weak_ptr<SharedGraph>> graphs;
  {
    std::lock_guard lock(mutex_);
    all = open_, graphs = graphs_;
  }
  api_.GroupStart();
  for (auto c = all.rbegin(); c != all.rend(); ++c) {
    std::unique_lock lock((*c)->calls, options_.grace);
    if (!lock) continue;
    if ((*c)->comm) api_.CommAbort((*c)->comm);
    (*c)->comm = nullptr;
    if ((*c)->making) made.push_back(*c);
  }
  if (std::this_thread::get_id() != thread_.get_id() && capture) cuda::Graph::abandon(capture->stream);
  for (const auto& g : graphs)
    if (auto graph = g.lock()) graph->destroy();
  api_.GroupEnd();
  // The abort of a parent waits for the thread that splits it, so what that made is there now.
  for (const auto& c : made) {
    Comm* comm = std::atomic_ref(c->made).load(std::memory_order_acquire);
    if (!comm) continue;
    api_.CommAbort(comm);
    c->making = false;
  }
}

// What went wrong with writing, to be added to the failure.
std::string Watchdog::write_recorder(const std::string& failure) {
  namespace fs = std::filesystem;
  fs::path path = fs::path(options_.flight_recorder_folder) / fmt::format("dtensor_flight_recorder_rank{}.json", rank_);
  fs::path part = path;
  part += ".part";
  std::string record;
  {
    std::lock_guard lock(mutex_);
    record = recorder_.json(failure);
  }
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  std::ofstream(part) << record << '\n' << std::flush;
  if (fs::file_size(part, error) == record.size() + 1) fs::rename(part, path, error);
  return error ? fmt::format(" (the flight recorder {} could not be written: {})", path.string(), error.message()) : "";
}

}  // namespace dtensor::nccl
