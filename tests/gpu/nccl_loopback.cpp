// Several real NCCL ranks on one GPU: a process per rank, each with an NCCL_HOSTID of its own, so that NCCL takes them
// for hosts and talks over loopback sockets. It shows the protocol (init, split, groups, graphs, the end of a peer, the
// deadline) and the results of all collectives, on the world and along the axes of a mesh, of messages both ways at
// once and of shifts; it shows nothing of NVLink, and no speed.
//     nccl_loopback [RANKS]    3 unless given. Exit status: 0 all is well, 1 something is not, 2 there is no GPU.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <thread>

#include "dtensor/launch.h"
#include "dtensor/launch_nccl.h"
#include "dtensor/point_to_point.h"

using namespace dtensor;
using namespace std::chrono_literals;

namespace {

constexpr int no_gpu = 2;

double given(int rank, int64_t i) { return double(rank + 1 + i % 7); }

Tensor made(Rank& r, DType t, int64_t n, int rank) {
  Tensor x(r.allocator(), t, {n});
  write_on_host(x, [&](const Tensor& host) {
    for (int64_t i = 0; i < n; ++i) fill(host.narrow(0, i, 1), given(rank, i));
  });
  return x;
}
Tensor room(Rank& r, DType t, int64_t n) { return Tensor::zeros(r.allocator(), t, {n}); }

template <class F>
void expect(const Tensor& got, F want, const std::string& what) {
  Tensor host = got.cpu();
  for (int64_t i = 0; i < host.numel(); ++i)
    check(element(host, i) == want(i), "{}: element {} is {}, not {}", what, i, element(host, i), want(i));
}

// All collectives of a communicator on pieces of counts[r] elements; values are small whole numbers, so sums are exact.
void all_collectives(Rank& rank, Communicator& c, const std::vector<int>& ranks, DType t, std::vector<int64_t> counts) {
  int me = c.rank(), n = c.size();
  std::vector<int64_t> at(size_t(n) + 1);
  for (int r = 0; r < n; ++r) at[size_t(r) + 1] = at[size_t(r)] + counts[size_t(r)];
  int64_t all = at.back(), mine = counts[size_t(me)];
  auto sum = [&](int64_t i) {
    double s = 0;
    for (int r : ranks) s += given(r, i);
    return s;
  };
  std::string what = fmt::format("{} of {} on {} ranks", name(t), all, n);
  Tensor in = made(rank, t, all, ranks[size_t(me)]);
  Buffers reduce{in, room(rank, t, all)}, most{in, room(rank, t, all)}, scatter{in, room(rank, t, mine), counts};
  c.all_reduce({reduce, reduce}, Reduce::sum).wait();
  c.all_reduce({most}, Reduce::max).wait();
  c.reduce_scatter({scatter}, Reduce::sum).wait();
  expect(reduce.out, sum, "all_reduce " + what);
  expect(
      most.out, [&](int64_t i) { return given(*std::max_element(ranks.begin(), ranks.end()), i); }, "max " + what);
  expect(
      scatter.out, [&](int64_t i) { return sum(at[size_t(me)] + i); }, "reduce_scatter " + what);
  Buffers gather{made(rank, t, mine, ranks[size_t(me)]), room(rank, t, all), counts};
  c.all_gather({gather}).wait();
  for (int r = 0; r < n; ++r)
    expect(
        gather.out.narrow(0, at[size_t(r)], counts[size_t(r)]), [&](int64_t i) { return given(ranks[size_t(r)], i); },
        "all_gather " + what);
  std::vector<int64_t> taken(size_t(n), mine);
  Buffers exchange{in, room(rank, t, mine * n), counts, taken};
  c.all_to_all({exchange}).wait();
  for (int r = 0; r < n; ++r)
    expect(
        exchange.out.narrow(0, mine * r, mine), [&](int64_t i) { return given(ranks[size_t(r)], at[size_t(me)] + i); },
        "all_to_all " + what);
}

// Both ways at once along every axis, and around it.
void messages(Rank& rank, const DeviceMesh& mesh) {
  for (int a = 0; a < mesh.shape().axes(); ++a) {
    int n = mesh.shape().size(a), me = mesh.coordinate(a);
    std::string_view axis = mesh.shape().name(a);
    std::vector<int> ranks = mesh.ranks(axis_bit(a)).list();
    for (int64_t size : {0, 1, 100000}) {
      for (int peer : {(me + 1) % n, (me + n - 1) % n}) {
        if (peer == me) continue;
        Tensor got = room(rank, DType::f32, size);
        Work sent = send(mesh, axis, peer, {made(rank, DType::f32, size, rank.rank())}),
             received = receive(mesh, axis, peer, {got});
        sent.wait(), received.wait();
        expect(
            got, [&](int64_t i) { return given(ranks[size_t(peer)], i); }, fmt::format("receive along {}", axis));
      }
      for (int distance : {1, -1}) {
        Tensor got = room(rank, DType::f32, size);
        int from = ((me - distance) % n + n) % n;
        shift(mesh, axis, distance, {made(rank, DType::f32, size, rank.rank())}, {got}).wait();
        expect(
            got, [&](int64_t i) { return given(ranks[size_t(from)], i); }, fmt::format("shift along {}", axis));
      }
    }
  }
}

// Meshes of as many axes as the ranks allow.
std::vector<std::string> meshes_of(int n) {
  std::vector<std::string> texts{fmt::format("dp={}", n), fmt::format("dp=1,tp={}", n)};
  for (int tp = 2; tp < n; ++tp)
    if (n % tp == 0) texts.push_back(fmt::format("dp={},tp={}", n / tp, tp));
  return texts;
}

void results(Rank& rank) {
  int n = rank.world();
  for (const std::string& text : meshes_of(n)) {
    DeviceMesh mesh(rank, text);
    messages(rank, mesh);
    for (AxisSet axes = 1; axes <= mesh.shape().all(); ++axes) {
      std::vector<int> ranks = mesh.ranks(axes).list();
      Communicator& c = mesh.communicator(axes);
      for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64})
        for (int64_t size : {0, 1, 1000}) {
          std::vector<int64_t> even(ranks.size(), size), uneven;
          for (size_t r = 0; r < ranks.size(); ++r) uneven.push_back(size * int64_t(r));
          all_collectives(rank, c, ranks, t, even);
          all_collectives(rank, c, ranks, t, uneven);
        }
      c.barrier();
    }
  }
  // In a graph, launched more than once.
  Communicator& c = rank.communicator();
  Buffers b{made(rank, DType::f32, 1000, rank.rank()), room(rank, DType::f32, 1000)};
  cuda::StreamHandle stream = rank.allocator()->stream();
  rank.synchronize();
  std::unique_ptr<CapturedGraph> graph = c.capture(stream, [&] { c.all_reduce({b}, Reduce::sum).wait(); });
  for (double v : {2, 3}) {
    fill(b.in, v);
    graph->launch(stream);
    expect(
        b.out, [&](int64_t) { return v * n; }, "all_reduce in a graph");
  }
}

