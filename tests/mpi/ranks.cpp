// ranks CASE: what mpi_test runs under mpirun, in every process. Prints "fine" on rank 0, or what went wrong.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <map>

#include "dtensor/comm/deadline.h"
#include "dtensor/mpi/launch_mpi.h"
#include "tests/dtensor/collectives.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;

namespace {

Tensor room(int64_t n, DType dtype = DType::f32) { return Tensor::zeros(heap, dtype, {n}); }
void all_reduce(Communicator& c, int64_t n) { c.all_reduce({{room(n), room(n)}}, Reduce::sum).wait(); }

void collectives(Rank& rank) {
  Communicator& c = rank.communicator();
  for (int64_t size : {0, 1, 4, 1000, 5000}) all_collectives<float>(c, {size}, 1);
  all_collectives<float>(c, {0, 1, 4, 1000, 2048, 2049, 5000, 0}, 2);
  all_collectives<double>(c, {7, 3000}, 3);
  all_collectives<int64_t>(c, {7, 3000}, 4);
  all_collectives<bool>(c, {7, 3000}, 5);
}

// Groups that have ranks in common, whose collectives are waited for in another order on every second rank.
void split(Rank& rank) {
  Communicator& world = rank.communicator();
  int n = world.size(), me = world.rank(), half = n / 2;
  RankGrid row = RankGrid(me / half * half).with(half, 1), column = RankGrid(me % half).with(2, half);
  auto a = world.split(row), b = world.split(column), c = world.split(RankGrid(n - 1).with(n, -1));
  check(c->rank() == n - 1 - me, "ranks in the order given");
  for (int64_t size : {3, 10000})  // one stage, two stages
    for (int round = 0; round < 20; ++round) {
      Tensor in(heap, DType::i64, {size}), x(heap, DType::i64, {size}), y(heap, DType::i64, {size});
      Tensor z(heap, DType::i64, {size * n});
      fill(in, me + 100 * round);
      std::vector<Work> work;
      work.push_back(a->all_reduce({{in, x}}, Reduce::sum));
      work.push_back(b->all_reduce({{in, y}}, Reduce::sum));
      work.push_back(c->all_gather({{in, z, std::vector<int64_t>(size_t(n), size)}}));
      if (me % 2) std::reverse(work.begin(), work.end());
      for (Work& w : work) w.wait();
      int64_t row_sum = 0;
      for (int r : row.list()) row_sum += r + 100 * round;
      check(x.data<int64_t>()[2] == row_sum, "the row's sum");
      check(y.data<int64_t>()[2] == column[0] + column[1] + 200 * round, "the column's sum");
      for (int r = 0; r < n; ++r)
        check(z.data<int64_t>()[size * r] == n - 1 - r + 100 * round, "pieces in the order of ranks");
    }
}

// There are tags for 511 communicators besides the world's; the next is an error on all ranks, and the others go on.
void many_groups(Rank& rank) {
  Communicator& world = rank.communicator();
  RankGrid all = RankGrid(0).with(world.size(), 1);
  std::shared_ptr<Communicator> last;
  for (int i = 0; i < 511; ++i) last = world.split(all);
  all_reduce(*last, 4);
  std::string error = "none";
  try {
    world.split(all);
  } catch (const Error& e) {
    error = e.what();
  }
  check(error == "[split] 511 communicators are all that there are tags for: make meshes once, not in each step",
        "the error is \"{}\"", error);
  all_reduce(*last, 4);
}

void lanes(Rank& rank) {
  Communicator& c = rank.communicator();
  int me = c.rank(), n = c.size();
  auto value = [](int from, int to, int k) { return double(100 * from + 10 * to + 1000 * k); };
  for (int64_t size : {1, 100000}) {
    std::vector<Work> work;
    std::vector<std::pair<Tensor, double>> wanted;
    for (int peer : {(me + 1) % n, (me + n - 1) % n})
      for (int k = 0; k < 200; k += size == 1 ? 1 : 50) {
        Tensor in = room(size);
        fill(in, value(me, peer, k));
        work.push_back(c.send({in, room(0)}, peer));
        wanted.emplace_back(room(size), value(peer, me, k));
        work.push_back(c.receive({wanted.back().first, room(0)}, peer));
      }
    c.barrier();  // collectives are apart from lanes
    std::reverse(work.begin(), work.end());
    for (Work& w : work) w.wait();
    for (auto& [tensor, want] : wanted) check(element(tensor, size - 1) == want, "what the other gave");
  }
  for (int distance : {0, 1, -1, n + 1}) {
    Tensor in = room(5), out = room(5);
    fill(in, me);
    c.shift({{in, out}}, distance).wait();
    check(element(out, 4) == double(((me - distance) % n + n) % n), "what the rank before gave");
  }
}

// What is begun and dropped, also while an exception passes, is no trouble for what comes later.
void dropped(Rank& rank) {
  Communicator& c = rank.communicator();
  { Work w = c.all_reduce({{room(5000), room(5000)}}, Reduce::sum); }
  try {
    Work w = c.all_reduce({{room(5000), room(5000)}}, Reduce::sum);
    fail("something");
  } catch (const Error&) {
  }
  all_reduce(c, 5000);
}

// More elements than MPI can count. Two gigabytes on each rank.
void large(Rank& rank) {
  Communicator& c = rank.communicator();
  int64_t n = (int64_t(1) << 31) + 10;
  Tensor t(heap, DType::boolean, {n});
  if (c.rank() == 0) fill(t, 1);
  c.rank() == 0 ? c.send({t}, 1).wait() : c.receive({t}, 0).wait();
  check(element(t, n - 1) == 1 && element(t, n / 2) == 1, "all elements have come");
}

void in_module(Rank& rank, const std::function<void()>& f) {
  LabelScope module(rank, Label::Kind::module, "model.norm");
  f();
}

// mpirun sends SIGTERM to all when one is gone; llama_pretrain ends its step then.
void outlive_sigterm() { signal(SIGTERM, SIG_IGN); }

// One rank is the odd one out, rank 1.
void killed(Rank& rank) {
  outlive_sigterm();
  all_reduce(rank.communicator(), 4);
  if (rank.rank() == 1) raise(SIGKILL);
  in_module(rank, [&] { all_reduce(rank.communicator(), 8); });
}
void first_killed(Rank& rank) {
  outlive_sigterm();
  all_reduce(rank.communicator(), 4);
  if (rank.rank() == 0) raise(SIGKILL);
  in_module(rank, [&] { all_reduce(rank.communicator(), 8); });
}
void sleeps(Rank& rank) {
  all_reduce(rank.communicator(), 4);
  if (rank.rank() == 1) std::this_thread::sleep_for(1h);
  in_module(rank, [&] { all_reduce(rank.communicator(), 8); });
}
void throws(Rank& rank) {
  in_module(rank, [&] { all_reduce(rank.communicator(), 4); });
  check(rank.rank() != 1, "[throws] the disk is full");
  all_reduce(rank.communicator(), 8);
}
void disagrees(Rank& rank) {
  in_module(rank, [&] { all_reduce(rank.communicator(), rank.rank() == 1 ? 5 : 3000); });
}
void disagrees_in_bytes(Rank& rank) {
  std::vector<int64_t> two(size_t(rank.world()), 2), gets = two;
  if (rank.rank() == 1) gets[0] = 3;
  rank.communicator().all_to_all({{room(20), room(20), two, gets}}).wait();
}
void returns(Rank& rank) {
  all_reduce(rank.communicator(), 4);
  if (rank.rank() != 1) in_module(rank, [&] { all_reduce(rank.communicator(), 8); });
}
void sleeps_at_the_end(Rank& rank) {
  all_reduce(rank.communicator(), 4);
  if (rank.rank() == 1) std::this_thread::sleep_for(1h);
}
// After the last word of its function, when what its rank holds ends.
void sleeps_in_teardown(Rank& rank) {
  all_reduce(rank.communicator(), 4);
  if (rank.rank() == 1) rank.ops_state = std::shared_ptr<void>(nullptr, [](void*) { std::this_thread::sleep_for(1h); });
}
void meta(Rank& rank) {
  Tensor t = Tensor::placeholder(DType::f32, {4});
  rank.communicator().all_reduce({{t, t}}, Reduce::sum).wait();
}

const std::map<std::string, void (*)(Rank&)> cases = {{"collectives", collectives},
                                                      {"split", split},
                                                      {"many_groups", many_groups},
                                                      {"lanes", lanes},
                                                      {"dropped", dropped},
                                                      {"large", large},
                                                      {"killed", killed},
                                                      {"first_killed", first_killed},
                                                      {"sleeps", sleeps},
                                                      {"throws", throws},
                                                      {"disagrees", disagrees},
                                                      {"disagrees_in_bytes", disagrees_in_bytes},
                                                      {"returns", returns},
                                                      {"sleeps_at_the_end", sleeps_at_the_end},
                                                      {"sleeps_in_teardown", sleeps_in_teardown},
                                                      {"meta", meta}};

}  // namespace

// ranks CASE DEADLINE_IN_SECONDS LARGEST_MESSAGE
int main(int, char** argv) {
  try {
    int first = 0;
    launch_mpi(
        [&](Rank& rank) {
          cases.at(argv[1])(rank);
          first = rank.rank() == 0;
        },
        {.deadline = milliseconds_of(std::atof(argv[2])), .largest_message = std::atoll(argv[3])});
    if (first) std::puts("fine");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
