// A profile adds up to its steps, and compares with what a machine allows.
#include "nn/report/profile.h"

#include <fmt/format.h>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Row {
  double calls = 0, ms = 0;
  std::vector<std::string> words;
};

// The lines of a table by their names, whose words are two spaces apart from the numbers.
std::map<std::string, Row> rows_of(const std::string& table) {
  std::map<std::string, Row> rows;
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    size_t end = line.find("  ");
    if (end == std::string::npos) continue;
    std::istringstream rest(line.substr(end));
    Row row;
    for (std::string word; rest >> word;) row.words.push_back(word);
    if (row.words.size() < 2 || row.words[0] == "calls") continue;
    row.calls = std::stod(row.words[0]), row.ms = std::stod(row.words[1]);
    rows[line.substr(0, end)] = row;
  }
  return rows;
}

std::string profile_of(const std::string& mesh, const ParallelPlan& plan, int steps,
                       const std::optional<Hardware>& ceilings) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    LlamaTraining training(m, small_llama(4, 64), plan, {});
    StepClock clock(m.rank_state());
    Profile profile(m.shape(), ceilings, bytes_of_update(training.optimizer));
    DistributedTensor ids = DistributedTensor::distribute(Tensor::of<int64_t>({8, 32}, std::vector<int64_t>(8 * 32, 3)),
                                                          m, batch_layout(m.shape(), plan));
    for (int i = 0; i < steps; ++i) {
      clock.begin();
      clock.loaded();
      training.trainer.step({ids, ids});
      clock.end();
      profile.add(clock);
    }
    return profile.table();
  })[0];
}

}  // namespace

TEST_CASE("a profile's lines add up to its step") {
  for (auto [mesh, plan] : {std::pair("dp=1", ""), {"dp=2", "fsdp.json"}}) {
    INFO(mesh);
    std::string table = profile_of(mesh, *plan ? ParallelPlan::load(plan_file(plan)) : ParallelPlan(), 3, {});
    INFO(table);
    auto rows = rows_of(table);
    double sum = 0;
    for (const auto& [name, row] : rows) sum += row.ms;
    size_t at = table.find("a step, mean of 3: ");
    REQUIRE(at != std::string::npos);
    double step = std::stod(table.substr(at + 19));
    CHECK(sum == Approx(step).epsilon(0.01).margin(0.0005 * double(rows.size())));  // each is rounded
    CHECK(rows.at("attention").calls == 2);                                         // layers
    CHECK(rows.at("linear").calls == 2 * 7 + 1);
    CHECK(rows.at("optimizer").calls == 1);
    CHECK(rows.count("wait for all_gather") == (mesh == std::string("dp=2")));
    CHECK_FALSE(Contains("ceiling").match(table));
  }
}

TEST_CASE("a profile compares each op with what a machine allows") {
  Hardware h = Hardware::load("h200");
  std::string table = profile_of("dp=1", {}, 2, h);
  INFO(table);
  CHECK_THAT(table, Contains("ceiling ms  reached") && Contains("; at the ceilings of " + h.name + " "));
  auto rows = rows_of(table);
  double ceilings = 0;
  for (const auto& [name, row] : rows) {
    INFO(name);
    if (name == "wait for data") continue;
    REQUIRE(row.words.back() == "%");
    ceilings += std::stod(row.words[row.words.size() - 3]);
  }
  double step = std::stod(table.substr(table.find("; at the ceilings of " + h.name) + 22 + h.name.size()));
  CHECK(ceilings == Approx(step).epsilon(0.01).margin(0.0005 * double(rows.size())));
}

TEST_CASE("a profile of no step is an error") {
  CHECK(error_of([] { Profile(MeshShape::parse("dp=1"), {}, 0).table(); }) ==
        "[Profile] no step was added: add() one that a StepClock has measured");
}
