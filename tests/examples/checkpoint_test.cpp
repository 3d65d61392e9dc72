// Checkpoints of llama_pretrain: killed runs go on, on any mesh; checkpoint_inspect and llama_convert.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>

#include "tests/examples/programs.h"

using namespace dtensor::testing;
namespace fs = std::filesystem;

namespace {

const std::string plans = source("examples/plans/");

struct Small {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(20000)), metrics = folder / "m.jsonl", dir = folder / "run";
  Words arguments{"--model",      source("examples/configs/llama_tiny.json"),
                  "--data",       text,
                  "--batch-size", "8",
                  "--seq-len",    "16",
                  "--threads",    "1",
                  "--lr",         "0.003"};
  Result operator()(const Words& more) const { return run("llama_pretrain", arguments + more); }
  Words saving(const std::string& steps) const {
    return {"--steps", steps, "--checkpoint-dir", dir, "--metrics", metrics};
  }
};

// Starts a program of ours whose output goes to a file.
pid_t start(const std::string& program, const Words& arguments, const std::string& output = "/dev/null") {
  std::string path = DTENSOR_BIN_DIR "/" + program;
  std::vector<char*> argv{path.data()};
  Words words = arguments;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  fflush(stdout);  // the child would write it too
  pid_t child = fork();
  if (child == 0) {
    if (!freopen(output.c_str(), "w", stdout) || !freopen("/dev/null", "w", stderr)) _exit(126);
    execv(path.c_str(), argv.data());
    _exit(127);
  }
  REQUIRE(child > 0);
  return child;
}

