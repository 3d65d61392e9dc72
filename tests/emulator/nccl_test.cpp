#include "dtensor/comm/nccl.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <fstream>
#include <numeric>
#include <set>

#include "dtensor/point_to_point.h"
#include "tests/dtensor/ranks.h"
#include "tests/emulator/emulator.h"
#include "tests/emulator/nccl_world.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
using nccl::Result;

namespace {

const auto heap = std::make_shared<Allocator>();

std::vector<int64_t> pieces(int64_t n, int ranks, uint64_t seed, bool even) {
  std::vector<int64_t> counts(size_t(ranks), even ? n / ranks : 0);
  for (int64_t i = 0; !even && i < n; ++i) ++counts[mix(seed + uint64_t(i / 3)) % uint64_t(ranks)];
  return counts;
}
int64_t sum(const std::vector<int64_t>& v) { return std::accumulate(v.begin(), v.end(), int64_t(0)); }

// Every collective, uneven and even, on a list of tensors; all results one after the other.
std::vector<double> all_collectives(Communicator& c, const std::shared_ptr<Allocator>& memory, DType t, bool averages) {
  int me = c.rank(), n = c.size();
  std::vector<double> results;
  auto keep = [&](const std::vector<Buffers>& list) {
    for (const Buffers& b : list) {
      Tensor host = b.out.cpu();
      for (int64_t i = 0; i < host.numel(); ++i) results.push_back(element(host, i));
    }
  };
  for (bool even : {true, false}) {
    std::vector<int64_t> sizes{0, int64_t(n), 5 * n, 301};
    if (even) sizes.back() = 300 * n;
    for (Reduce r : all_reductions) {
      if (r == Reduce::avg && !averages) continue;
      std::vector<Buffers> reduce, scatter;
      for (size_t k = 0; k < sizes.size(); ++k) {
        auto counts = pieces(sizes[k], n, k, even);
        reduce.push_back({made(memory, t, sizes[k], me, k), made(memory, t, sizes[k], me, k, true)});
        scatter.push_back({made(memory, t, sizes[k], me, k), made(memory, t, counts[size_t(me)], me, k, true), counts});
      }
      Work first = c.all_reduce(reduce, r), second = c.reduce_scatter(scatter, r);
      second.wait(), first.wait();
      keep(reduce), keep(scatter);
    }
    std::vector<Buffers> gather, exchange;
    for (size_t k = 0; k < sizes.size(); ++k) {
      auto counts = pieces(sizes[k], n, k, even);
      std::vector<int64_t> give, take;
      for (int q = 0; q < n; ++q) {
        give.push_back(pieces(sizes[k], n, k + 100 * size_t(me), even)[size_t(q)]);
        take.push_back(pieces(sizes[k], n, k + 100 * size_t(q), even)[size_t(me)]);
      }
      gather.push_back({made(memory, t, counts[size_t(me)], me, k), made(memory, t, sum(counts), me, k, true), counts});
      exchange.push_back({made(memory, t, sum(give), me, k), made(memory, t, sum(take), me, k, true), give, take});
    }
    c.all_gather(gather).wait();
    c.barrier();
    c.all_to_all(exchange).wait();
    keep(gather), keep(exchange);
  }
  return results;
}

}  // namespace

TEST_CASE("nccl: results are those of the threads communicator, on the world and on splits of it") {
  for (int n : {1, 2, 3, 4})
    for (int polls : {0, 3})
      for (DType t : {DType::f32, DType::f64, DType::i64, DType::boolean, DType::bf16}) {
        if (polls && t != DType::f32) continue;
        bool averages = t == DType::f32 || t == DType::f64;
        World world(n);
        world.fake.polls = polls;
        const std::vector<std::vector<double>> none(static_cast<size_t>(n));
        auto got = none, want = none, part_got = none, part_want = none;
        // The axes of a mesh of 2 rows, or of one where n is odd.
        int columns = n % 2 ? n : n / 2;
        auto row = [&](int rank) { return RankGrid(rank / columns * columns).with(columns, 1); };
        Strings errors = world.run([&](Own o) {
          auto me = size_t(o.comm.rank());
          got[me] = all_collectives(o.comm, o.memory, t, averages);
          auto part = o.comm.split(row(o.comm.rank()));
          part_got[me] = all_collectives(*part, o.memory, t, averages);
          auto reversed = o.comm.split(RankGrid(n - 1).with(n, -1));
          check(reversed->rank() == n - 1 - o.comm.rank() && reversed->size() == n, "another order");
          reduce({*reversed, o.memory});
          read(o);
        });
        CHECK(errors == Strings(size_t(n)));
        launch(n, [&](Rank& rank) {
          DeviceMesh mesh(rank, MeshShape({n / columns, columns}, {"row", "column"}));
          auto me = size_t(rank.rank());
          DType known = t == DType::bf16 ? DType::f32 : t;  // threads do not add bf16
          want[me] = all_collectives(rank.communicator(), heap, known, averages);
          part_want[me] = all_collectives(rank.communicator(row(rank.rank())), heap, known, averages);
        });
        INFO(n << " ranks of " << name(t));
        CHECK((got == want));
        CHECK((part_got == part_want));
        CHECK(world.fake.open() == 0);
        CHECK(world.fake.misuse() == "");
      }
}

