#include "dtensor/launch.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <cmath>
#include <new>
#include <thread>

#include "dtensor/comm/deadline.h"
#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::EndsWith;
using Catch::Matchers::Equals;
using Catch::Matchers::StartsWith;

TEST_CASE("launch runs a function once per rank") {
  for (int world : {1, 2, 3, 8}) {
    std::vector<std::atomic<int>> calls(static_cast<size_t>(world));
    std::atomic<int> sizes{0}, threads{0};
    launch(world,
           [&](Rank& rank) {
             ++calls[size_t(rank.rank())];
             sizes += rank.world();
             threads += rank.pool().size();
             check(rank.device() == Device::cpu && rank.observers().empty() && rank.labels().empty() && !rank.strict,
                   "a fresh rank");
           },
           {.threads = 2});
    for (auto& c : calls) CHECK(c == 1);
    CHECK(sizes == world * world);
    CHECK(threads == 2 * world);
  }
  launch(64, [](Rank& rank) { check(rank.pool().size() >= 1, "at least one thread each"); });
  CHECK_THROWS_WITH(launch(0, [](Rank&) {}), Equals("[launch] 0 ranks; at least one is needed"));
}

TEST_CASE("law 9: a failing rank frees the others with the first cause") {
  for (int world : {1, 2, 3, 5})
    for (int bad = 0; bad < world; ++bad)
      for (int after : {0, 1, 7}) {
        std::vector<std::string> seen{size_t(world)};
        auto start = std::chrono::steady_clock::now();
        std::string error = error_of([&] {
          launch(world, [&](Rank& rank) {
            DeviceMesh mesh(rank, MeshShape({world}, {"dp"}));
            auto x = DistributedTensor::distribute(Tensor::of<float>({4}, {1, 2, 3, 4}), mesh, {Shard(0)});
            try {
              for (int i = 0; i < 8; ++i) {
                if (rank.rank() == bad && i == after) fail("[train] step {} has no data", i);
                x.full_tensor();
              }
            } catch (const Error& e) {
              seen[size_t(rank.rank())] = e.what();
              throw;
            }
          });
        });
        CHECK(std::chrono::steady_clock::now() - start < 10s);
        std::string cause = fmt::format("[train] step {} has no data", after);
        CHECK(error == (world == 1 ? cause : fmt::format("{} (rank {} of {})", cause, bad, world)));
        for (int r = 0; r < world; ++r)
          CHECK(seen[size_t(r)] == (r == bad ? cause : fmt::format("rank {} failed: {}", bad, cause)));
      }
}

TEST_CASE("law 9: whatever a rank throws is reported") {
  std::string standard = error_of([] {
    launch(2, [](Rank& rank) {
      if (rank.rank()) throw std::out_of_range("too far");
    });
  });
  CHECK(standard == "too far (rank 1 of 2)");
  std::string other = error_of([] {
    launch(2, [](Rank& rank) {
      if (rank.rank()) throw 42;
      rank.communicator().barrier();
    });
  });
  CHECK_THAT(other, Contains("(rank 1 of 2)"));
  CHECK(error_of([] { launch(1, [](Rank&) { throw "text"; }); }) != "");
  std::string memory = error_of([] {
    launch(2, [](Rank& rank) {
      Tensor held(rank.allocator(), DType::f32, {250});
      if (rank.rank()) throw std::bad_alloc();
      rank.communicator({0, 1}).barrier();
    });
  });
  CHECK_THAT(memory, StartsWith("[launch] no host memory is left beside the ") &&
                         Contains(" bytes of this rank's tensors: take a smaller --batch-size") &&
                         Contains("(rank 1 of 2)"));
}

TEST_CASE("memory that runs out names the op, the module and the phase, and other errors are as they were") {
  auto error = [](bool of_memory) {
    return error_of([=] {
      launch(1, [=](Rank& rank) {
        try {
          LabelScope earlier(rank, Label::Kind::module, "model.embed_tokens");
          throw Error("caught");
        } catch (const Error&) {
        }
        PhaseScope phase(rank, Phase::backward);
        LabelScope module(rank, Label::Kind::module, "model.norm"), op(rank, Label::Kind::op, "mul");
        if (of_memory) Tensor(rank.allocator(), DType::f32, {int64_t(1) << 48});
        throw Error("another");
      });
    });
  };
  CHECK_THAT(error(true), EndsWith("; it ran out in mul in model.norm in the backward pass"));
  CHECK(error(false) == "another");
}

TEST_CASE("ranks may launch other ranks") {
  std::atomic<int> inner = 0;
  launch(2, [&](Rank& outer) {
    launch(3, [&](Rank& rank) {
      DeviceMesh mesh(rank, "x=3");
      auto x = DistributedTensor::distribute(Tensor::of<float>({3}, {1, 2, 3}), mesh, {Shard(0)});
      inner += int(element(x.full_tensor(), rank.rank()));
    });
    outer.communicator({0, 1}).barrier();
  });
  CHECK(inner == 12);
  std::string error = error_of([] {
    launch(2, [](Rank& outer) {
      if (outer.rank() == 0) launch(2, [](Rank& rank) { check(rank.rank() == 0, "[train] no data"); });
      outer.communicator({0, 1}).barrier();
    });
  });
  CHECK(error == "[train] no data (rank 1 of 2) (rank 0 of 2)");
}

