// What llama_pretrain does in its loop on request: hashes, averages, bad steps, norms; dtensor_bisect; restart.sh.
#include <sys/stat.h>

#include <cmath>

#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

const std::string plans = source("examples/plans/");

struct Small {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(20000)), other = folder.write("other.txt", some_text(9000));
  // Metrics go to the file of this name.
  Result operator()(const std::string& metrics, const Words& more) const {
    return run("llama_pretrain",
               Words{"--model", source("examples/configs/llama_tiny.json"), "--data", text, "--batch-size", "4",
                     "--seq-len", "16", "--threads", "1", "--metrics", folder / metrics} +
                   more);
  }
  std::vector<Json> steps(const std::string& metrics) const {
    std::vector<Json> lines;
    for (const std::string& line : lines_of(read(folder / metrics)))
      if (Json j = Json::parse(line); j.contains("loss")) lines.push_back(j);
    return lines;
  }
};

}  // namespace

TEST_CASE("law 6: hashes of a run are the same every time, and on every mesh where the bits are") {
  Small small;
  REQUIRE(small("a", {"--steps", "3", "--hash"}).code == 0);
  REQUIRE(small("again", {"--steps", "3", "--hash"}).code == 0);
  REQUIRE(small("two", {"--steps", "3", "--hash", "--mesh", "dp=2"}).code == 0);
  REQUIRE(small("fsdp", {"--steps", "3", "--hash", "--mesh", "dp=2", "--plan", plans + "fsdp.json"}).code == 0);
  REQUIRE(small("seed", {"--steps", "3", "--hash", "--seed", "7"}).code == 0);
  std::vector<Json> a = small.steps("a"), again = small.steps("again"), two = small.steps("two"),
                    fsdp = small.steps("fsdp"), seed = small.steps("seed");
  REQUIRE(a.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(a[i]["hash"]["parameters"].get<std::string>().size() == 32);
    CHECK(again[i]["hash"] == a[i]["hash"]);
    CHECK(seed[i]["hash"] != a[i]["hash"]);
    // Stored whole or in shards: the same sums over ranks.
    if (two[i]["loss"] == fsdp[i]["loss"] && two[i]["grad_norm"] == fsdp[i]["grad_norm"])
      CHECK(two[i]["hash"] == fsdp[i]["hash"]);
  }
  CHECK(two[0]["hash"]["gradients"] == fsdp[0]["hash"]["gradients"]);
}

TEST_CASE("dtensor_bisect names the first step in which two runs differ, and how they were started") {
  Small small;
  REQUIRE(small("a", {"--steps", "4", "--hash"}).code == 0);
  REQUIRE(small("b", {"--steps", "3", "--hash"}).code == 0);  // another schedule: the rate differs from step 2 on
  Result same = run("dtensor_bisect", {small.folder / "a", small.folder / "a"});
  CHECK(same.code == 0);
  CHECK(same.out == "the same in all 4 steps that both have, up to step 4\n");
  Result differ = run("dtensor_bisect", {small.folder / "a", small.folder / "b"});
  CHECK(differ.code == 1);
  CHECK_THAT(differ.out, StartsWith("step 2 is the first that differs: in its parameters\n"
                                    "step 1 is the last that is the same, of 1\n") &&
                             Contains("--steps 4") && Contains("--steps 3") && Contains("mesh dp=1"));
  // What the files must be.
  REQUIRE(small("none", {"--steps", "1"}).code == 0);
  small.folder.write("text", "some text\n");
  small.folder.write("empty", "");
  std::string late = "{\"step\": 9, \"loss\": 1, \"grad_norm\": 1, \"hash\": {}}\n";
  small.folder.write("late", late);
  struct Case {
    const char *file, *error;
  };
  for (const Case& c : {Case{"none", "the step has no hash: train with --hash"},
                        Case{"text", "/text:1: no JSON object: is it a file of llama_pretrain --metrics?"},
                        Case{"empty", "/empty has no steps"}, Case{"late", "have no step in common"},
                        Case{"missing", "[dtensor_bisect] cannot read "}}) {
    Result r = run("dtensor_bisect", {small.folder / "a", small.folder / c.file});
    CHECK(r.code == 2);
    CHECK_THAT(r.err, Contains(c.error));
  }
}

