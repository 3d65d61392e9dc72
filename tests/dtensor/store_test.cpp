#include "dtensor/comm/store.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <csignal>
#include <functional>
#include <numeric>
#include <vector>

#include "placement/error.h"
#include "tests/dtensor/sockets.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

namespace {

// f in a process of its own; 0 where it returned without an error.
pid_t process(const std::function<void()>& f) {
  pid_t child = fork();
  if (child) return child;
  int result = 0;
  try {
    f();
  } catch (...) {
    result = 1;
  }
  _exit(result);
}

int result_of(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace

TEST_CASE("a store's deadline that the clock cannot hold is none") {
  auto never = std::chrono::milliseconds::max();
  StoreServer server("127.0.0.1", 0);
  {
    Store a("127.0.0.1", server.port(), never);
    a.set("k", "one");
    CHECK(a.get("k", never) == "one");
  }
  server.wait_for_goodbyes(1, never);
}

TEST_CASE("the store keeps values, and counters, for all its clients") {
  for (const char* host : {"127.0.0.1", "localhost", "0.0.0.0"}) {
    StoreServer server(host, 0);
    Store a(host, server.port(), 10s), b(host, server.port(), 10s);
    CHECK_FALSE(a.try_get("k"));
    a.set("k", "one");
    CHECK(b.try_get("k") == "one");
    b.set("k", "");
    CHECK(a.try_get("k") == "");
    CHECK(a.set_if_absent("first", "a") == "a");
    CHECK(b.set_if_absent("first", "b") == "a");
    CHECK(a.add("n", 5) == 5);
    CHECK(b.add("n", -7) == -2);
    CHECK(b.try_get("n") == "-2");
    std::string large(20'000'000, 'x'), odd("\0\n\xff", 3);
    large += "end";
    b.set(odd, large);
    CHECK(a.get(odd, 10s) == large);
  }
}

TEST_CASE("a value that comes later is waited for, and one that never comes is an error") {
  StoreServer server("127.0.0.1", 0);
  Store store("127.0.0.1", server.port(), 10s);
  std::thread late([&] {
    std::this_thread::sleep_for(30ms);
    Store("127.0.0.1", server.port(), 10s).set("late", "here");
  });
  CHECK(store.get("late", 10s) == "here");
  late.join();
  CHECK_THROWS_WITH(
      store.get("never", 20ms),
      Equals("[store] no rank has set \"never\" at 127.0.0.1:" + std::to_string(server.port()) + " after 0.02 s"));
}

TEST_CASE("many clients of the store count together, from threads and from processes") {
  StoreServer server("127.0.0.1", 0);
  auto count = [&](int n) {
    Store store("127.0.0.1", server.port(), 20s);
    for (int i = 0; i < n; ++i) store.add("n", 1);
  };
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) children.push_back(process([&] { count(100); }));
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { count(100); });
  Store shared("127.0.0.1", server.port(), 20s);
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int k = 0; k < 100; ++k) shared.add("n", 1);
    });
  for (std::thread& t : threads) t.join();
  for (pid_t child : children) CHECK(result_of(child) == 0);
  CHECK(shared.add("n", 0) == 1600);
  auto start = std::chrono::steady_clock::now();
  server.wait_for_goodbyes(12, 20s);
  CHECK(std::chrono::steady_clock::now() - start < 10s);
  server.wait_for_goodbyes(13, 20ms);  // one is still here
}

TEST_CASE("a client that is killed leaves its last will, and one that ends well does not") {
  StoreServer server("127.0.0.1", 0);
  Store store("127.0.0.1", server.port(), 10s);
  auto client = [&](bool stays) {
    return process([&, stays] {
      Store mine("127.0.0.1", server.port(), 10s);
      mine.last_will("end", stays ? "killed" : "left");
      mine.add("ready", 1);
      if (stays) pause();
    });
  };
  CHECK(result_of(client(false)) == 0);
  server.wait_for_goodbyes(1, 10s);
  CHECK_FALSE(store.try_get("end"));
  pid_t child = client(true);
  while (store.add("ready", 0) < 2) std::this_thread::sleep_for(1ms);
  CHECK_FALSE(store.try_get("end"));
  kill(child, SIGKILL);
  CHECK(result_of(child) == -SIGKILL);
  CHECK(store.get("end", 10s) == "killed");
}

