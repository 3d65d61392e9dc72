// Steps with collectives of NCCL as one CUDA graph.
#include <catch2/catch.hpp>

#include "dtensor/launch.h"
#include "nn/train/causal_lm.h"
#include "tests/emulator/emulator.h"
#include "tests/emulator/nccl_world.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
using nccl::Result;

namespace {

Tensor filled(const Own& o, double value, int64_t n = 8) {
  Tensor t(o.memory, DType::f32, {n});
  fill(t, value);
  return t;
}

// A sum over all ranks, a kernel, and a sum over some.
struct Program {
  Program(const Own& own, Communicator& some_ranks) : o(own), part(some_ranks) {}
  void operator()() {
    o.comm.all_reduce({{x, sum}}, Reduce::sum).wait();
    scale(sum, 0.5);
    part.all_reduce({{sum, out}}, Reduce::sum).wait();
    scale(out, 2);
  }

  Own o;
  Communicator& part;
  Tensor x = filled(o, 0), sum = filled(o, -1), out = filled(o, -1);
};

std::unique_ptr<CapturedGraph> captured_reduce(const Own& o, const Buffers& b) {
  return o.comm.capture(o.memory->stream(), [&] { o.comm.all_reduce({b}, Reduce::sum).wait(); });
}

const auto nothing = [](World&) {};

// What each rank has of some steps of a small Llama: the losses and norms, and whether steps were a graph. `look` is
// called before each step.
struct Training {
  std::vector<double> numbers;
  std::string graph;
};
using Look = std::function<void(Rank&, int)>;
std::vector<Training> train(const std::string& mesh, const std::string& plan, bool graph, const Look& look = nullptr,
                            Strings errors = {}) {
  MeshShape shape = MeshShape::parse(mesh);
  int n = shape.world();
  static const Folder folder;
  static const std::string file = folder.write("text.txt", some_text(4000));
  nn::PackedText text({file}, 16);
  nn::LlamaConfig llama;
  llama.vocab_size = 264, llama.hidden_size = 32, llama.intermediate_size = 48, llama.num_hidden_layers = 2;
  llama.num_attention_heads = 4, llama.num_key_value_heads = 2, llama.head_dim = 8, llama.max_position_embeddings = 64;
  std::vector<Training> all(static_cast<size_t>(n));
  emulator::set_devices(n);
  Strings got = launch_all(n, n, [&](Rank& rank) {
    DeviceMesh m(rank, shape);
    nn::ParallelPlan p = nn::ParallelPlan::from_json(json(plan));
    nn::LlamaTraining training(m, llama, p, {.steps = 5, .lr = 3e-3, .warmup_steps = 2, .graph = graph});
    Training& mine = all[size_t(rank.rank())];
    for (int i = 0; i < 5; ++i) {
      if (look) look(rank, i);
      auto s = training.trainer.step(text.batch(m, nn::batch_layout(shape, p), i, 4));
      mine.numbers.push_back(s.loss), mine.numbers.push_back(s.grad_norm);
      mine.graph = training.trainer.graph_status();
    }
  });
  errors.resize(size_t(n));
  for (size_t r = 0; r < got.size(); ++r)
    if (errors[r].empty())
      CHECK(got[r] == "");
    else
      CHECK_THAT(got[r], Contains(errors[r]));
  return all;
}

const char* const fully_sharded = R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*"]}})";

}  // namespace

TEST_CASE("nccl: a training step is one graph, with the numbers of one that is not") {
  const std::string tensor_parallel = R"({"tensor_parallel": {"axis": "tp", "plan": {
    "model.layers.*.self_attn.q_proj": "ColwiseParallel", "model.layers.*.self_attn.k_proj": "ColwiseParallel",
    "model.layers.*.self_attn.v_proj": "ColwiseParallel", "model.layers.*.self_attn.o_proj": "RowwiseParallel",
    "model.layers.*.mlp.gate_proj": "ColwiseParallel", "model.layers.*.mlp.up_proj": "ColwiseParallel",
    "model.layers.*.mlp.down_proj": "RowwiseParallel"}})";
  for (auto& [mesh, plan] : std::vector<std::pair<std::string, std::string>>{
           {"dp=2", R"({"data_parallel": {"axis": "dp"}})"},
           {"dp=2", fully_sharded},
           {"tp=2", tensor_parallel + "}"},
           {"dp=2,tp=2", tensor_parallel + R"(, "fully_shard": {"axis": "dp", "modules": ["model.layers.*"]}})"}}) {
    INFO(mesh << " " << plan);
    auto graph = train(mesh, plan, true), eager = train(mesh, plan, false);
    for (size_t r = 0; r < graph.size(); ++r) {
      CHECK_THAT(graph[r].graph, StartsWith("captured, "));
      CHECK(eager[r].graph == "not captured: switched off");
      CHECK(graph[r].numbers == eager[r].numbers);
    }
  }
}