TEST_CASE("nccl: a collective begins when its input has come from the host") {
  World world(2);
  CHECK(world.run([](Own o) {
    Tensor host(cuda::make_pinned_allocator(), DType::f32, {4}), in(o.memory, DType::f32, {4}),
        out(o.memory, DType::f32, {8});
    fill(host, o.comm.rank() + 1);
    o.comm.all_gather({{in, out, {4, 4}, {}, copy_async(host, in)}}).wait();
    check(element(out.cpu(), 0) == 1 && element(out.cpu(), 7) == 2, "gathered before it was there");
  }) == Strings(2));
}

TEST_CASE("nccl: lanes are apart from each other and from collectives, and shifts go around") {
  for (int n : {1, 2, 3, 4, 5})
    for (int polls : {0, 3}) {
      World world(n);
      world.fake.polls = polls;
      Strings errors = world.run([&](Own o) {
        Communicator& c = o.comm;
        c.open_lanes(), c.open_lanes();
        int me = c.rank(), next = (me + 1) % n, last = (me + n - 1) % n;
        auto of = [&](double v, int64_t size = 5) {
          Tensor t(o.memory, DType::f32, {size});
          fill(t, v);
          return t;
        };
        auto holds = [&](const Tensor& t, double v) {
          Tensor host = t.cpu();
          for (int64_t i = 0; i < host.numel(); ++i)
            check(element(host, i) == v, "rank {} has {}, not {}", me, element(host, i), v);
        };
        std::vector<int> neighbours;
        for (int peer : {next, last})
          if (peer != me && (neighbours.empty() || neighbours[0] != peer)) neighbours.push_back(peer);
        for (int round = 0; round < 4; ++round) {
          std::vector<Work> work;
          std::vector<std::pair<Tensor, double>> wanted;
          bool sends_first = (me + round) % 2;
          for (bool sends : {sends_first, !sends_first})
            for (int peer : neighbours)
              for (int k = 0; k < 2; ++k)
                if (sends) {
                  work.push_back(c.send({of(100 * me + 10 * peer + k), of(0, 0)}, peer));
                } else {
                  wanted.emplace_back(of(-1), 100 * peer + 10 * me + k);
                  work.push_back(c.receive({wanted.back().first, of(0, 0)}, peer));
                }
          reduce(o);
          for (Work& w : work) w.wait();
          for (auto& [t, v] : wanted) holds(t, v);
          for (int distance : {0, 1, -1, 2 * n + 1}) {
            int from = ((me - distance) % n + n) % n;
            Tensor got = of(-1, 3 + from);
            c.shift({{of(me, 3 + me), got}}, distance).wait();
            holds(got, from);
          }
        }
      });
      CHECK(errors == Strings(size_t(n)));
      CHECK(world.fake.open() == 0);
      CHECK(world.fake.misuse() == "");
    }
}

TEST_CASE("nccl: a deadline that the clock cannot hold is none") {
  World world(2);
  world.options.deadline = std::chrono::milliseconds::max();
  CHECK(world.run([&](Own o) {
    std::this_thread::sleep_for(20ms * o.comm.rank());
    reduce(o), read(o);
    o.comm.barrier();
  }) == Strings(2));
}