TEST_CASE("law 9: a store that cannot be reached or answered is an error") {
  int taken = 0;
  Listener foreign(&taken);
  CHECK_THROWS_WITH(StoreServer("127.0.0.1", taken), Equals("[store] port " + std::to_string(taken) +
                                                            " is in use: set MASTER_PORT to a free one, the same for "
                                                            "all ranks"));
  int port = 0;
  {
    StoreServer server("127.0.0.1", 0);
    port = server.port();
  }
  CHECK_THROWS_WITH(Store("127.0.0.1", port, 30ms),
                    Contains("[store] nobody listens at 127.0.0.1:" + std::to_string(port) + " after 0.03 s") &&
                        Contains("refused") && Contains("is rank 0 running, and are MASTER_ADDR and MASTER_PORT its"));
  CHECK_THROWS_WITH(Store("no.such.host.invalid", 1, 10ms), Contains("nobody listens at no.such.host.invalid:1"));

  CHECK_THROWS_WITH(Store("127.0.0.1", taken, 50ms), Contains("[store] no answer from 127.0.0.1:") &&
                                                         Contains("the host of rank 0, or the network, hangs"));
  foreign.answer("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
  CHECK_THROWS_WITH(Store("127.0.0.1", taken, 10s), Contains("[store] the connection to 127.0.0.1:") &&
                                                        Contains("is lost: rank 0 has ended, or something else"));

  auto server = std::make_unique<StoreServer>("127.0.0.1", 0);
  Store store("127.0.0.1", server->port(), 10s);
  Listener::send_to(server->port(), std::string(100, 'G'));  // a stranger is shown out; the others stay
  store.set("k", "v");
  CHECK_THROWS_WITH(store.set("k", std::string((size_t(1) << 30) + 1, 'x')),
                    Contains("[store] a value of 1073741825 bytes; at most 1073741824 are kept"));
  CHECK(store.try_get("k") == "v");
  server.reset();
  for (int i = 0; i < 2; ++i) CHECK_THROWS_WITH(store.try_get("k"), Contains("is lost: rank 0 has ended"));
  StoreServer again("127.0.0.1", 0);
  CHECK_THROWS_WITH(StoreServer("127.0.0.1", 1 << 20), Contains("[store] cannot listen on port 1048576"));
}

TEST_CASE("law 9: to a counter that is none, nothing is added") {
  StoreServer server("127.0.0.1", 0);
  Store store("127.0.0.1", server.port(), 10s);
  std::string where = "[store] 127.0.0.1:" + std::to_string(server.port());
  struct Case {
    std::string value;
    int64_t more;
  };
  for (auto [value, more] : {Case{"x", 1},
                             {"", 1},
                             {"1x", 1},
                             {" 1", 1},
                             {"9223372036854775807", 1},
                             {"-2", INT64_MIN},
                             {"99999999999999999999", 0}}) {
    store.set("k", value);
    CHECK_THROWS_WITH(store.add("k", more),
                      Equals(where + " cannot add " + std::to_string(more) + " to \"k\", which is \"" + value +
                             "\": they make no number of 64 bits"));
    CHECK(store.try_get("k") == value);  // the server lives, and the client can go on
  }
  store.set("k", std::string(100'000, '7'));
  CHECK_THROWS_WITH(store.add("k", 1), Contains("which is \"" + std::string(40, '7') + "\": "));
}

TEST_CASE("law 9: a client for which the store has no file is told so, and the others are served") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  auto seconds_of_cpu = [] {
    rusage u{};
    getrusage(RUSAGE_SELF, &u);
    return double(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + double(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
  };
  pid_t child = process([&] {
    rlimit files{40, 40};
    check(setrlimit(RLIMIT_NOFILE, &files) == 0, "setrlimit");
    StoreServer server("127.0.0.1", 0);
    int port = server.port();
    check(write(ends[1], &port, sizeof port) == sizeof port, "write");
    double before = seconds_of_cpu();
    Store mine("127.0.0.1", port, 10s);
    mine.get("end", 60s);
    check(seconds_of_cpu() - before < 0.5, "the server spins");
  });
  int port = 0;
  REQUIRE(read(ends[0], &port, sizeof port) == sizeof port);
  close(ends[0]), close(ends[1]);
  std::vector<std::unique_ptr<Store>> clients;
  auto connect = [&] { clients.push_back(std::make_unique<Store>("127.0.0.1", port, 10s)); };
  std::string error;
  while (error.empty() && clients.size() < 40) try {
      connect();
    } catch (const Error& e) {
      error = e.what();
    }
  CHECK(clients.size() > 20);
  CHECK_THAT(error,
             Equals("[store] 127.0.0.1:" + std::to_string(port) +
                    " has no room for another client: its process, that of rank 0, may open 40 files; raise that "
                    "with `ulimit -n` to more than the number of ranks"));
  std::vector<std::thread> threads;  // who comes at once is told in turn
  std::atomic<int> told = 0;
  for (int i = 0; i < 5; ++i)
    threads.emplace_back([&] {
      try {
        Store("127.0.0.1", port, 10s);
      } catch (const Error& e) {
        told += std::string(e.what()) == error;
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(told == 5);
  for (auto& c : clients) CHECK(c->add("n", 1) > 0);
  clients.pop_back(), clients.pop_back();  // their room is free
  clients[0]->get("n", 10s);
  CHECK_NOTHROW(connect());
  std::this_thread::sleep_for(300ms);  // in which a server could spin
  clients[0]->set("end", "");
  CHECK(result_of(child) == 0);
}

TEST_CASE("the store may start after its clients, and start again at its port") {
  int port = 0;
  {
    StoreServer server("127.0.0.1", 0);
    port = server.port();
    Store("127.0.0.1", port, 10s).set("k", "old");
  }
  std::thread client([&] { Store("127.0.0.1", port, 10s).set("k", "new"); });
  std::this_thread::sleep_for(30ms);
  StoreServer server("127.0.0.1", port);
  Store store("127.0.0.1", port, 10s);
  CHECK(store.get("k", 10s) == "new");
  client.join();
}
