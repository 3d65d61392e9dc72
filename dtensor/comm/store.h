// Store: small values by name that all processes of a run share over TCP. How they find each other before NCCL, and how
// they hear of a failure when NCCL cannot tell. One process serves it; all are clients, that one too. Machines of one
// byte order. Nothing is encrypted: a network that others can reach is not the place for it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "dtensor/comm/deadline.h"

namespace dtensor {

// Serves until it is destroyed, on a thread of its own. A client for which its process may open no file is told so.
class StoreServer {
 public:
  // Listens on `port` (0: a free one) of the loopback interface where `host` means that, else of all interfaces.
  // Errors: the port is in use.
  StoreServer(const std::string& host, int port);
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;

  int port() const { return port_; }
  // Waits until `clients` have come and gone, no longer than `limit`.
  void wait_for_goodbyes(int clients, std::chrono::milliseconds limit) const;

 private:
  struct Sockets;
  void serve();

  std::unique_ptr<Sockets> sockets_;
  int port_ = 0;
  std::atomic<int> gone_{0};
  std::thread thread_;
};

// A client. Any thread may call it; calls take turns. Every call is an Error when the server is gone, or has not
// answered after the deadline.
class Store {
 public:
  // Tries until somebody listens. Errors: nobody does after the deadline; who listens is no store.
  Store(const std::string& host, int port, std::chrono::milliseconds deadline);
  ~Store();
  Store(const Store&) = delete;

  void set(const std::string& key, std::string_view value);
  // Waits until there is a value. Errors: there is none after `limit`.
  std::string get(const std::string& key, std::chrono::milliseconds limit);
  std::optional<std::string> try_get(const std::string& key);
  // Sets it where there is none; the value that stands.
  std::string set_if_absent(const std::string& key, std::string_view value);
  // A counter, 0 at first; its new value. Errors: the value is no number, or the sum is none of 64 bits.
  int64_t add(const std::string& key, int64_t n);
  // What the server sets if absent when this client's process ends without ~Store(): crashes and kill -9 included.
  void last_will(const std::string& key, std::string_view value);

 private:
  struct Reply {
    bool found;
    std::string value;
  };
  Reply request(uint32_t what, std::string_view key, std::string_view value,
                std::chrono::steady_clock::time_point until);
  Reply request(uint32_t what, std::string_view key, std::string_view value = {}) {
    return request(what, key, value, time_after(deadline_));
  }

  std::string where_;  // "host:port"
  std::chrono::milliseconds deadline_;
  std::mutex mutex_;
  int socket_ = -1;
};

}  // namespace dtensor