TEST_CASE("nccl: a step is captured by all ranks or by none") {
  auto eager = train("dp=2", fully_sharded, false);
  struct Silent : Observer {};
  std::vector<Silent> silent(2);
  auto seen = train("dp=2", fully_sharded, true, [&](Rank& rank, int step) {
    if (rank.rank() == 1 && step == 0) rank.add(silent[1]);
    if (rank.rank() == 1 && step == 4) rank.remove(silent[1]);
  });
  CHECK(seen[0].graph == "not captured: another rank does not capture it");
  CHECK_THAT(seen[1].graph, StartsWith("not captured: somebody observes the ops"));
  CHECK(seen[0].numbers == eager[0].numbers);
}

TEST_CASE("law 9: what a rank reads after a failure is an error, not a loss") {
  auto got = train("dp=2", fully_sharded, true,
                   [](Rank& rank, int step) { check(rank.rank() == 0 || step < 4, "the disk is full"); },
                   {"rank 1 failed: the disk is full", "the disk is full"});
  size_t read = got[0].numbers.size() / 2;  // of four steps; the failure may come before it has read the last
  CHECK((read == 3 || read == 4));
  CHECK_THAT(got[0].graph, StartsWith("captured, "));
}

TEST_CASE("nccl: collectives of several communicators are captured, and run at each launch") {
  for (int n : {1, 2, 4})
    for (int polls : {0, 3}) {
      World world(n);
      world.fake.polls = polls;
      Strings errors = world.run([&](Own o) {
        check(o.comm.can_be_captured(), "NCCL's collectives can be captured");
        auto part = o.comm.split(n == 1 ? RankGrid::whole(1) : RankGrid(o.comm.rank() / 2 * 2).with(2, 1));
        Program program(o, *part);
        cuda::StreamHandle stream = o.memory->stream();
        auto graph = o.comm.capture(stream, [&] {
          program();
          std::this_thread::sleep_for(20ms);  // the watchdog must not ask for events of a capture
        });
        check(element(program.out.cpu(), 7) == -1, "nothing runs in a capture");
        check(graph->nodes() >= 4, "{} nodes", graph->nodes());
        for (int v = 1; v <= 3; ++v) {
          fill(program.x, v);
          fill(program.out, -1);
          graph->launch(stream);
          if (v == 2) reduce(o), part->barrier();  // between launches
          check(element(program.out.cpu(), 7) == v * n * part->size(), "launch {} gives {}", v,
                element(program.out.cpu(), 7));
        }
        program.x = filled(o, 5);  // the graph goes on reading what it was captured with
        graph->launch(stream), graph->launch(stream);
        check(element(program.out.cpu(), 0) == 3 * n * part->size(), "two launches on their way");
        o.comm.barrier();
        part.reset();  // its graph is still there
      });
      CHECK(errors == Strings(size_t(n)));
      CHECK(world.fake.open() == 0);
      CHECK(world.fake.misuse() == "");
      CHECK(emulator::alive() == emulator::Alive{});
    }
}