TEST_CASE("nccl: a wait makes the compute stream wait, and tensors live until then") {
  World world(2);
  Strings errors = world.run([&](Own o) {
    for (int k = 0; k < 30; ++k) {
      Tensor x(o.memory, DType::f32, {1000}), y(o.memory, DType::f32, {1000});
      fill(x, k), fill(y, 0);
      Work work = o.comm.all_reduce({{x, y}}, Reduce::sum);
      x = {};
      Tensor other(o.memory, DType::f32, {1000});
      fill(other, -1);  // takes no memory that is still read
      work.wait();
      scale(y, 2);
      check(element(y.cpu(), 999) == 4 * k, "the sum is read when it is there");
      o.comm.all_reduce({{other, y}}, Reduce::sum);  // nobody waits
    }
  });
  CHECK(errors == Strings(2));
  CHECK(emulator::alive().device_bytes == 0);
}

namespace {

const auto nothing = [](World&) {};
const auto reduces = [](Own o) {
  for (int i = 0; i < 3; ++i) reduce(o);
};

}  // namespace

TEST_CASE("law 9: each failure of NCCL ends every rank with the first cause") {
  const std::string system =
      "[all_reduce] NCCL fails on rank 1 of 3 in all_reduce(sum) f32[8]: unhandled system error (what the fake said "
      "last)";
  const std::string remote = "in all_reduce(sum) f32[8]: remote process exited";
  for (const Scenario& s : std::vector<Scenario>{
           {"init that takes its time", 3, [](World& w) { w.fake.polls = 20; }, reduces, {"", "", ""}},
           {"init fails at once",
            2,
            [](World& w) { w.fake.script(1, "CommInitRankConfig", 0, {.result = Result::system_error}); },
            reduces,
            {"rank 1 failed: [init] NCCL fails on rank 1 of 2",
             "[init] NCCL fails on rank 1 of 2 in init(2 ranks): "
             "unhandled system error"}},
           {"init fails later",
            2,
            [](World& w) { w.fake.script(0, "CommInitRankConfig", 0, {.later = Result::internal_error}); },
            reduces,
            {"[init] NCCL fails on rank 0 of 2 in init(2 ranks): internal error", "rank 0 failed: [init] NCCL fails"}},
           {"the id cannot be made",
            2,
            [](World& w) { w.fake.script(0, "GetUniqueId", 0, {.result = Result::system_error}); },
            reduces,
            {"[init] NCCL fails on rank 0 of 2", "rank 0 failed: [init] NCCL fails on rank 0 of 2"}},
           {"two ranks on one GPU",
            2,
            [](World& w) { w.fake.script(1, "CommInitRankConfig", 0, {.later = Result::invalid_usage}); },
            reduces,
            {"rank 1 failed: [init] NCCL fails",
             "NCCL needs one GPU per rank: run several ranks on one GPU with "
             "--comm threads"}},
           {"a rank is stuck in init",
            2,
            [](World& w) { w.fake.script(1, "CommInitRankConfig", 0, {.blocks = true}); },
            reduces,
            {"[init] not complete after 0.25 s: in init(2 ranks), rank ", "[init] not complete after 0.25 s: in init"}},
           {"a call returns a system error",
            3,
            [](World& w) { w.fake.script(1, "GroupEnd", 2, {.result = Result::system_error}); },
            reduces,
            {"rank 1 failed: " + system, system, "rank 1 failed: " + system}},
           {"a call inside of a group returns an error",
            3,
            [](World& w) { w.fake.script(1, "AllReduce", 1, {.result = Result::system_error}); },
            reduces,
            {"rank 1 failed: " + system, system, "rank 1 failed: " + system}},
           {"a system error comes later",
            3,
            [](World& w) { w.fake.script(1, "GroupEnd", 1, {.later = Result::system_error, .stalls = true}); },
            reduces,
            {"rank 1 failed: " + system, system, "rank 1 failed: " + system}},
           {"a remote error whose cause nobody tells",
            2,
            [](World& w) { w.fake.script(0, "GroupEnd", 1, {.later = Result::remote_error, .stalls = true}); },
            reduces,
            {remote, remote}},
           {"the device never completes it",
            3,
            [](World& w) { w.fake.script(2, "GroupEnd", 1, {.stalls = true}); },
            reduces,
            {"[all_reduce] not complete after 0.25 s: in all_reduce(sum) f32[8], rank ",
             "waits for the others, which have begun it: a device or a link hangs",
             "[all_reduce] not complete after 0.25 s"}},
           {"a call never returns",
            2,
            [](World& w) { w.fake.script(1, "GroupEnd", 1, {.blocks = true}); },
            reduces,
            {"[all_reduce] not complete after 0.25 s: in all_reduce(sum) f32[8], rank ",
             "[all_reduce] not complete after 0.25 s"}},
           {"a rank does something else",
            3,
            nothing,
            [](Own o) {
              if (o.comm.rank() != 1) reduce(o), read(o);
              if (o.comm.rank() == 1) std::this_thread::sleep_for(700ms), reduce(o);
            },
            {"waits for rank 1, which has not begun it",
             "failed: [all_reduce] not complete after 0.25 s: in "
             "all_reduce(sum) f32[8], rank ",
             "waits for rank 1, which has not begun it"}},
           {"a wrong order", 3, nothing,
            [](Own o) {
              auto gather = [&] {
                o.comm
                    .all_gather(
                        {{made(o.memory, DType::f32, 4, 0, 0), made(o.memory, DType::f32, 12, 0, 0), {4, 4, 4}}})
                    .wait();
              };
              if (o.comm.rank() == 2) gather();
              reduce(o);
              if (o.comm.rank() != 2) gather();
              read(o);
            },
            Strings(3,
                    "[collective] ranks 0 and 2 disagree: \"all_reduce(sum) f32[8]\" and \"all_gather f32[4+4+4]\"")},
           {"another size", 2, nothing, [](Own o) { reduce(o, 8 + o.comm.rank()); },
            Strings(2,
                    "[collective] ranks 0 and 1 disagree: \"all_reduce(sum) f32[8]\" and \"all_reduce(sum) f32[9]\"")},
           {"another exchange", 2, nothing,
            [](Own o) {
              int64_t n = 2 + o.comm.rank();
              o.comm
                  .all_to_all({{made(o.memory, DType::f32, 2 * n, 0, 0),
                                made(o.memory, DType::f32, 2 * n, 0, 0),
                                {n, n},
                                {n, n}}})
                  .wait();
            },
            Strings(2, "ranks 0 and 1 disagree: \"all_to_all f32[2+2->2+2]\" and \"all_to_all f32[3+3->3+3]\"")},
           {"a rank throws",
            3,
            nothing,
            [](Own o) {
              reduce(o);
              check(o.comm.rank() != 1, "the disk is full");
              reduces(o);
            },
            {"rank 1 failed: the disk is full", "the disk is full", "rank 1 failed: the disk is full"}},
           {"a rank does not split",
            4,
            nothing,
            [](Own o) {
              if (o.comm.rank() == 3) std::this_thread::sleep_for(700ms);
              if (o.comm.rank() != 3) o.comm.split(RankGrid(o.comm.rank() / 2 * 2).with(2, 1));
            },
            {"] not complete after 0.25 s: in split", "] not complete after 0.25 s: in split",
             "] not complete after 0.25 s: in split", "waits for rank 3, which has not begun it"}},
           {"ranks split otherwise",
            3,
            nothing,
            [](Own o) { o.comm.split(RankGrid(o.comm.rank() > 0).with(2, 1)); },
            {"[split] ranks [0,1] of the world were to form a communicator, but 1 ranks did: all ranks of the parent "
             "must "
             "call it together, each with its own group",
             "rank 0 failed: [split] ranks [0,1]", "rank 0 failed: [split] ranks [0,1]"}},
           {"CommSplit fails",
            2,
            [](World& w) { w.fake.script(0, "CommSplit", 0, {.result = Result::unhandled_cuda_error}); },
            [](Own o) { o.comm.split(RankGrid(o.comm.rank())); },
            {"[split] NCCL fails on rank 0 of 2 in split: unhandled cuda error", "rank 0 failed: [split] NCCL fails"}},
           {"CommSplit fails later",
            2,
            [](World& w) { w.fake.script(1, "CommSplit", 0, {.later = Result::system_error}); },
            [](Own o) { o.comm.split(RankGrid(o.comm.rank())); },
            {"rank 1 failed: [split] NCCL fails",
             "[split] NCCL fails on rank 1 of 2 in split: unhandled system error"}},
           {"a send that nobody receives", 2, nothing,
            [](Own o) {
              o.comm.open_lanes();
              if (o.comm.rank() == 0) o.comm.send({some(o).in}, 1).wait(), read(o);
              if (o.comm.rank() == 1) std::this_thread::sleep_for(700ms);
            },
            Strings(2,
                    "[send] not complete after 0.25 s: in send f32[8], rank 0 waits for rank 1, which has not begun "
                    "it")},
           {"a send of another size", 2, nothing,
            [](Own o) {
              o.comm.open_lanes();
              if (o.comm.rank() == 0) o.comm.send({some(o, 8).in}, 1).wait(), read(o);
              if (o.comm.rank() == 1) o.comm.receive({some(o, 9).in}, 0).wait(), read(o);
            },
            Strings(2, "[collective] ranks 0 and 1 disagree: \"send f32[8]\" and \"receive f32[9]\"")},
           {"a shift by another distance", 3, nothing,
            [](Own o) { o.comm.shift({some(o)}, o.comm.rank() == 2 ? 2 : 1).wait(); },
            Strings(3, "ranks 0 and 2 disagree: \"shift(1) f32[0+8+0->0+0+8]\" and \"shift(2) f32[0+8+0->8+0+0]\"")},
           {"a lane that was not opened", 2, nothing, [](Own o) { o.comm.send({some(o).in}, 1 - o.comm.rank()); },
            Strings(2, "[send] there is no lane from rank ")},
           {"a group without this rank", 2, nothing, [](Own o) { o.comm.split(RankGrid(1 - o.comm.rank())); },
            Strings(2, "is not among the ranks of the new communicator")},
           {"tensors of the host", 2, nothing,
            [](Own o) {
              o.comm.all_reduce({{made(heap, DType::f32, 4, 0, 0), made(heap, DType::f32, 4, 0, 0)}}, Reduce::sum);
            },
            Strings(
                2,
                "[all_reduce] NCCL moves tensors between GPUs, but one of 4 elements is on cpu: use --comm threads")},
       })
    play(s);
}

