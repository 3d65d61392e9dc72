#include "dtensor/comm/store.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <list>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dtensor/local/thread_pool.h"
#include "placement/error.h"

namespace dtensor {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Before every request: its key and value follow. Before every reply: its value follows.
struct Header {
  uint32_t magic = 0xd7e05001;  // tells what is no store, and another version of this one
  uint32_t what = 0;            // a What; in a reply, an Answer
  uint64_t key_bytes = 0, value_bytes = 0;
};
enum What : uint32_t { hello, set_value, get_value, set_if_none, add_number, leave_will, goodbye };
enum Answer : uint32_t { no_value, a_value, refused };  // refused: the value says why
constexpr uint64_t largest = uint64_t(1) << 30;         // of a key or value: more is no request of ours

std::string frame(Header h, std::string_view key, std::string_view value) {
  h.key_bytes = key.size(), h.value_bytes = value.size();
  std::string bytes(reinterpret_cast<const char*>(&h), sizeof h);
  return bytes.append(key).append(value);
}

struct Socket {
  int fd = -1;
  explicit Socket(int f = -1) : fd(f) {}
  Socket(Socket&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd, other.fd);
    return *this;
  }
  ~Socket() {
    if (fd >= 0) close(fd);
  }
};

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// `host` empty: every interface. Null where there is none; `why` then says so.
Addresses resolve(const std::string& host, int port, std::string* why) {
  addrinfo hints{}, *list = nullptr;
  if (port < 0 || port > 65535) return *why = "there is no such port", Addresses(nullptr, freeaddrinfo);
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (host.empty() ? AI_PASSIVE : 0);
  int e = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (e) *why = e == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(e);
  return Addresses(e ? nullptr : list, freeaddrinfo);
}

bool is_loopback(const addrinfo& a) {
  if (a.ai_family == AF_INET)
    return ntohl(reinterpret_cast<const sockaddr_in*>(a.ai_addr)->sin_addr.s_addr) >> 24 == 127;
  return a.ai_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(a.ai_addr)->sin6_addr);
}

in_port_t& port_of(sockaddr* a) {
  return a->sa_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(a)->sin6_port
                                  : reinterpret_cast<sockaddr_in*>(a)->sin_port;
}

int milliseconds_until(Clock::time_point t) {
  auto left = std::chrono::ceil<milliseconds>(t - Clock::now()).count();
  return int(std::clamp<int64_t>(left, 0, 1 << 30));
}

// Waits for the socket; false after `until`.
bool ready(int fd, short events, Clock::time_point until) {
  pollfd p{fd, events, 0};
  for (;;) {
    int n = poll(&p, 1, milliseconds_until(until));
    if (n > 0) return true;
    if (n < 0 ? errno != EINTR : Clock::now() >= until) return false;
  }
}