TEST_CASE("nccl: an error in a capture leaves everything as it was") {
  World world(2);
  world.options.deadline = 500ms;
  Strings errors = world.run([&](Own o) {
    cuda::StreamHandle stream = o.memory->stream();
    Buffers b = some(o);
    for (int i = 0; i < 2; ++i)
      check(error_of([&] {
              o.comm.capture(stream, [&] {
                o.comm.all_reduce({b}, Reduce::sum).wait();
                fail("no more");
              });
            }) == "no more",
            "the error comes through");
    std::string forbidden = error_of([&] {
      o.comm.capture(stream, [&] {
        CHECK_THROWS(read(o));
        o.comm.all_reduce({b}, Reduce::sum).wait();
      });
    });
    check(forbidden.find("[cuda] ") == 0, "what CUDA forbids: {}", forbidden);
    std::string twice = error_of([&] { o.comm.capture(stream, [&] { captured_reduce(o, b); }); });
    check(twice == "[capture] this rank captures already", "{}", twice);
    std::string by_hand = error_of([&] { cuda::Graph::capture(stream, [&] { o.comm.all_reduce({b}, Reduce::sum); }); });
    check(by_hand == "[all_reduce] a collective is captured by Communicator::capture() only", "{}", by_hand);
    std::this_thread::sleep_for(700ms);  // nothing of all that is late
    reduce(o), read(o);
    auto graph = captured_reduce(o, b);
    graph->launch(stream);
    read(o);
  });
  CHECK(errors == Strings(2));
  CHECK(world.fake.misuse() == "");
}

TEST_CASE("nccl: an abort ends what a graph has under way") {
  World world(2);
  Strings errors = world.run([](Own o) {
    Buffers b = some(o);
    auto graph = captured_reduce(o, b);
    graph->launch(o.memory->stream());  // and nobody looks at the stream
    o.comm.abort("stop");
    o.comm.throw_if_failed();
  });
  for (const std::string& e : errors) CHECK_THAT(e, Contains("stop"));
  CHECK(world.fake.open() == 0);
  CHECK(world.fake.misuse() == "");
}

TEST_CASE("law 9: what the watchdog is the last to hold is freed by others: to free waits for a device that may hang") {
  World world(2);
  world.options.deadline = 250ms;
  world.fake.script(1, "GroupEnd", 2, {.stalls = true});
  Strings errors = world.run([](Own o) {
    auto part = o.comm.split(RankGrid::whole(2));
    part->barrier();  // it has memory of the device now
    o.comm.barrier();
    Buffers b = some(o, 9);
    Work stalled = o.comm.all_reduce({b}, Reduce::sum);
    part.reset();                        // the watchdog ends it
    std::this_thread::sleep_for(100ms);  // now
    stalled.wait(), read(o), o.comm.throw_if_failed();
  });
  for (const std::string& e : errors) CHECK_THAT(e, Contains("[all_reduce] not complete after 0.25 s"));
  CHECK(world.fake.open() == 0);
  CHECK(world.fake.misuse() == "");
  CHECK(emulator::alive() == emulator::Alive{});
}

TEST_CASE("law 9: a capture without pinned memory is an error") {
  World world(1);
  Strings errors = world.run([](Own o) {
    Buffers b = some(o);
    emulator::set_pinned_memory(0);
    captured_reduce(o, b);
  });
  CHECK_THAT(errors[0], Contains("[capture] the host has no 4096 bytes of pinned memory left"));
}

TEST_CASE("nccl: ranks that need the host cannot be captured") {
  launch(2, [](Rank& rank) {
    CHECK(!rank.communicator().can_be_captured());
    CHECK_THROWS_WITH(rank.communicator().capture(nullptr, [] {}),
                      "[capture] collectives of 2 ranks of this kind need the host: only NCCL's can be captured");
  });
}