TEST_CASE("module norms are the parts of the gradient norm") {
  Small small;
  REQUIRE(small("m", {"--steps", "2", "--module-norms", "--mesh", "tp=2", "--plan", plans + "tp_sp_loss.json"}).code ==
          0);
  for (const Json& line : small.steps("m")) {
    double sum = 0;
    for (const auto& [module, norm] : line["module_norms"].items()) sum += norm.get<double>() * norm.get<double>();
    CHECK(std::sqrt(sum) == Approx(line["grad_norm"].get<double>()).epsilon(1e-6));
    CHECK(line["module_norms"].contains("model.layers.0.self_attn.q_proj"));
  }
}

TEST_CASE("the average of --ema is what is evaluated, is in checkpoints and goes on from them") {
  Small small;
  Words eval{"--eval-data", small.other, "--eval-every", "2"}, ema{"--ema", "0.5", "--steps", "4"};
  auto evaluations = [&](const std::string& file) {
    std::vector<double> all;
    for (const std::string& line : lines_of(read(small.folder / file)))
      if (Json j = Json::parse(line); j.contains("eval_loss")) all.push_back(j["eval_loss"]);
    return all;
  };
  REQUIRE(small("without", eval + Words{"--steps", "4"}).code == 0);
  REQUIRE(small("whole", eval + ema).code == 0);
  CHECK(evaluations("whole") != evaluations("without"));
  CHECK(read_metrics(small.folder / "whole").loss == read_metrics(small.folder / "without").loss);
  Words saving{"--checkpoint-dir", small.folder / "run", "--checkpoint-every", "2"};
  REQUIRE(small("parts", eval + ema + saving).code == 0);
  std::filesystem::remove_all(small.folder / "run/step-00000004");
  REQUIRE(small("parts", eval + ema + saving + Words{"--mesh", "dp=2", "--plan", plans + "fsdp.json"}).code == 0);
  CHECK(difference(evaluations("parts"), evaluations("whole"), 2) < 1e-5);
  Result r = small("parts", Words{"--steps", "5"} + saving);
  CHECK(r.code == 1);
  CHECK_THAT(r.err, Contains(" has averages of the parameters: give --ema, as before"));
  Words other{"--checkpoint-dir", small.folder / "second"};
  REQUIRE(small("other", Words{"--steps", "1"} + other).code == 0);
  CHECK_THAT(small("other", Words{"--steps", "2", "--ema", "0.9"} + other).out,
             Contains("the checkpoint has no averages of the parameters: they begin here"));
}

TEST_CASE("the best checkpoint by the loss on --eval-data is kept beside the last ones") {
  Small small;
  REQUIRE(small("m", {"--steps", "6", "--eval-data", small.other, "--eval-every", "1", "--checkpoint-dir",
                      small.folder / "run", "--checkpoint-every", "1", "--keep", "1", "--lr", "0.1"})
              .code == 0);  // far too much
  int best = 0, step = 0;
  double least = 1e9;
  for (const std::string& line : lines_of(read(small.folder / "m")))
    if (Json j = Json::parse(line); j.contains("eval_loss"))
      if (++step; j["eval_loss"].get<double>() < least) least = j["eval_loss"], best = step;
  Json kept = Json::parse(run("checkpoint_inspect", {small.folder / "run", "--json"}).out)["steps"];
  CHECK(kept == (best == 6 ? Json{6} : Json{best, 6}));
}

