#include "nn/report/metrics.h"

#include "tests/examples/programs.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;

TEST_CASE("the numbers of a metrics line have names, and what is no number has none") {
  auto all =
      numbers(Json::parse(R"({"step": 3, "loss": 2, "x": null, "y": "z", "time": {"step": 0.5, "a": {"b": 1}}})"));
  CHECK(all == std::vector<std::pair<std::string, double>>{{"loss", 2}, {"time/step", 0.5}, {"time/a/b", 1}});
  CHECK(numbers(Json::parse(R"({"kind": "run", "ranks": 4})")).empty());
}

TEST_CASE("a metrics file is read as series over steps") {
  Folder folder;
  std::string file = folder.write("m.jsonl", R"({"kind": "run", "command": "first"}
{"step": 1, "loss": 3}
{"kind": "eval", "step": 1, "eval_loss": 2.5}

{"kind": "run", "command": "second"}
{"step": 2, "loss": null, "skipped": true}
{"step": 3, "loss": 1}
{"kind": "sample", "step": 3, "prompt": "a", "text": "b"}
)");
  RunMetrics m = RunMetrics::load(file);
  CHECK(m.run.at("command") == "second");
  CHECK(m.steps == 3);
  CHECK(m["loss"].steps == std::vector<int64_t>{1, 3});
  CHECK(m["loss"].values == std::vector<double>{3, 1});
  CHECK(m["eval_loss"].values == std::vector<double>{2.5});
  CHECK(m["none"].values.empty());
  REQUIRE(m.samples.size() == 1);
  CHECK((m.samples[0].step == 3 && m.samples[0].prompt == "a" && m.samples[0].text == "b"));
}

TEST_CASE("what is no metrics file is refused with its line") {
  Folder folder;
  CHECK_THROWS_WITH(RunMetrics::load(folder / "none"), Contains("[metrics] cannot read " + folder / "none"));
  CHECK_THROWS_WITH(RunMetrics::load(folder.write("a", "{\"step\": 1}\n[1]\n")),
                    Contains("a line 2 is no JSON object: this is no metrics file"));
  CHECK_THROWS_WITH(RunMetrics::load(folder.write("b", "{\"step\": 1}\n{\"st\n")), Contains("b line 2"));
  CHECK_THROWS_WITH(RunMetrics::load(folder.write("c", "{\"kind\": \"run\"}\n")),
                    Contains("has no steps: give the file of llama_pretrain --metrics"));
  CHECK_THROWS_WITH(RunMetrics::load(folder.write("d", "{\"step\": \"x\"}\n")),
                    Contains("d line 1: \"step\" is \"x\", no number of a step"));
}