TEST_CASE("law 9: each failure in a graph ends every rank with the first cause, which names the collective") {
  const std::string hangs = "[all_reduce] not complete after 0.25 s: in all_reduce(sum) f32[9], rank ";
  auto launches_twice = [](Own o) {
    auto part = o.comm.split(RankGrid(1).with(2, -1));  // another one of these two
    Buffers a = some(o, 8), b = some(o, 9), c = some(o, 10);
    auto graph = o.comm.capture(o.memory->stream(), [&] {
      o.comm.all_reduce({a}, Reduce::sum).wait();
      part->all_reduce({b}, Reduce::sum).wait();
      o.comm.all_reduce({c}, Reduce::sum).wait();
    });
    for (int i = 0; i < 2; ++i) graph->launch(o.memory->stream()), read(o), o.comm.throw_if_failed();
  };
  for (const Scenario& s : std::vector<Scenario>{
           {"nothing", 2, nothing, launches_twice, {"", ""}},
           {"the device hangs in the second collective", 2,
            [](World& w) { w.fake.script(1, "GroupEnd", 1, {.stalls = true}); }, launches_twice, Strings(2, hangs)},
           {"a rank does not launch", 2, nothing,
            [](Own o) {
              Buffers b = some(o, 9);
              auto graph = captured_reduce(o, b);
              if (o.comm.rank() == 1) return std::this_thread::sleep_for(700ms);
              graph->launch(o.memory->stream());
            },
            Strings(2, hangs + "0 waits for rank 1, which has not begun it")},
           {"a rank launches something else", 2, nothing,
            [](Own o) {
              Buffers b = some(o, 8 + o.comm.rank());
              captured_reduce(o, b)->launch(o.memory->stream());
              read(o);
            },
            Strings(2, "ranks 0 and 1 disagree: \"all_reduce(sum) f32[8]\" and \"all_reduce(sum) f32[9]\"")},
           {"a rank throws while others are in their graphs",
            2,
            nothing,
            [](Own o) {
              Buffers b = some(o);
              auto graph = captured_reduce(o, b);
              graph->launch(o.memory->stream());
              read(o);
              check(o.comm.rank() == 0, "the disk is full");
              for (int i = 0; i < 3; ++i) graph->launch(o.memory->stream());
              read(o);
              o.comm.throw_if_failed();
            },
            {"rank 1 failed: the disk is full", "the disk is full"}},
           {"NCCL fails beside a graph",
            2,
            [](World& w) { w.fake.script(1, "GroupEnd", 1, {.result = Result::system_error}); },
            [](Own o) {
              Buffers b = some(o);
              auto graph = captured_reduce(o, b);
              graph->launch(o.memory->stream());
              reduce(o);  // this rank ends all communicators while its graph is alive
            },
            {"rank 1 failed: [all_reduce] NCCL fails on rank 1 of 2",
             "[all_reduce] NCCL fails on rank 1 of 2 in all_reduce(sum) f32[8]: unhandled system error"}},
           {"NCCL fails in a capture",
            2,
            [](World& w) { w.fake.polls = 2, w.fake.script(0, "GroupEnd", 0, {.later = Result::internal_error}); },
            [](Own o) {
              Buffers b = some(o);
              captured_reduce(o, b)->launch(o.memory->stream());
              read(o);
            },
            {"[all_reduce] NCCL fails on rank 0 of 2 in all_reduce(sum) f32[8]: internal error",
             "rank 0 failed: [all_reduce] NCCL fails"}},
           {"a call of a capture does not return",
            2,
            [](World& w) { w.fake.script(0, "GroupEnd", 0, {.blocks = true}); },
            [](Own o) {
              Buffers b = some(o);
              auto graph = captured_reduce(o, b);
              std::this_thread::sleep_for(600ms);  // else its launch is late soon after the capture
              graph->launch(o.memory->stream());
              read(o);
            },
            {"[all_reduce] not complete after 0.25 s: all_reduce(sum) f32[8] is being captured on rank 0, perhaps not "
             "on all of rank 0,1",
             "[all_reduce] not complete after 0.25 s: "}},
       })
    play(s);
}

TEST_CASE("nccl: the flight recorder has the collectives of every launch of a graph") {
  World world(2);
  Strings errors = world.run([&](Own o) {
    Buffers b = some(o, 9);
    auto graph = captured_reduce(o, b);
    reduce(o);
    for (int i = 0; i < 2; ++i) graph->launch(o.memory->stream()), read(o);
    std::this_thread::sleep_for(50ms);
    o.comm.abort("stop");
    o.comm.throw_if_failed();
  });
  for (const std::string& e : errors) CHECK_THAT(e, Contains("stop"));
  nlohmann::json list = world.record(0)["collectives"];
  std::vector<std::string> calls, states;
  for (size_t i = list.size() - 3; i < list.size(); ++i) {
    calls.push_back(list[i]["call"]), states.push_back(list[i]["state"]);
    CHECK(list[i]["sequence"] == i - list.size() + 4);  // after what made the communicator; none of the capture
  }
  CHECK(calls == Strings{"all_reduce(sum) f32[8]", "all_reduce(sum) f32[9]", "all_reduce(sum) f32[9]"});
  CHECK(states == Strings(3, "done"));
}