TEST_CASE("law 9: a failure frees work on all communicators, and all later calls throw it") {
  World world(4);
  world.options.deadline = 250ms;
  Strings errors = world.run([&](Own o) {
    auto part = o.comm.split(RankGrid(o.comm.rank() / 2 * 2).with(2, 1));
    Work work = part->all_reduce({some(o)}, Reduce::sum);
    work.wait();
    if (o.comm.rank() != 3) part->barrier();  // rank 2 waits for ever, 0 and 1 are in another one
    if (o.comm.rank() == 3) std::this_thread::sleep_for(1s);
    std::string later = error_of([&] { o.comm.barrier(); });
    for (auto f : {&Communicator::all_gather, &Communicator::all_to_all})
      check(error_of([&] { ((*part).*f)({some(o)}); }) == later, "the same error again");
    check(error_of([&] { o.comm.split(RankGrid::whole(4)); }) == later, "the same error again");
    throw Error(later);
  });
  CHECK_THAT(errors[2],
             Contains("not complete after 0.25 s: in barrier, rank 2 waits for rank 3, which has not begun") ||
                 Contains("rank 2 failed: [barrier]") || Contains("in barrier, rank "));
  std::set<std::string> causes;
  for (const std::string& e : errors) causes.insert(e.substr(e.find("[barrier]")));
  CHECK(causes.size() == 1);
  CHECK(world.fake.open() == 0);
}

