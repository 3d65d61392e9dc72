// A machine's figures, measured.
#include "nn/foresight/calibrate.h"

#include <fmt/format.h>

#include "placement/error.h"
#include "tests/examples/programs.h"

using namespace dtensor;
using namespace dtensor::nn;

namespace {

using Samples = std::vector<std::pair<double, double>>;

}  // namespace

TEST_CASE("a fit finds the seconds and the rate that samples were made with") {
  for (Rate made : {Rate{1e-5, 1e9}, Rate{0, 1e9}, Rate{1e-3, 1e6}}) {
    Samples samples;
    for (double work : {1e2, 1e4, 1e6, 1e8}) samples.emplace_back(work, made.of(work));
    Rate r = fit(samples);
    CHECK(r.seconds == Approx(made.seconds).margin(1e-12));
    CHECK(r.per_second == Approx(made.per_second));
  }
}

TEST_CASE("a fit has neither negative seconds nor a negative rate, whatever was measured") {
  Rate more_work_in_less_time = fit({{1e3, 2e-5}, {1e6, 1e-5}});
  CHECK(more_work_in_less_time.of(1e3) == Approx(more_work_in_less_time.of(1e6)));
  CHECK(more_work_in_less_time.seconds > 0);
  Rate no_constant = fit({{1e3, 1e-9}, {1e6, 1e-5}});
  CHECK(no_constant.seconds == 0);
  CHECK(no_constant.per_second > 0);
  Rate one_size = fit({{1e6, 1e-3}, {1e6, 1e-3}});
  CHECK(one_size.of(1e6) == Approx(1e-3));
  CHECK(fit({{0, 1e-3}}).of(0) == Approx(1e-3));
  for (const Samples& none : {Samples{}, Samples{{1e6, 0}}})
    CHECK_THROWS_WITH(fit(none), Catch::Contains(" samples took time: measure larger ones"));
}

TEST_CASE("calibration says what it needs to know of the machine") {
  for (CalibrateOptions o : {CalibrateOptions{}, CalibrateOptions{.memory_bytes = 1, .cores = 0},
                             CalibrateOptions{.memory_bytes = 1, .steps = 0}})
    CHECK_THROWS_WITH(calibrate(o), Catch::Contains(fmt::format(
                                        "[calibrate] {} bytes of memory, {} cores and {} steps: say what the machine "
                                        "has, and how often to measure",
                                        o.memory_bytes, o.cores, o.steps)));
}

TEST_CASE("dtensor_calibrate writes hardware that dtensor_plan predicts with, and each bad argument is named") {
  using namespace dtensor::testing;
  Folder folder;
  std::string file = folder / "here.json";
  Result r = run("dtensor_calibrate", {"--device", "cpu", "--steps", "1", "--output", file});
  CHECK(r.code == 0);
  CHECK_THAT(r.err, Contains("a step of 8 ranks over tp"));
  Hardware h = Hardware::load(file);
  CHECK(Hardware::from_json(h.to_json()).to_json() == h.to_json());
  CHECK(h.ops.contains("attention_backward"));
  CHECK(!h.overlaps);
  CHECK(h.slowdown(8) > 0);
  CHECK(h.waits.size() == 4);
  Result cost = run("dtensor_plan", {"cost", "--json", "--model", source("examples/configs/llama_tiny.json"), "--mesh",
                                     "dp=2", "--dtype", "fp32", "--hardware", file});
  CHECK(Json::parse(cost.out)["time"]["step_seconds"] > 0);

  struct Case {
    Words arguments;
    const char* error;
    int code = 2;
  };
  std::vector<Case> cases = {{{}, "--output is required"},
                             {{"--output", folder / "no/here.json"}, "/no/here.json: does the folder exist?"},
                             {{"--output", file, "--device", "tpu"}, "tpu"},
                             {{"--output", file, "--steps", "0"}, "--steps"},
                             {{"--output", "/dev/full", "--device", "cpu", "--steps", "1"},
                              "[dtensor_calibrate] cannot write --output /dev/full: is the disk full?",
                              1}};
  if (run("dtensor_calibrate", {"--output", file, "--device", "cuda", "--steps", "1"}).code == 2)
    cases.push_back({{"--output", file, "--device", "cuda"}, "[dtensor_calibrate] --device cuda: "});
  for (const Case& c : cases) {
    Result wrong = run("dtensor_calibrate", c.arguments);
    CHECK(wrong.code == c.code);
    CHECK_THAT(wrong.err, Contains(c.error));
  }
}
