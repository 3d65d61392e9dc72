#include "dtensor/comm_log.h"

#include <catch2/catch.hpp>

#include "dtensor/creation.h"
#include "dtensor/table.h"
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
    for (const std::vector<By>& by : {std::vector<By>{}, {By::phase, By::collective}, {By::module}, {By::tensor}}) {
      check(log.totals(by) == totals(log.entries(), by), "totals of the log and of its entries");
      check(log.summary(by) == summary(log.entries(), by), "{}", log.summary(by));
    }
    check(log.size() == 4, "{} collectives", log.size());
    log.clear();
    check(log.entries().empty() && log.size() == 0 && log.totals({})[0].launches == 0, "cleared");
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

TEST_CASE("a communication log of a loop keeps totals, and the list as long as there is room") {
  using By = CommLog::By;
  auto rank = Rank::recorded(2);
  DeviceMesh mesh(*rank, "tp=2");
  DistributedTensor x = zeros(mesh, "f32[8,4] tp=Shard(0)"), y = zeros(mesh, "f32[2,3] tp=Shard(0)");
  CommLog log(*rank, 300), all(*rank);
  auto step = [&](Phase p) {
    PhaseScope phase(*rank, p);
    redistribute(std::vector{x, y}, std::vector<Layout>(2));  // one launch
    x.redistribute({Replicate()});
  };
  for (int i = 0; i < 50; ++i) {
    step(Phase::forward), step(Phase::backward);
    CHECK(log.entries().size() == size_t(6 * (i + 1)));  // written out in parts
  }
  const std::vector<CommLog::Entry> half = log.entries();
  std::vector<int> groups;
  for (size_t i = 0; i < 8; ++i) groups.push_back(half[i].group);
  CHECK(groups == std::vector<int>{0, 0, 1, 2, 2, 3, 4, 4});
  for (int i = 0; i < 50; ++i) step(Phase::forward), step(Phase::backward);
  CHECK(all.entries().size() == 600);
  CHECK(std::equal(half.begin(), half.end(), all.entries().begin()));
  const std::vector<CommTotal> want{{{"forward", "f32[8,4]"}, 200, 200, 12800},
                                    {{"forward", "f32[2,3]"}, 100, 100, 1200},
                                    {{"backward", "f32[8,4]"}, 200, 200, 12800},
                                    {{"backward", "f32[2,3]"}, 100, 100, 1200}};
  for (const CommLog* l : {&log, &all}) {
    CHECK(l->size() == 600);
    CHECK(l->totals({By::phase, By::tensor}) == want);
    CHECK(l->totals({}) == std::vector<CommTotal>{{{}, 400, 600, 28000}});
  }
  CHECK(totals(all.entries(), {By::phase, By::tensor}) == want);
  CHECK_THROWS_WITH(log.entries(),
                    "[CommLog::entries] there were 600 collectives, and the list has room for 300: ask "
                    "for totals(), clear() it between steps, or give CommLog(rank, most_entries) a "
                    "larger one");
  log.clear();
  step(Phase::forward);
  CHECK(log.entries().size() == 3);
  CHECK(log.totals({})[0].launches == 2);
  CHECK(CommLog(*rank, 0).entries().empty());
  CHECK_THROWS_WITH(CommLog(*rank, -1), "[CommLog] a list of at most -1 collectives: give 0 or more");
}

TEST_CASE("a launch in which an observer asks for the entries has one number") {
  struct Asks : Observer {
    const CommLog* log;
    std::vector<size_t> seen;
    void on_collective(const CollectiveEvent&) override { seen.push_back(log->entries().size()); }
  } asks;
  auto rank = Rank::recorded(2);
  DeviceMesh mesh(*rank, "tp=2");
  DistributedTensor x = zeros(mesh, "f32[8,4] tp=Shard(0)");
  CommLog log(*rank);
  asks.log = &log;
  rank->add(asks);
  for (int i = 0; i < 2; ++i) redistribute(std::vector{x, x, x}, std::vector<Layout>(3));
  rank->remove(asks);
  CHECK(asks.seen == std::vector<size_t>{1, 2, 3, 4, 5, 6});
  CHECK(log.entries()[2].group == 0);
  CHECK(log.entries()[5].group == 1);
  CHECK(log.totals({})[0].launches == 2);
}

TEST_CASE("tables have aligned columns") {
  CHECK(table("<><", {{"name", "n", "what"}, {"a", "10", "b"}, {"longer", "9"}}) ==
        "name     n  what\n"
        "a       10  b\n"
        "longer   9\n");
  CHECK(table("", {}).empty());
  CHECK_THROWS_WITH(table("<", {{"a", "b"}}), "[table] a line of 2 columns, of which 1 are aligned");
}