TEST_CASE("steps that blow up are skipped, said and counted, also over a restart") {
  Small small;
  // Every norm is far above a thousandth of a float's largest value at this z-loss: all steps are bad.
  Words bad{"--z-loss", "1e38", "--checkpoint-dir", small.folder / "run"};
  Result r = small("m", bad + Words{"--steps", "2", "--skip-bad-steps", "2"});
  CAPTURE(r.err);
  CHECK(r.code == 0);
  CHECK_THAT(r.out, Contains("step 1 is skipped: the loss is ") && Contains("; 2 in all"));
  CHECK(small.steps("m")[1]["skipped"] == true);
  CHECK(small.steps("m")[1]["loss"].is_null());
  r = small("m", bad + Words{"--steps", "3", "--skip-bad-steps", "2"});  // the third in a row
  CHECK(r.code == 1);
  CHECK_THAT(r.err, Contains("[Trainer] step 3: the loss is "));
  r = small("n", Words{"--z-loss", "1e38", "--steps", "2"});
  CHECK(r.code == 1);
  CHECK_THAT(r.err, Contains("[Trainer] step 1: the loss is "));
}

TEST_CASE("restart.sh starts a run again while it fails, and no longer") {
  Folder folder;
  auto script = [&](const std::string& text) {
    std::string file = folder.write("run", "#!/bin/sh\n" + text);
    chmod(file.c_str(), 0755);
    return file;
  };
  auto restart = [&](const std::string& file) {
    return run("/usr/bin/env", {"PAUSE=0", "MOST=3", source("examples/restart.sh"), file});
  };
  std::string count = "echo x >> " + folder / "count" + "\n";
  auto starts = [&] { return lines_of(read(folder / "count")).size(); };
  Result r = restart(script(count + "[ $(wc -l < " + folder / "count" + ") = 3 ]"));  // the third time it goes well
  CHECK(r.code == 0);
  CHECK(starts() == 3);
  r = restart(script(count + "exit 2"));
  CHECK(r.code == 2);
  CHECK(starts() == 4);
  r = restart(script(count + "exit 1"));
  CHECK(r.code == 1);
  CHECK(starts() == 8);
  CHECK_THAT(r.err, Contains("it failed 4 times in a row, the last time with 1: given up"));
}

TEST_CASE("the Slurm script starts what llama_pretrain takes, and queues itself again until all steps are done") {
  Small small;
  const Folder& f = small.folder;
  Words train{"--steps", "2", "--checkpoint-dir", f / "run"};
  REQUIRE(small("m", train).code == 0);
  std::filesystem::create_directory(f / "bin");
  std::filesystem::create_directory(f / "build");
  std::filesystem::create_directory_symlink(DTENSOR_BIN_DIR, f / "build/bin");
  std::filesystem::create_directory_symlink(source("examples"), f / "examples");
  auto stand_in = [&](const std::string& name, const std::string& text) {
    std::string file = f.write("bin/" + name, "#!/bin/sh\n" + text);
    chmod(file.c_str(), 0755);
  };
  stand_in("srun", "shift; exec \"$@\" --check\n");  // the launcher's own option goes
  stand_in("scontrol", "if [ $1 = show ]; then echo host1; echo host2; else echo \"$@\" >> " + f / "queued" + "; fi\n");
  for (bool more : {false, true}) {
    Result r = run("/bin/sh",
                   {"-c", "cd " + f / "" + " && PATH=" + f / "bin" +
                              ":$PATH SLURM_JOB_ID=7 SLURM_JOB_NODELIST=x RUN=" + f / "run" + " DATA=" + small.text +
                              " STEPS=" + (more ? "3" : "2") + " bash " + source("examples/slurm/pretrain.sbatch")});
    CAPTURE(r.err);
    CHECK(r.code == 0);
    CHECK(r.out == "fits\n");
    CHECK(std::filesystem::exists(f / "queued") == more);
  }
  CHECK(read(f / "queued") == "requeue 7\n");
}

TEST_CASE("a run's command, as its metrics have it, can be given to a shell again") {
  Small small;
  small.text = small.folder.write("a text that's \"odd\" $HOME.txt", some_text(9000));
  REQUIRE(small("first", {"--steps", "1"}).code == 0);
  std::string command = Json::parse(lines_of(read(small.folder / "first"))[0])["command"];
  CHECK_THAT(command, Contains("a text that'\\''s \"odd\" $HOME.txt' --batch-size 4 "));
  std::filesystem::remove(small.folder / "first");
  CHECK(run("/bin/sh", {"-c", command}).code == 0);
  CHECK(small.steps("first").size() == 1);
}