std::optional<int64_t> number_of(std::string_view text) {
  int64_t n = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(n) : std::nullopt;
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

struct StoreServer::Sockets {
  struct Client {
    Socket socket;
    std::string in = {}, out = {};
    std::string will_key = {}, will = {};  // no will: an empty key
    bool one_too_many = false, told = false, ended = false;
  };
  std::vector<Socket> listening;
  Socket stop{eventfd(0, EFD_CLOEXEC)};
  // A file kept for the client that is one too many, so that it can be told. While one is, the others wait.
  Socket spare{eventfd(0, EFD_CLOEXEC)};
  std::list<Client> clients;
  std::unordered_map<std::string, std::string> values;

  void listen_at(addrinfo& a, int& port);
  void answer(Client& c);
  std::string reply(Client& c, uint32_t what, const std::string& key, std::string value);
  void receive(Client& c);
  void send_out(Client& c);
  void accept_from(int listener);
};

void StoreServer::Sockets::listen_at(addrinfo& a, int& port) {
  Socket s(socket(a.ai_family, a.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a.ai_protocol));
  if (s.fd < 0) return;  // a kernel without IPv6
  int yes = 1;
  setsockopt(s.fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (a.ai_family == AF_INET6) setsockopt(s.fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
  port_of(a.ai_addr) = htons(in_port_t(port));
  if (bind(s.fd, a.ai_addr, a.ai_addrlen) || listen(s.fd, SOMAXCONN)) {
    check(errno != EADDRINUSE, "[store] port {} is in use: set MASTER_PORT to a free one, the same for all ranks",
          port);
    return;  // a host without an address of this family
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  getsockname(s.fd, reinterpret_cast<sockaddr*>(&bound), &size);
  port = ntohs(port_of(reinterpret_cast<sockaddr*>(&bound)));
  listening.push_back(std::move(s));
}

StoreServer::StoreServer(const std::string& host, int port) : sockets_(std::make_unique<Sockets>()), port_(port) {
  std::string why;
  Addresses at = resolve(host, port, &why);
  bool local = at != nullptr;
  for (addrinfo* a = at.get(); a; a = a->ai_next) local &= is_loopback(*a);
  if (!local) at = resolve("", port, &why);
  for (addrinfo* a = at.get(); a; a = a->ai_next) sockets_->listen_at(*a, port_);
  check(!sockets_->listening.empty(), "[store] cannot listen on port {}: {}", port,
        at ? std::strerror(errno) : why.c_str());
  check(sockets_->stop.fd >= 0 && sockets_->spare.fd >= 0, "[store] cannot listen on port {}: {}", port,
        std::strerror(EMFILE));
  thread_ = start_thread("store", [this] { serve(); });
}

StoreServer::~StoreServer() {
  eventfd_write(sockets_->stop.fd, 1);
  thread_.join();
}

void StoreServer::wait_for_goodbyes(int clients, milliseconds limit) const {
  for (auto until = time_after(limit); gone_ < clients && Clock::now() < until;)
    std::this_thread::sleep_for(milliseconds(2));
}

void StoreServer::serve() {
  Sockets& s = *sockets_;
  constexpr int a_second = 1000;
  for (;;) {
    if (s.spare.fd < 0) s.spare = Socket(eventfd(0, EFD_CLOEXEC));
    bool listens = s.spare.fd >= 0;
    std::vector<pollfd> polled{{s.stop.fd, POLLIN, 0}};
    for (Socket& l : s.listening) polled.push_back({listens ? l.fd : -1, POLLIN, 0});
    for (Sockets::Client& c : s.clients)
      polled.push_back({c.socket.fd, short(c.out.empty() ? POLLIN : POLLIN | POLLOUT), 0});
    int ready = poll(polled.data(), polled.size(), listens ? -1 : a_second);
    if (ready < 0) continue;  // interrupted
    if (polled[0].revents) return;
    size_t at = 1 + s.listening.size();
    for (auto c = s.clients.begin(); c != s.clients.end();) {
      if (short events = polled[at++].revents) {
        if (events & ~POLLOUT) s.receive(*c);
        s.answer(*c);
        s.send_out(*c);
      }
      if (c->one_too_many) c->ended |= ready == 0 || (c->told && c->out.empty());
      if (c->ended) {
        if (!c->will_key.empty()) s.values.try_emplace(c->will_key, c->will);
        if (!c->one_too_many) ++gone_;
        c = s.clients.erase(c);
      } else {
        ++c;
      }
    }
    for (size_t i = 0; i < s.listening.size(); ++i)
      if (polled[1 + i].revents && s.spare.fd >= 0) s.accept_from(s.listening[i].fd);
  }
}

void StoreServer::Sockets::accept_from(int listener) {
  auto next = [&] { return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); };
  int fd = next();
  bool full = fd < 0 && (errno == EMFILE || errno == ENFILE);
  if (full) {
    spare = Socket();
    fd = next();
  }
  if (fd >= 0)
    clients.push_back({.socket = Socket(fd), .one_too_many = full});
  else if (!would_block() && errno != ECONNABORTED)
    std::this_thread::sleep_for(milliseconds(10));  // it is still there, and asking at once again would not help
}

void StoreServer::Sockets::receive(Client& c) {
  char bytes[1 << 16];
  ssize_t n = recv(c.socket.fd, bytes, sizeof bytes, 0);
  if (n > 0)
    c.in.append(bytes, size_t(n));
  else if (n == 0 || !would_block())
    c.ended = true;
}

// All requests that have come in full.
void StoreServer::Sockets::answer(Client& c) {
  size_t at = 0;
  while (!c.ended && c.in.size() - at >= sizeof(Header)) {
    Header h;
    std::memcpy(&h, c.in.data() + at, sizeof h);
    if (h.magic != Header().magic || h.key_bytes > largest || h.value_bytes > largest) {
      c.ended = true;  // not one of ours
      break;
    }
    if (c.in.size() - at - sizeof h < h.key_bytes + h.value_bytes) break;
    at += sizeof h;
    std::string key = c.in.substr(at, h.key_bytes), value = c.in.substr(at + h.key_bytes, h.value_bytes);
    at += h.key_bytes + h.value_bytes;
    c.out += reply(c, h.what, key, std::move(value));
  }
  c.in.erase(0, at);
}

std::string StoreServer::Sockets::reply(Client& c, uint32_t what, const std::string& key, std::string value) {
  Header h;
  if (c.one_too_many) {
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    c.told = true;
    return frame({.what = refused}, {},
                 fmt::format("has no room for another client: its process, that of rank 0, may open {} files; raise "
                             "that with `ulimit -n` to more than the number of ranks",
                             files.rlim_cur));
  }
  switch (what) {
    case set_value:
      values[key] = std::move(value);
      break;
    case get_value:
      if (auto it = values.find(key); it != values.end()) h.what = a_value, value = it->second;
      break;
    case set_if_none:
      value = values.try_emplace(key, std::move(value)).first->second;
      return frame(h, {}, value);
    case add_number: {
      std::string& number = values.try_emplace(key, "0").first->second;
      auto now = number_of(number), more = number_of(value);
      int64_t sum = 0;
      if (!now || !more || __builtin_add_overflow(*now, *more, &sum))
        return frame({.what = refused}, {},
                     fmt::format("cannot add {} to \"{}\", which is \"{:.40}\": they make no number of 64 bits", value,
                                 key, number));
      return frame(h, {}, number = std::to_string(sum));
    }
    case leave_will:
      c.will_key = key, c.will = std::move(value);
      break;
    case goodbye:
      c.will_key.clear();
      break;
    default:  // hello
      break;
  }
  return frame(h, {}, h.what == a_value ? value : std::string_view());
}

void StoreServer::Sockets::send_out(Client& c) {
  size_t sent = 0;
  while (!c.ended && sent < c.out.size()) {
    ssize_t n = send(c.socket.fd, c.out.data() + sent, c.out.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && would_block()) break;  // the rest when it can be written
    if (n <= 0)
      c.ended = true;
    else
      sent += size_t(n);
  }
  c.out.erase(0, sent);
}

namespace {

// A connection, or -1 and why not.
int connect_once(const std::string& host, int port, Clock::time_point until, std::string* why) {
  Addresses list = resolve(host, port, why);
  for (addrinfo* a = list.get(); a; a = a->ai_next) {
    Socket s(socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol));
    int error = errno;
    if (s.fd >= 0) {
      socklen_t size = sizeof error;
      if (connect(s.fd, a->ai_addr, a->ai_addrlen) == 0)
        error = 0;
      else if (errno != EINPROGRESS && errno != EINTR)
        error = errno;
      else if (!ready(s.fd, POLLOUT, std::min(until, Clock::now() + std::chrono::seconds(5))))
        error = ETIMEDOUT;
      else
        getsockopt(s.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) return std::exchange(s.fd, -1);
    *why = std::strerror(error);
  }
  return -1;
}

}  // namespace

Store::Store(const std::string& host, int port, milliseconds deadline)
    : where_(fmt::format("{}:{}", host, port)), deadline_(deadline) {
  auto until = time_after(deadline);
  std::string why;
  for (milliseconds pause(5); (socket_ = connect_once(host, port, until, &why)) < 0;
       pause = std::min(2 * pause, milliseconds(500))) {
    check(Clock::now() < until,
          "[store] nobody listens at {} after {} s ({}): is rank 0 running, and are MASTER_ADDR and MASTER_PORT its "
          "host and port?",
          where_, double(deadline.count()) / 1000, why);
    std::this_thread::sleep_for(std::min(pause, milliseconds(milliseconds_until(until))));
  }
  int yes = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  try {
    request(hello, {}, {}, until);
  } catch (...) {
    if (socket_ >= 0) close(socket_);
    throw;
  }
}

Store::~Store() {
  if (socket_ < 0) return;
  try {
    request(goodbye, {}, {}, Clock::now() + std::chrono::seconds(1));
  } catch (const Error&) {  // the server is gone already
  }
  if (socket_ >= 0) close(socket_);
}

void Store::set(const std::string& key, std::string_view value) { request(set_value, key, value); }

std::optional<std::string> Store::try_get(const std::string& key) {
  Reply r = request(get_value, key);
  return r.found ? std::optional(std::move(r.value)) : std::nullopt;
}

std::string Store::get(const std::string& key, milliseconds limit) {
  auto until = time_after(limit);
  for (milliseconds pause(1);; pause = std::min(2 * pause, milliseconds(50))) {
    if (auto value = try_get(key)) return *value;
    check(Clock::now() < until, "[store] no rank has set \"{}\" at {} after {} s", key, where_,
          double(limit.count()) / 1000);
    std::this_thread::sleep_for(std::min(pause, milliseconds(milliseconds_until(until))));
  }
}

std::string Store::set_if_absent(const std::string& key, std::string_view value) {
  return request(set_if_none, key, value).value;
}

int64_t Store::add(const std::string& key, int64_t n) {
  return std::stoll(request(add_number, key, std::to_string(n)).value);
}

void Store::last_will(const std::string& key, std::string_view value) { request(leave_will, key, value); }

// A request that fails leaves the connection somewhere inside a message, so it is closed.
Store::Reply Store::request(uint32_t what, std::string_view key, std::string_view value, Clock::time_point until) {
  std::lock_guard lock(mutex_);
  auto end = [&](bool lost) {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
    if (lost) fail("[store] the connection to {} is lost: rank 0 has ended, or something else listens there", where_);
    fail("[store] no answer from {} in time: the host of rank 0, or the network, hangs", where_);
  };
  auto transfer = [&](auto io, auto* bytes, size_t n, short events) {
    while (n > 0) {
      ssize_t done = io(socket_, bytes, n, MSG_NOSIGNAL);
      if (done > 0)
        bytes += done, n -= size_t(done);
      else if (done == 0 || !would_block())
        end(true);
      else if (!ready(socket_, events, until))
        end(false);
    }
  };
  if (socket_ < 0) end(true);
  check(key.size() <= largest && value.size() <= largest, "[store] a value of {} bytes; at most {} are kept",
        value.size(), largest);
  std::string message = frame({.what = what}, key, value);
  transfer(send, message.data(), message.size(), POLLOUT);
  Header h;
  transfer(recv, reinterpret_cast<char*>(&h), sizeof h, POLLIN);
  if (h.magic != Header().magic || h.value_bytes > largest) end(true);
  Reply reply{h.what == a_value, std::string(h.value_bytes, '\0')};
  transfer(recv, reply.value.data(), reply.value.size(), POLLIN);
  if (h.what == refused) fail("[store] {} {}", where_, reply.value);
  return reply;
}

}  // namespace dtensor