void endless(Rank& rank) {
  Buffers b{made(rank, DType::f32, 1000, rank.rank()), room(rank, DType::f32, 1000)};
  for (;;) {
    rank.communicator().all_reduce({b}, Reduce::sum).wait();
    rank.synchronize();
  }
}

struct Scenario {
  const char* name;
  std::function<void(Rank&)> program;
  int victim = -1;         // rank that is killed when all are at work
  const char* error = "";  // part of what each surviving rank throws; "" where all end well
};

// 0 where the rank ended as the scenario says.
int run_rank(const Scenario& s, int rank, int ranks, int port) {
  for (auto [name, value] : std::initializer_list<std::pair<const char*, const char*>>{{"NCCL_NET", "Socket"},
                                                                                       {"NCCL_SOCKET_IFNAME", "lo"},
                                                                                       {"NCCL_IB_DISABLE", "1"},
                                                                                       {"NCCL_P2P_DISABLE", "1"},
                                                                                       {"NCCL_SHM_DISABLE", "1"},
                                                                                       {"NCCL_MAX_CTAS", "2"},
                                                                                       {"NCCL_PROTO", "Simple"}})
    setenv(name, value, 1);
  setenv("NCCL_HOSTID", fmt::format("loopback-{}", rank).c_str(), 1);
  if (std::string why = cuda::unavailable(); !why.empty()) {
    if (rank == 0) std::cerr << "nccl_loopback: " << why << "\n";
    return no_gpu;
  }
  std::string error;
  auto start = std::chrono::steady_clock::now();
  try {
    NcclLaunchOptions options;
    options.nccl.deadline = s.victim >= 0 || *s.error ? 20s : 120s;
    options.nccl.flight_recorder_folder =
        fmt::format("{}/nccl_loopback", std::filesystem::temp_directory_path().string());
    launch_nccl({rank, ranks, rank, ranks, "127.0.0.1", port, "nccl_loopback"}, s.program, options);
  } catch (const std::exception& e) {
    error = e.what();
  }
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  bool right = *s.error ? error.find(s.error) != std::string::npos : error.empty();
  std::cout << fmt::format("{}: rank {} {} after {:.1f} s: {}\n", s.name, rank,
                           right ? "ends as it should" : "is WRONG", seconds, error.empty() ? "no error" : error)
            << std::flush;
  return right ? 0 : 1;
}

int play(const Scenario& s, int ranks) {
  int port = StoreServer("127.0.0.1", 0).port();
  std::vector<pid_t> children;
  for (int r = 0; r < ranks; ++r) {
    pid_t child = fork();  // nobody has used CUDA yet
    if (child == 0) _exit(run_rank(s, r, ranks, port));
    children.push_back(child);
  }
  if (s.victim >= 0) {
    std::this_thread::sleep_for(15s);  // long enough for NCCL to begin
    kill(children[size_t(s.victim)], SIGKILL);
  }
  int result = 0;
  for (int r = 0; r < ranks; ++r) {
    int status = 0;
    waitpid(children[size_t(r)], &status, 0);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : r == s.victim ? 0 : 1;
    result = result == no_gpu || code == no_gpu ? no_gpu : std::max(result, code);
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  int ranks = argc > 1 ? std::atoi(argv[1]) : 3;
  if (ranks < 2) {
    std::cerr << "nccl_loopback: " << ranks << " ranks; at least 2 are needed\n";
    return 1;
  }
  auto late = [](Rank& rank) {
    if (rank.rank() == 1) std::this_thread::sleep_for(25s);
    in_rank_order(rank, [] {});
  };
  int worst = 0;
  for (const Scenario& s : std::vector<Scenario>{
           {"results", results},
           {"a rank throws", [](Rank& rank) { check(rank.rank() != 1, "the disk is full"), endless(rank); }, -1,
            "the disk is full"},
           {"a rank is killed", endless, ranks - 1, "killed perhaps"},
           {"rank 0 is killed", endless, 0, "failed: "},
           {"a rank does not come", late, -1, "waits for rank 1, which has not begun it"},
           {"a rank ends early",
            [](Rank& rank) {
              if (rank.rank() != 1) endless(rank);
            },
            -1, "rank 1 has ended (its function returned)"},
       }) {
    int result = play(s, ranks);
    if (result == no_gpu) return no_gpu;
    worst = std::max(worst, result);
  }
  return worst;
}