TEST_CASE("law 9: rank 0 that is gone ends the others, and a rank that is gone ends all") {
  World world(2);
  auto server = std::make_unique<StoreServer>("127.0.0.1", 0);
  auto lonely = std::make_shared<Store>("127.0.0.1", server->port(), 1s);
  cuda::use_device(0);
  FakeNccl fake(1);
  auto c = nccl::make_communicator(0, 1, 0, fake.api(0), lonely, world.options);
  server.reset();
  std::string error;
  for (int i = 0; i < 2000 && error.empty(); ++i)
    error = error_of([&] { c->barrier(); }), std::this_thread::sleep_for(1ms);
  CHECK_THAT(error, StartsWith("[store] the connection to 127.0.0.1:") && Contains("rank 0 has ended"));
}

TEST_CASE("nccl: the flight recorder tells the last collectives of each rank") {
  World world(2);
  world.options.deadline = 250ms;
  world.options.flight_recorder_size = 4;
  Strings errors = world.run([&](Own o) {
    for (int i = 0; i < 5; ++i) reduce(o, i + 1);
    o.comm.all_gather({{made(o.memory, DType::i64, 1, 0, 0), made(o.memory, DType::i64, 2, 0, 0), {1, 1}}}).wait();
    read(o);
    std::this_thread::sleep_for(50ms);
    if (o.comm.rank() == 0) reduce(o, 99), read(o);
    if (o.comm.rank() == 1) std::this_thread::sleep_for(700ms);
    o.comm.barrier();
  });
  for (const std::string& e : errors) CHECK_THAT(e, Contains("in all_reduce(sum) f32[99], rank 0 waits for rank 1"));
  auto zero = world.record(0), one = world.record(1);
  CHECK(zero["rank"] == 0);
  CHECK(zero["world"] == 2);
  CHECK(zero["error"] == errors[0]);
  CHECK(one["error"] == errors[1]);
  CHECK(zero["collectives"].size() == 4);
  auto last = zero["collectives"][3], before = zero["collectives"][2];
  CHECK(last["call"] == "all_reduce(sum) f32[99]");
  CHECK(last["state"] == "started");
  CHECK(last["ranks"] == std::vector{0, 1});
  CHECK(last["items"][0]["dtype"] == "f32");
  CHECK(last["items"][0]["counts"] == std::vector{99});
  CHECK(last["done_s"].is_null());
  CHECK(before["call"] == "all_gather i64[1+1]");
  CHECK(before["state"] == "done");
  CHECK(before["queued_s"] <= before["done_s"]);
  CHECK(last["sequence"] == uint64_t(before["sequence"]) + 1);
  CHECK(one["collectives"].back()["call"] == "all_gather i64[1+1]");
}