TEST_CASE("a tensor may outlive its launch") {
  DistributedTensor kept;
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    auto x = DistributedTensor::distribute(Tensor::of<float>({4}, {1, 2, 3, 4}), mesh, {Shard(0)});
    if (rank.rank()) kept = x;
  });
  CHECK(values<float>(kept.local()) == std::vector<float>{3, 4});
  CHECK(values<float>(kept.local().clone()) == std::vector<float>{3, 4});
}

TEST_CASE("law 9: a rank that has ended is missed at once") {
  auto start = std::chrono::steady_clock::now();
  std::string error = error_of([] {
    launch(3, [](Rank& rank) {
      if (rank.rank() != 1) rank.communicator().barrier();
    });
  });
  CHECK_THAT(error, StartsWith("[barrier] rank 1 has ended (its function returned), but rank ") &&
                        Contains(" waits for it in barrier (rank "));
  // A tensor that outlives its ranks.
  DistributedTensor x, alone;
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto y = DistributedTensor::distribute(Tensor::of<float>({4}, {1, 2, 3, 4}), mesh, "tp=Shard(0)");
    if (rank.rank() == 1) x = y;
  });
  CHECK(x.local().data<float>()[1] == 4);
  CHECK_THROWS_WITH(x.full_tensor(),
                    Equals("[all_gather] rank 0 has ended (its function returned), but rank 1 waits for it in "
                           "all_gather f32[2+2]"));
  launch(1, [&](Rank& rank) {
    alone = DistributedTensor::distribute(Tensor::of<float>({1}, {7}), DeviceMesh(rank, "tp=1"), "tp=Shard(0)");
  });
  CHECK(alone.full_tensor().data<float>()[0] == 7);
  CHECK(std::chrono::steady_clock::now() - start < 20s);
}

TEST_CASE("a deadline that the clock cannot hold is none") {
  using std::chrono::milliseconds;
  for (milliseconds deadline : {milliseconds::max(), milliseconds::max() - 1ms, milliseconds(10'000'000'000'000),
                                milliseconds_of(1e30), milliseconds_of(HUGE_VAL)})
    launch(2,
           [](Rank& rank) {
             if (rank.rank() == 1) std::this_thread::sleep_for(20ms);
             rank.communicator().barrier();
           },
           {.deadline = deadline});
  CHECK(milliseconds_of(600) == 600s);
  CHECK(milliseconds_of(0.25) == 250ms);
}

TEST_CASE("law 9: ranks that wait for each other on two meshes are freed too") {
  std::string error = error_of([] {
    launch(4, [](Rank& rank) {
      DeviceMesh mesh(rank, "dp=2,tp=2");
      if (rank.rank() == 3) throw Error("out of memory");
      mesh["tp"].communicator(1).barrier();
      mesh["dp"].communicator(1).barrier();
    });
  });
  CHECK(error == "out of memory (rank 3 of 4)");
}

TEST_CASE("labels and phases last as long as their scopes") {
  auto rank = Rank::single();
  CHECK(rank->label(Label::Kind::op).empty());
  {
    LabelScope a(*rank, Label::Kind::module, "model"), b(*rank, Label::Kind::module, "model.layers.0"),
        c(*rank, Label::Kind::op, "matmul");
    PhaseScope forward(*rank, Phase::forward);
    NoGrad no_grad(*rank);
    CHECK(rank->label(Label::Kind::module) == "model.layers.0");
    CHECK(rank->label(Label::Kind::op) == "matmul");
    CHECK(rank->label(Label::Kind::reason).empty());
    CHECK(rank->labels().size() == 3);
    CHECK(rank->phase == Phase::forward);
    CHECK(rank->no_grad == 1);
    {
      PhaseScope backward(*rank, Phase::backward);
      NoGrad again(*rank);
      CHECK((rank->phase == Phase::backward && rank->no_grad == 2));
    }
    CHECK((rank->phase == Phase::forward && rank->no_grad == 1));
  }
  CHECK((rank->labels().empty() && rank->phase == Phase::none && rank->no_grad == 0));
  uint64_t id = rank->next_id();
  CHECK(rank->next_id() > id);
}

TEST_CASE("ranks run on a device that is there") {
  auto error = [](Device device) {
    try {
      launch(1, [](Rank&) {}, {.device = device});
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(error(Device::cpu) == "");
  CHECK(error(Device::meta) == "[launch] ranks that run have bytes: use Rank::recorded() for a dry run");
  if (cuda::unavailable().empty()) {
    CHECK(error(Device::cuda) == "");
    CHECK_THROWS_WITH(cuda::use_device(1000), Contains(" failed: "));
  } else {
    CHECK(error(Device::cuda) == "[launch] " + cuda::unavailable());
    CHECK_THROWS_WITH(Rank::single(Device::cuda),
                      Contains("[cuda] tensors cannot be there: ") || Contains("this build has no CUDA"));
  }
  if (cuda::is_built()) return;
  CHECK_THROWS_WITH(cuda::Stream(), "[cuda] this build has no CUDA: configure it where nvcc is found, or use the CPU");
}
