#include "dtensor/mpi/watch.h"

#include <fmt/format.h>

#include "dtensor/local/thread_pool.h"
#include "placement/error.h"

namespace dtensor::mpi {
namespace {

constexpr const char *failure_key = "failure", *inquiry_key = "inquiry";
std::string doing_key(int rank) { return fmt::format("doing/{}", rank); }

}  // namespace

Watch::Watch(int rank, std::vector<std::string> hosts, std::shared_ptr<Store> store, const WatchOptions& options)
    : rank_(rank), hosts_(std::move(hosts)), store_(std::move(store)), options_(options) {
  store_->last_will(failure_key, fmt::format("{} {} failed: its process has ended without a word, killed perhaps: see "
                                             "its output, and the system's log for memory",
                                             rank_ == 0 ? 1 : 0, name(rank_)));
  thread_ = start_thread("mpi", [this] { run(); });
}

Watch::~Watch() {
  stop_ = true;
  thread_.join();
}

std::string Watch::name(int rank) const { return name(std::vector{rank}); }

std::string Watch::name(const std::vector<int>& ranks) const {
  std::string text;
  for (int r : ranks)
    text += fmt::format("{}rank {} (host {})", text.empty() ? "" : ", ", r, hosts_[static_cast<size_t>(r)]);
  return text;
}

std::string Watch::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

bool Watch::reports() const {
  std::lock_guard lock(mutex_);
  return reporter_ == rank_;
}

void Watch::set_doing(std::string what) {
  std::lock_guard lock(mutex_);
  doing_ = std::move(what);
}

std::string Watch::doing() const {
  std::lock_guard lock(mutex_);
  return doing_;
}

void Watch::run() {
  while (!stop_ && !failed_) {
    look();
    std::this_thread::sleep_for(options_.poll);
  }
}

void Watch::look() {
  try {
    if (auto failure = store_->try_get(failure_key)) {
      size_t space = failure->find(' ');
      return conclude(std::stoi(failure->substr(0, space)), failure->substr(space + 1));
    }
    if (answered_ || !store_->try_get(inquiry_key)) return;
    answered_ = true;
    store_->set(doing_key(rank_), doing());
  } catch (const Error&) {  // rank 0, which serves it, took it along
    conclude(1, fmt::format("{} failed: its process has ended without a word, killed perhaps: see its output, and the "
                            "system's log for memory",
                            name(0)));
  }
}

std::string Watch::ask(const std::vector<int>& ranks) {
  std::string text;
  std::vector<int> left = ranks;
  try {
    store_->set(inquiry_key, "");
    for (auto until = time_after(options_.grace); !left.empty() && std::chrono::steady_clock::now() < until;) {
      std::erase_if(left, [&](int r) {
        auto answer = store_->try_get(doing_key(r));
        if (answer) text += fmt::format("; {} has last begun {}", name(r), *answer);
        return answer.has_value();
      });
      if (failed_) return text;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  } catch (const Error&) {  // nobody can be asked
  }
  if (!left.empty()) text += fmt::format("; the process of {} does not answer", name(left));
  return text;
}

void Watch::fail(const std::string& text) {
  if (failed_) return;
  int reporter = rank_;
  std::string first = text;
  try {
    std::string stands = store_->set_if_absent(failure_key, fmt::format("{} {}", rank_, text));
    size_t space = stands.find(' ');
    reporter = std::stoi(stands.substr(0, space)), first = stands.substr(space + 1);
  } catch (const Error&) {  // nobody can be told
  }
  conclude(reporter, first);
}

void Watch::conclude(int reporter, const std::string& text) {
  std::lock_guard lock(mutex_);
  if (failed_) return;
  failure_ = text, reporter_ = reporter;
  failed_ = true;
}

}  // namespace dtensor::mpi
