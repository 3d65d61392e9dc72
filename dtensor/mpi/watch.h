// What the processes of a run know of each other's failures. MPI cannot tell: a rank that is gone, or late, looks like
// one that has nothing to say. So it goes through the store.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dtensor/comm/store.h"

namespace dtensor::mpi {

struct WatchOptions {
  std::chrono::milliseconds poll{50};     // the store is looked at as often as this
  std::chrono::milliseconds grace{2000};  // a failing rank waits as long for what others know
};

// A thread that looks at the store. The first failure is everybody's; the rank that noticed it reports it, and who
// heard of it from another waits for the launcher to end all, so that a user reads one message.
//
// In the store: "failure" is "REPORTER TEXT"; "inquiry" is there when some rank wants to know what the others do, and
// "doing/R" is what rank R answers.
class Watch {
 public:
  // Of rank `rank`; hosts[r] is that of rank r.
  Watch(int rank, std::vector<std::string> hosts, std::shared_ptr<Store> store, const WatchOptions& options);
  ~Watch();
  Watch(const Watch&) = delete;

  std::string name(int rank) const;  // "rank 1 (host a)"
  std::string name(const std::vector<int>& ranks) const;
  bool failed() const { return failed_; }
  // What failed first, and where.
  std::string failure() const;
  bool reports() const;  // whether this rank is the one that says it

  // What this rank does now, for those who wait for it.
  void set_doing(std::string what);
  std::string doing() const;
  // What some ranks do, of those that answer: "rank 1 (host a) has last begun barrier". May be asked once.
  std::string ask(const std::vector<int>& ranks);
  // All ranks end with `text`, unless something failed before.
  void fail(const std::string& text);

 private:
  void run();
  void look();
  void conclude(int reporter, const std::string& text);

  int rank_;
  std::vector<std::string> hosts_;
  std::shared_ptr<Store> store_;
  WatchOptions options_;
  std::atomic<bool> failed_ = false, stop_ = false;
  mutable std::mutex mutex_;  // of what follows
  std::string failure_, doing_ = "nothing";
  int reporter_ = -1;
  bool answered_ = false;
  std::thread thread_;
};

}  // namespace dtensor::mpi