int ended(pid_t child) {
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

// Until the file has so many lines.
void wait_for_lines(const std::string& file, size_t n) {
  for (int i = 0; i < 6000; ++i) {
    if (fs::exists(file) && lines_of(read(file)).size() >= n) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL("no " << n << " lines in " << file);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

bool is_being_written(const std::string& checkpoints) {
  if (!fs::exists(checkpoints)) return false;
  for (const auto& entry : fs::directory_iterator(checkpoints))
    if (entry.path().extension() == ".tmp") return true;
  return false;
}

// Whole lines: the last one may have been cut off.
Metrics read_so_far(const Folder& folder, const std::string& file) {
  std::string text = read(file);
  return read_metrics(folder.write("so_far.jsonl", text.substr(0, text.rfind('\n') + 1)));
}

// A run of `steps` steps that is killed so often, after its first step, every second time at any moment and every
// second while a checkpoint is written: each start goes on, and all steps have the bits of a run that is not killed.
void kill_and_resume(int kills, const std::string& steps) {
  Small small;
  Words mesh{"--mesh", "dp=2"};
  std::string whole = small.folder / "whole.jsonl", out = small.folder / "out";
  REQUIRE(small(mesh + Words{"--steps", steps, "--metrics", whole}).code == 0);
  const Metrics wanted = read_metrics(whole);
  uint32_t random = 7;
  int while_writing = 0;
  size_t done = 0;
  for (int i = 0; i < kills; ++i) {
    fs::remove(out);
    bool goes_on = run("checkpoint_inspect", {small.dir}).code == 0;
    pid_t child =
        start("llama_pretrain", small.arguments + mesh + small.saving(steps) + Words{"--checkpoint-every", "2"}, out);
    wait_for_lines(out, goes_on ? 3 : 2);  // what is trained, perhaps what it goes on from, and a step
    random = random * 1664525u + 1013904223u;
    std::this_thread::sleep_for(std::chrono::microseconds((random >> 8) % 100000));
    if (i % 2)
      for (int wait = 0; wait < 5000 && !is_being_written(small.dir); ++wait)
        std::this_thread::sleep_for(std::chrono::microseconds(200));
    kill(child, SIGKILL);
    CHECK(WIFSIGNALED(ended(child)));  // it was not done yet
    while_writing += is_being_written(small.dir);
    CHECK(contains(read(out), "resumed from ") == goes_on);
    CHECK(!contains(read(out), "the one before it is taken"));  // what has a checkpoint's name is whole
    Metrics now = read_so_far(small.folder, small.metrics);
    done = now.loss.size();
    REQUIRE(done <= wanted.loss.size());
    CHECK(std::equal(now.loss.begin(), now.loss.end(), wanted.loss.begin()));  // to the bit
  }
  Result r = small(mesh + small.saving(steps));
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK(read_metrics(small.metrics).loss == wanted.loss);  // each step once
  CHECK(read_metrics(small.metrics).grad_norm == wanted.grad_norm);
  CHECK(while_writing >= kills / 4);
  std::printf("killed %d times by step %zu of %s, %d times while a checkpoint was written\n", kills, done,
              steps.c_str(), while_writing);
}

}  // namespace

TEST_CASE("a killed run goes on, bit for bit") { kill_and_resume(4, "100"); }
TEST_CASE("a hundred times killed run goes on, bit for bit", "[nightly]") { kill_and_resume(100, "4000"); }

TEST_CASE("a resume neither skips nor repeats data, on any mesh and plan") {
  Small small;
  std::string documents;
  std::vector<size_t> lengths;  // of 24 documents, each another: how many tokens a step counts says which it had
  for (size_t i = 0; i < 24; ++i) {
    lengths.push_back(3 + i * 3 / 2);
    documents += Json{{"text", some_text(60).substr(i % 8, lengths[i])}}.dump() + "\n";
  }
  std::replace(small.arguments.begin(), small.arguments.end(), small.text,
               small.folder.write("documents.jsonl", documents));
  small.arguments = small.arguments + Words{"--data-mode", "pad", "--shuffle"};
  *(std::find(small.arguments.begin(), small.arguments.end(), "--seq-len") + 1) = "48";
  auto counted = [&](const std::string& metrics) {
    std::vector<size_t> tokens;
    for (const std::string& line : lines_of(read(metrics)))
      if (Json j = Json::parse(line); j.contains("loss")) tokens.push_back(j["tokens"]);
    return tokens;
  };
  std::string whole = small.folder / "whole.jsonl";
  REQUIRE(small({"--steps", "8", "--metrics", whole}).code == 0);
  const std::vector<size_t> tokens = counted(whole);
  REQUIRE(tokens.size() == 8);
  size_t all = std::accumulate(lengths.begin(), lengths.end(), size_t(24));  // each with its end
  for (size_t epoch : {0, 3}) CHECK(tokens[epoch] + tokens[epoch + 1] + tokens[epoch + 2] == all);
  CHECK(std::set(tokens.begin(), tokens.end()).size() > 4);

  Words dp4{"--mesh", "dp=4", "--plan", plans + "fsdp.json", "--checkpoint-every", "4", "--max-time", "1e9"};
  REQUIRE(small(dp4 + small.saving("8")).code == 0);
  std::string first = read(small.metrics);
  for (const Words& mesh : {Words{"--mesh", "dp=2,tp=2", "--plan", plans + "fsdp_tp.json"},
                            Words{"--mesh", "tp=4", "--plan", plans + "tp_sp_loss.json"}, Words{}}) {
    small.folder.write("m.jsonl", first);
    fs::remove_all(small.dir + "/step-00000008");
    Result r = small(mesh + small.saving("8"));
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
    CHECK_THAT(r.out, Contains("resumed from " + small.dir + "/step-00000004, written on mesh dp=4\nstep 5/8 "));
    CHECK(counted(small.metrics) == tokens);
    CHECK(read_metrics(small.metrics).loss.size() == 8);
    CHECK(difference(read_metrics(small.metrics).loss, read_metrics(whole).loss, 8) < 1e-5);
  }
}

TEST_CASE("SIGTERM and SIGINT finish the step, write a checkpoint and exit with 0") {
  for (int signal : {SIGTERM, SIGINT}) {
    Small small;
    pid_t child = start("llama_pretrain", small.arguments + small.saving("100000") + Words{"--mesh", "dp=2"});
    wait_for_lines(small.metrics, 3);
    kill(child, signal);
    int status = ended(child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    size_t steps = read_metrics(small.metrics).loss.size();
    Json c = Json::parse(run("checkpoint_inspect", {small.dir, "--json"}).out);
    CHECK(c["values"]["step"] == steps);
  }
}

TEST_CASE("a run ends at --max-time with a checkpoint, and a run that is done has nothing to do") {
  Small small;
  Result r = small(small.saving("1000") + Words{"--max-time", "0.001"});
  CHECK(r.code == 0);
  CHECK_THAT(r.out, Contains("stopped after step 1 of 1000, which a checkpoint has: --resume auto goes on"));
  r = small(small.saving("1"));
  CHECK(r.code == 0);
  CHECK_THAT(r.out, Contains("nothing to do: step 1 of 1 is done"));
}

TEST_CASE("metrics say what a checkpoint took, and the last ones are kept") {
  Small small;
  REQUIRE(small(small.saving("5") + Words{"--checkpoint-every", "1", "--keep", "2"}).code == 0);
  std::vector<Json> lines;
  for (const std::string& line : lines_of(read(small.metrics))) lines.push_back(Json::parse(line));
  CHECK(lines[0]["kind"] == "run");
  CHECK_THAT(lines[0]["command"].get<std::string>(), Contains("--checkpoint-every 1"));
  std::vector<int> saved;
  for (const Json& line : lines)
    if (line.value("kind", "") == "checkpoint") {
      saved.push_back(line["step"]);
      CHECK(line["stalled_seconds"].get<double>() > 0);
      CHECK(line["written_seconds"].get<double>() > 0);
      CHECK(line["bytes"] == 1050496 * 12);
    }
  CHECK(saved == std::vector<int>{1, 2, 3, 4, 5});
  CHECK(Json::parse(run("checkpoint_inspect", {small.dir, "--json"}).out)["steps"] == Json{4, 5});
}

TEST_CASE("what cannot go on is an error") {
  Small small;
  REQUIRE(small(small.saving("2") + Words{"--checkpoint-every", "1"}).code == 0);
  struct Case {
    Words arguments;
    int code;
    std::string error;
  };
  Json other = Json::parse(read(source("examples/configs/llama_tiny.json")));
  other["rope_theta"] = 123.0;
  Folder folder;
  const Case cases[] = {
      {{"--steps", "1", "--checkpoint-every", "3"}, 2, "[llama_pretrain] --checkpoint-every 3 needs --checkpoint-dir"},
      {{"--steps", "1", "--resume", "auto"}, 2, "[llama_pretrain] --resume auto needs --checkpoint-dir"},
      {{"--steps", "1", "--resume", "never", "--checkpoint-dir", small.dir},
       2,
       "[llama_pretrain] --resume never, but --checkpoint-dir " + small.dir + " has checkpoints up to step 2"},
      {{"--steps", "1", "--resume", small.folder / "none"},
       2,
       "there is no such folder; give auto, never or a checkpoint"},
      {{"--steps", "3", "--resume", small.dir, "--seed", "43"}, 1, "has --seed 42: give the same"},
      {{"--steps", "3", "--resume", small.dir, "--seq-len", "8"},
       1,
       ": give the same --data, --data-weights, --batch-size and --seq-len"},
      {{"--steps", "3", "--resume", small.dir, "--model", folder.write("c.json", other.dump())},
       1,
       " is of another model: rope_theta is "},
      {{"--steps", "1", "--lr", "0.1", "--min-lr", "0.2"},
       2,
       "[Schedule] the least learning rate 0.2 is above the peak 0.1"},
      {{"--steps", "1", "--no-decay", "bias"}, 2, "[AdamW] no parameter's path ends in \"bias\""},
  };
  for (const Case& c : cases) {
    auto has = [&](const char* name) {
      return std::find(c.arguments.begin(), c.arguments.end(), name) != c.arguments.end();
    };
    Words base{"--data", small.text, "--batch-size", "8", "--threads", "1"};
    if (!has("--model")) base = base + Words{"--model", source("examples/configs/llama_tiny.json")};
    if (!has("--seq-len")) base = base + Words{"--seq-len", "16"};
    Result r = run("llama_pretrain", base + c.arguments);
    CAPTURE(c.arguments, r.err);
    CHECK(r.code == c.code);
    CHECK_THAT(r.err, Contains(c.error));
  }
  // A damaged one is said, and the one before it is taken.
  std::fstream(small.dir + "/step-00000002/rank-00000.safetensors", std::ios::in | std::ios::out)
      .seekp(-4, std::ios::end)
      .put(77);
  Result inspected = run("checkpoint_inspect", {small.dir});
  CHECK(inspected.code == 1);
  CHECK_THAT(inspected.err, Contains("is damaged: the checksum of "));
  Result r = small(small.saving("3"));
  CHECK(r.code == 0);
  CHECK_THAT(r.out, Contains("is damaged: the checksum of ") && Contains("; the one before it is taken") &&
                        Contains("step 2/3 "));
  CHECK(run("checkpoint_inspect", {small.folder / "none"}).code == 2);
  CHECK_THAT(run("checkpoint_inspect", {small.folder / "none"}).err,
             Contains("[checkpoint_inspect] " + small.folder / "none" + ": there is no such folder"));
  CHECK_THAT(run("checkpoint_inspect", {small.folder / ""}).err, Contains("is no checkpoint and has none"));
}

TEST_CASE("a checkpoint becomes a Hugging Face folder and comes back") {
  Small small;
  REQUIRE(small(small.saving("2")).code == 0);
  std::string exported = small.folder / "exported", imported = small.folder / "imported",
              again = small.folder / "again";
  Result r = run("llama_convert", {"--from", small.dir, "--to", exported});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  Json config = Json::parse(read(exported + "/config.json"));
  CHECK(config["torch_dtype"] == "float32");
  REQUIRE(run("llama_convert", {"--from", exported, "--to", imported}).code == 0);
  REQUIRE(run("llama_convert", {"--from", imported, "--to", again}).code == 0);
  CHECK(read(exported + "/model.safetensors") == read(again + "/model.safetensors"));
  // A run that begins with these weights goes on where they are.
  REQUIRE(small({"--steps", "1", "--init-from", exported, "--mesh", "tp=2", "--plan", plans + "tp.json", "--metrics",
                 small.folder / "init.jsonl"})
              .code == 0);
  CHECK(read_metrics(small.folder / "init.jsonl").loss[0] < read_metrics(small.metrics).loss[0] - 0.1);
  REQUIRE(run("llama_convert", {"--from", small.dir, "--to", small.folder / "bf16", "--dtype", "bf16", "--step", "2"})
              .code == 0);
  CHECK(fs::file_size(small.folder / "bf16/model.safetensors") <
        fs::file_size(exported + "/model.safetensors") * 6 / 10);

  struct Case {
    Words arguments;
    std::string error;
  };
  const Case cases[] = {
      {{"--from", small.folder / "no", "--to", "x"}, "there is no such folder"},
      {{"--from", exported, "--to", again}, "[llama_convert] --to " + again + " is not empty: name a new folder"},
      {{"--from", small.dir, "--to", small.folder / "x", "--step", "7"},
       "has no checkpoint of --step 7, but those of 2"},
      {{"--from", small.folder / "", "--to", small.folder / "x"}, " is neither a checkpoint nor a Hugging Face folder"},
      {{"--from", exported, "--to", small.folder / "x", "--dtype", "bf16"},
       "[llama_convert] --step and --dtype are for checkpoints, and --from "},
  };
  for (const Case& c : cases) {
    Result bad = run("llama_convert", c.arguments);
    CAPTURE(c.arguments);
    CHECK(bad.code == 2);
    CHECK_THAT(bad.err, Contains(c.error));
  }
}

TEST_CASE("an export has the head and the dtype that its config says") {
  for (bool tied : {true, false}) {
    Small small;
    Json config = Json::parse(read(source("examples/configs/llama_tiny.json")));
    config["tie_word_embeddings"] = tied;
    config["dtype"] = "float16";  // what it was once; it is trained, and exported, in another
    std::string one_batch = small.folder.write("one.txt", some_text(140)), model = small.folder / "model.json";
    small.folder.write("model.json", config.dump());
    Words eval{"--model", model, "--eval-data", one_batch};
    small.arguments.erase(small.arguments.begin(), small.arguments.begin() + 2);  // --model
    REQUIRE(small(eval + small.saving("2")).code == 0);
    double evaluated = 0;
    for (const std::string& line : lines_of(read(small.metrics)))
      if (Json j = Json::parse(line); j.contains("eval_loss")) evaluated = j["eval_loss"];
    struct Case {
      const char *dtype, *in_config, *in_file;
      double error;
    };
    for (const Case& c : {Case{"fp32", "float32", "F32", 0}, Case{"bf16", "bfloat16", "BF16", 1e-2}}) {
      std::string folder = small.folder / c.dtype, metrics = folder + ".jsonl";
      INFO(folder << ", tied: " << tied);
      REQUIRE(run("llama_convert", {"--from", small.dir, "--to", folder, "--dtype", c.dtype}).code == 0);
      Json written = Json::parse(read(folder + "/config.json"));
      CHECK(written["tie_word_embeddings"] == tied);
      CHECK(written["torch_dtype"] == c.in_config);
      CHECK(!written.contains("dtype"));
      std::string file = read(folder + "/model.safetensors");
      uint64_t header = 0;
      std::memcpy(&header, file.data(), 8);
      Json tensors = Json::parse(file.substr(8, header));
      CHECK(tensors.contains("lm_head.weight") != tied);
      for (const auto& [name, tensor] : tensors.items())
        if (name != "__metadata__") CHECK(tensor["dtype"] == c.in_file);
      // A run that begins with it has the loss of the one that it is from.
      small.arguments[1] = one_batch;
      REQUIRE(small({"--init-from", folder, "--steps", "1", "--metrics", metrics}).code == 0);
      small.arguments[1] = small.text;
      CHECK(std::abs(read_metrics(metrics).loss[0] - evaluated) <= c.error * evaluated);
    }
  }
}