TEST_CASE("law 9: a flight recorder that cannot be written is said, not thrown") {
  World world(1);
  std::ofstream(world.folder / "file") << "";
  world.options.flight_recorder_folder = (world.folder / "file").string();
  Strings errors = world.run([&](Own o) {
    o.comm.abort("stop");
    o.comm.barrier();
  });
  CHECK_THAT(errors[0], StartsWith("stop (the flight recorder ") && Contains("could not be written: Not a directory"));
}

TEST_CASE("law 9: a barrier without memory is an error") {
  emulator::set_memory(1 << 20);
  World world(1);
  Strings errors = world.run([&](Own o) {
    void* rest = cuda::allocate(cuda::free_memory());
    std::string error = error_of([&] { o.comm.barrier(); });
    cuda::release(rest);
    throw Error(error);
  });
  CHECK(errors[0] == "[barrier] the device has no 8 bytes left");
}

TEST_CASE("nccl: launch_nccl runs a function on the ranks of the environment") {
  emulator::set_devices(4);
  std::atomic<int> runs{0};
  auto program = [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    check(rank.device() == Device::cuda && rank.world() == 4, "the rank's device");
    for (AxisSet axes : {AxisSet(1), AxisSet(2), AxisSet(3)}) {
      Buffers b{made(rank.allocator(), DType::f32, 5, 0, 0, true), made(rank.allocator(), DType::f32, 5, 0, 0)};
      mesh.communicator(axes).all_reduce({b}, Reduce::sum).wait();
      check(element(b.out.cpu(), 4) == 77 * mesh.communicator(axes).size(), "a sum over axes");
    }
    in_rank_order(rank, [&] { check(runs++ == rank.rank(), "one after the other"); });
  };
  CHECK(launch_all(4, 4, program, nullptr) == Strings(4));
  CHECK(runs == 4);
  CHECK(std::string(std::getenv("NCCL_NVLS_ENABLE")) == "0");
  CHECK(std::string(std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT")) == "1");
}

TEST_CASE("nccl: meshes of several axes have all their communicators, and lanes along each axis") {
  for (const char* text : {"dp=2", "dp=3", "dp=1,tp=2", "pp=3,tp=1", "dp=2,tp=2", "pp=2,dp=2,tp=2"}) {
    MeshShape shape = MeshShape::parse(text);
    int n = shape.world();
    emulator::set_devices(n);
    auto program = [&](Rank& rank) {
      DeviceMesh mesh(rank, shape), again(rank, shape);
      check(mesh == again, "the same mesh");
      for (AxisSet axes = 1; axes <= shape.all(); ++axes) {
        Buffers b{made(rank.allocator(), DType::f32, 5, 0, 0, true), made(rank.allocator(), DType::f32, 5, 0, 0)};
        mesh.communicator(axes).all_reduce({b}, Reduce::sum).wait();
        check(element(b.out.cpu(), 4) == 77 * shape.product(axes), "a sum over {}", shape.names(axes));
      }
      for (int a = 0; a < shape.axes(); ++a) {
        int size = shape.size(a), me = mesh.coordinate(a);
        if (size == 1) continue;
        Tensor x(rank.allocator(), DType::f32, {3}), y(rank.allocator(), DType::f32, {3});
        fill(x, rank.rank());
        Work sent = send(mesh, shape.name(a), (me + 1) % size, {x}),
             got = receive(mesh, shape.name(a), (me + size - 1) % size, {y});
        sent.wait(), got.wait();
        std::vector<int> group = shape.group(rank.rank(), axis_bit(a));
        check(element(y.cpu(), 2) == group[size_t((me + size - 1) % size)], "along {}", shape.name(a));
      }
    };
    CHECK(launch_all(n, n, program, nullptr) == Strings(size_t(n)));
  }
}

TEST_CASE("law 9: launch_nccl ends all ranks when one that others wait for has ended") {
  emulator::set_devices(3);
  auto start = std::chrono::steady_clock::now();
  Strings errors = launch_all(
      3, 3,
      [](Rank& rank) {
        if (rank.rank() == 1) return;
        Own o{rank.communicator(), rank.allocator()};
        rank.rank() == 0 ? o.comm.barrier() : reduce(o);
        read(o);
      },
      [](int, NcclLaunchOptions& options) { options.nccl.deadline = 10min; });
  CHECK(std::chrono::steady_clock::now() - start < 60s);
  for (const std::string& e : errors)
    CHECK_THAT(e, Contains("[barrier] rank 1 has ended (its function returned), but rank 0 waits for it in barrier") ||
                      Contains("[all_reduce] rank 1 has ended (its function returned), but rank 2 waits for it in "
                               "all_reduce(sum) f32[8]"));
}

TEST_CASE("law 9: launch_nccl ends all ranks with the first cause") {
  emulator::set_devices(2);
  auto throws = [&](Rank& rank) {
    check(rank.rank() != 1, "the disk is full");
    in_rank_order(rank, [] {});
  };
  Strings errors = launch_all(2, 2, throws, nullptr);
  CHECK(errors[1] == "the disk is full (rank 1 of 2)");
  CHECK(errors[0] == "rank 1 failed: the disk is full (rank 0 of 2)");
  // Before there is a communicator.
  errors = launch_all(2, 2, throws, [](int r, NcclLaunchOptions& o) {
    if (r == 0) o.load = [] { return nccl::load("libno_such.so"); };
  });
  CHECK_THAT(errors[0], Contains("libno_such.so") && Contains("install NCCL 2.18 or later"));
  CHECK_THAT(errors[1], Contains("rank 0 failed: [nccl] libno_such.so"));
}

TEST_CASE("law 9: a rank that has ended waits for the others until the deadline") {
  emulator::set_devices(2);
  Strings errors = launch_all(
      2, 2,
      [](Rank& rank) {
        if (rank.rank() == 1) std::this_thread::sleep_for(700ms);
      },
      [](int, NcclLaunchOptions& options) { options.nccl.deadline = 250ms; });
  for (const std::string& e : errors)
    CHECK_THAT(e, Contains("[end] not complete after 0.25 s: rank 0 has ended, but only 1 of 2 ranks have"));
}

TEST_CASE("law 9: more NCCL ranks than GPUs are refused with the remedy") {
  emulator::set_devices(1);
  Strings errors = launch_all(
      3, 3, [](Rank&) {}, nullptr);
  for (const std::string& e : errors)
    CHECK_THAT(e, Contains("[nccl] 3 ranks on this host but 1 GPU: NCCL needs one GPU per rank; use --comm threads"));
  setenv("NCCL_HOSTID", "on purpose", 1);
  errors = launch_all(
      3, 3, [](Rank& rank) { in_rank_order(rank, [] {}); }, nullptr);
  unsetenv("NCCL_HOSTID");
  CHECK(errors == Strings(3));
  emulator::set_devices(0);
  errors = launch_all(
      1, 1, [](Rank&) {}, nullptr);
  CHECK_THAT(errors[0], Contains("[nccl] ") && Contains(": NCCL needs a GPU; use --device cpu"));
}
