#include "dtensor/comm_log.h"

#include <catch2/catch.hpp>

#include "dtensor/creation.h"
#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;

TEST_CASE("a communication log adds up by any columns") {
  using By = CommLog::By;
  std::vector<std::vector<CommLog::Entry>> logs(2);
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor x = zeros(mesh, "f32[8,4] tp=Shard(0)"), y = zeros(mesh, "f32[2,3] tp=Shard(0)"),
                      p = zeros(mesh, "f32[4] tp=Partial");
    CommLog log(rank);
    {
      PhaseScope phase(rank, Phase::forward);
      LabelScope module(rank, Label::Kind::module, "model.layers.10"), op(rank, Label::Kind::op, "matmul"),
          line(rank, Label::Kind::plan_line, "model.layers.*: ColwiseParallel");
      redistribute(std::vector{x, y}, std::vector<Layout>(2));  // one launch of two tensors
      p.redistribute("tp=Replicate", {.reason = "the loss"});
    }
    PhaseScope phase(rank, Phase::backward);
    LabelScope module(rank, Label::Kind::module, "model.layers.2"), reason(rank, Label::Kind::reason, "why not");
    x.redistribute("tp=Replicate", {.asked_for = false});
    logs[size_t(rank.rank())] = log.entries();
    log.clear();
    check(log.entries().empty(), "cleared");
  });
  CHECK(logs[0] == logs[1]);
  const auto& log = logs[0];
  std::vector<CommTotal> want{{{"forward", "all_gather"}, 1, 2, 76},
                              {{"forward", "all_reduce"}, 1, 1, 16},
                              {{"backward", "all_gather"}, 1, 1, 64}};
  CHECK(totals(log, {By::phase, By::collective}) == want);
  CHECK(totals(log, {}) == std::vector<CommTotal>{{{}, 3, 4, 156}});
  struct Case {
    By by;
    std::vector<std::string> keys;  // in the order of the program
  };
  for (const Case& c : std::vector<Case>{
           {By::collective, {"all_gather", "all_reduce"}},
           {By::axes, {"tp"}},
           {By::tensor, {"f32[8,4]", "f32[2,3]", "f32[4]"}},
           {By::phase, {"forward", "backward"}},
           {By::module, {"model.layers.10", "model.layers.2"}},
           {By::op, {"matmul", ""}},
           {By::reason, {"", "the loss", "why not"}},
           {By::plan_line, {"model.layers.*: ColwiseParallel", ""}},
       }) {
    std::vector<std::string> keys;
    for (const CommTotal& t : totals(log, {c.by})) keys.push_back(t.key[0]);
    CHECK(keys == c.keys);
  }
  CHECK(summary(log, {By::phase, By::collective}) ==
        "phase     collective  launches  tensors  bytes\n"
        "forward   all_gather         1        2     76\n"
        "forward   all_reduce         1        1     16\n"
        "backward  all_gather         1        1     64\n"
        "total                        3        4    156\n");
  CHECK(summary(log, {}) ==
        "       launches  tensors  bytes\n"
        "total         3        4    156\n");
  CHECK(summary({}, {By::module}) ==
        "module  launches  tensors  bytes\n"
        "total          0        0      0\n");
  CHECK(count_by_kind(log) == std::map<std::string, int>{{"all_gather", 3}, {"all_reduce", 1}});
  CHECK(to_string(log[2]) ==
        "forward  all_reduce     tp            16 B  f32[4] tp=Partial(sum) -> tp=Replicate  model.layers.10: the loss "
        "[model.layers.*: ColwiseParallel]");
  CHECK(to_string(log[3]) ==
        "backward all_gather     tp            64 B  f32[8,4] tp=Shard(0) -> tp=Replicate  model.layers.2: why not "
        "(implicit)");
}
