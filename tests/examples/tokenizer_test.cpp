// tokenizer_train, tokenize, data_prepare, and a training on what they made.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/examples/programs.h"

using namespace dtensor::testing;
using Catch::Contains;
using Catch::StartsWith;

namespace {

std::string some_lines() {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i % 97) + " of the text, and so on.\n";
  return text;
}

}  // namespace

TEST_CASE("text is tokenized, prepared and trained on") {
  Folder folder;
  std::string text = folder.write("text.txt", some_lines()), tokenizer = folder / "tokenizer.json",
              shards = folder / "shards";
  Result r =
      run("tokenizer_train", {"--data", text, "--vocab-size", "300", "--pattern", "llama3", "--output", tokenizer});
  CHECK(r.err.empty());
  REQUIRE(r.code == 0);
  CHECK(r.out == "300 tokens, written to " + tokenizer + "\n");

  auto shell = [&](const std::string& command) { return run("/bin/sh", {"-c", command}); };
  std::string tokenize = std::string(DTENSOR_BIN_DIR) + "/tokenize --tokenizer " + tokenizer;
  r = shell(tokenize + " --json <" + text);
  REQUIRE(r.code == 0);
  CHECK(nlohmann::json::parse(r.out).is_array());
  r = shell(tokenize + " <" + text + " | " + tokenize + " --decode");
  CHECK(r.out == some_lines());
  r = shell("echo 1 x 2 | " + tokenize + " --decode");
  CHECK(r.code == 2);
  Result full = shell(tokenize + " --json <" + text + " >/dev/full");
  CHECK(full.code == 1);
  CHECK(full.err == "tokenize: [tokenize] cannot write to standard output: is the disk full?\n");
  CHECK(r.err == "tokenize: [tokenize] \"x\" is no id: --decode reads numbers between spaces or commas\n");

  for (const char* out : {": 1 documents, ", " is there"}) {  // a second time, it is there
    r = run("data_prepare", {"--tokenizer", tokenizer, "--data", text, "--output", shards});
    CHECK(r.code == 0);
    CHECK_THAT(r.out, Contains(out));
  }
  r = run("data_prepare", {"--tokenizer", tokenizer, "--data", folder / "none.txt", "--output", shards});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, StartsWith("data_prepare: [data_prepare] cannot read ") && Contains(": it is no file"));
  r = run("tokenizer_train", {"--data", text, "--vocab-size", "300", "--output", folder / "no/t.json"});
  CHECK(r.code == 1);
  CHECK_THAT(r.err, Contains(": does the folder exist, is the disk full?"));

  Words pretrain = {"--model",      std::string(DTENSOR_SOURCE_DIR) + "/examples/configs/llama_tiny.json",
                    "--batch-size", "8",
                    "--seq-len",    "16",
                    "--threads",    "1",
                    "--tokenizer",  tokenizer};
  auto with = [&](const Words& more) {
    Words all = pretrain;
    all.insert(all.end(), more.begin(), more.end());
    return run("llama_pretrain", all);
  };
  CHECK_THAT(with({"--data", text, "--steps", "1"}).err,
             Contains("vocab_size 259 is smaller than the tokenizer's 300"));
}

TEST_CASE("shards are made again where a text or the tokenizer is newer, and a run that was cut off goes on") {
  namespace fs = std::filesystem;
  Folder folder;
  std::string a = folder.write("a.txt", some_lines()), b = folder.write("b.jsonl", "{\"text\": \"cut o"),
              tokenizer = folder / "tokenizer.json", shards = folder / "shards";
  const std::string first = shards + "/00000_a.txt.bin", second = shards + "/00001_b.jsonl.bin";
  REQUIRE(run("tokenizer_train", {"--data", a, "--vocab-size", "300", "--output", tokenizer}).code == 0);
  auto prepare = [&](const Words& more = {}) {
    return run("data_prepare", Words{"--tokenizer", tokenizer, "--data", a, b, "--output", shards} + more);
  };
  folder.write("shards/00000_a.txt.bin.partial", "what a run that was killed leaves");
  Result r = prepare();
  CHECK(r.code == 2);
  CHECK_THAT(r.err, Contains("line 1 of " + b + " is no JSON object"));
  CHECK(fs::exists(first));
  CHECK(!fs::exists(first + ".partial"));
  CHECK(!fs::exists(second));
  CHECK(!fs::exists(second + ".partial"));

  folder.write("b.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
  r = prepare();
  CHECK(r.code == 0);
  CHECK_THAT(r.out, StartsWith(first + " is there\n" + second + ": 2 documents, "));
  const std::string bytes[] = {read_file(first), read_file(second)};
  CHECK(prepare().out == first + " is there\n" + second + " is there\n");

  auto later = [&](const std::string& file) {
    fs::last_write_time(file,
                        std::max(fs::last_write_time(first), fs::last_write_time(second)) + std::chrono::seconds(2));
    Result again = prepare({"--threads", "3"});
    for (const std::string& made : {first, second}) fs::last_write_time(made, fs::last_write_time(file));
    return again.out;
  };
  CHECK_THAT(later(b), StartsWith(first + " is there\n" + second + ": 2 documents, "));
  CHECK_THAT(later(tokenizer), StartsWith(first + ": 1 documents, ") && Contains(second + ": 2 documents, "));
  CHECK(read_file(first) == bytes[0]);  // with any number of threads
  CHECK(read_file(second) == bytes[1]);
}

TEST_CASE("special tokens may be in brackets or not, as they are given") {
  Folder folder;
  std::string text = folder.write("text.txt", some_lines()), tokenizer = folder / "tokenizer.json";
  Words train{"--data", text, "--vocab-size", "300", "--output", tokenizer};
  auto special = [&](const Words& more) {
    Result r = run("tokenizer_train", train + more);
    CHECK(r.err.empty());
    Json file = Json::parse(read(tokenizer));
    Words contents;
    for (const Json& token : file["added_tokens"]) contents.push_back(token["content"]);
    return contents;
  };
  CHECK(special({}) == Words{"[BOT]", "[EOT]", "[PAD]"});
  CHECK(special({"--special", "[A]", "<s>", "[PAD]"}) == Words{"[A]", "<s>", "[PAD]"});
}

TEST_CASE("data that takes longer to prepare than --deadline lets no rank wait for another") {
  Folder folder;
  std::string pipe = folder / "slow.jsonl";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  std::thread writer([&] {
    using namespace std::chrono_literals;
    int file = -1;  // until somebody reads, for a minute at most
    for (int i = 0; i < 600 && file < 0; ++i) {
      std::this_thread::sleep_for(100ms);
      file = open(pipe.c_str(), O_WRONLY | O_NONBLOCK);
    }
    std::this_thread::sleep_for(4s);
    std::string document = Json{{"text", some_text(2000)}}.dump() + "\n";
    if (file >= 0 && write(file, document.data(), document.size()) > 0) close(file);
  });
  Result r = run("llama_pretrain",
                 {"--model", source("examples/configs/llama_tiny.json"), "--batch-size", "8", "--seq-len", "16",
                  "--threads", "1", "--data", pipe, "--steps", "2", "--mesh", "dp=2", "--deadline", "3"});
  writer.join();
  CHECK(r.err.empty());
  CHECK(r.code == 0);
  CHECK_THAT(r.out, Contains("step 2/2"));
}

TEST_CASE("epochs end where the data does, and evaluation is a line of its own") {
  Folder folder;
  std::string text = folder.write("text.txt", std::string(8 * 16 * 2 - 1, 'x')), metrics = folder / "m.jsonl";
  Result r =
      run("llama_pretrain", {"--model", std::string(DTENSOR_SOURCE_DIR) + "/examples/configs/llama_tiny.json",
                             "--batch-size", "8", "--seq-len", "16", "--threads", "1", "--data", text, "--epochs", "2",
                             "--shuffle", "--eval-data", text, "--eval-every", "3", "--metrics", metrics});
  CHECK(r.err.empty());
  REQUIRE(r.code == 0);
  CHECK_THAT(r.out, Contains("end of epoch 1\n") && Contains("end of epoch 2\n") && Contains("step 4/4"));
  std::vector<int> evaluated;
  for (const std::string& line : lines_of(read(metrics)))
    if (auto j = nlohmann::json::parse(line); j.contains("eval_loss")) {
      CHECK(j["kind"] == "eval");
      CHECK(!j.contains("loss"));
      evaluated.push_back(j["step"]);
    }
  CHECK(evaluated == std::vector<int>{3, 4});
}

TEST_CASE("a mixture of files goes on from a checkpoint on another mesh, and not with other weights") {
  Folder folder;
  // Documents of 2 to 9 tokens and of 20 to 27: how many tokens a step counts says from which file they were.
  std::string shorter, longer, checkpoints = folder / "checkpoints";
  for (size_t i = 0; i < 24; ++i) {
    shorter += Json{{"text", std::string(1 + i % 8, 'a')}}.dump() + "\n";
    longer += Json{{"text", std::string(19 + i % 8, 'b')}}.dump() + "\n";
  }
  Words data{"--data", folder.write("short.jsonl", shorter), folder.write("long.jsonl", longer)};
  auto train = [&](const Words& more) {
    return run("llama_pretrain",
               Words{"--model", source("examples/configs/llama_tiny.json"), "--batch-size", "8", "--seq-len", "32",
                     "--threads", "1", "--data-mode", "pad", "--shuffle", "--steps", "8"} +
                   data + more);
  };
  auto counted = [&](const std::string& metrics) {
    std::vector<int64_t> tokens;
    for (const std::string& line : lines_of(read(folder / metrics)))
      if (Json j = Json::parse(line); j.contains("loss")) tokens.push_back(j["tokens"]);
    return tokens;
  };
  REQUIRE(train({"--data-weights", "3", "1", "--metrics", folder / "whole"}).code == 0);
  std::vector<int64_t> tokens = counted("whole");
  REQUIRE(tokens.size() == 8);
  for (int64_t n : tokens) {  // six short ones and two long ones
    CHECK(n >= 6 * 2 + 2 * 20);
    CHECK(n <= 6 * 9 + 2 * 27);
  }
  Words saving{"--checkpoint-dir", checkpoints, "--checkpoint-every", "3", "--metrics", folder / "m"};
  REQUIRE(train(saving + Words{"--mesh", "dp=2", "--data-weights", "3,1"}).code == 0);
  CHECK(counted("m") == tokens);
  for (const char* last : {"8", "6"}) std::filesystem::remove_all(checkpoints + "/step-0000000" + last);
  Result r = train(saving + Words{"--mesh", "dp=4", "--data-weights", "3", "1"});
  CHECK_THAT(r.out, Contains("written on mesh dp=2\nstep 4/8 "));
  CHECK(counted("m") == tokens);

  for (const Words& weights : {Words{"--data-weights", "1", "1"}, Words{}}) {
    r = train(Words{"--resume", checkpoints + "/step-00000003"} + weights);
    CHECK(r.code == 1);
    CHECK_THAT(r.err, Contains(R"("weights":[3.0,1.0])") && Contains(": give the same --data, --data-weights, "));
  }
  struct Case {
    Words weights;
    std::string error;
  };
  for (const Case& c : {Case{{"1"}, "[llama_pretrain] --data-weights 1 for the 2 paths of --data: give one number for"},
                        {{"1", "2", "3"}, "[llama_pretrain] --data-weights 1 2 3 for the 2 paths of --data: give one"},
                        {{"1", "0"}, "--data-weights: 0 is not above 0"},
                        {{"1,-2"}, "--data-weights: -2 is not above 0"},
                        {{"0", "0"}, "--data-weights: 0 is not above 0"},
                        {{"1", "nan"}, "--data-weights: nan is no number"},
                        {{"1", "inf"}, "[data] weight inf of part 1 is no positive number"},
                        {{"1", "much"}, "--data-weights"},
                        {{"1", "1e-9"}, "[data] weight 1e-09 of part 1 is less than 1/4096 of the sum 1.000000001"}}) {
    r = train(Words{"--data-weights"} + c.weights);
    CAPTURE(c.weights, r.err);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, Contains(c.error));
  }
}

TEST_CASE("padding is no token of the metrics") {
  Folder folder;
  std::string text = folder.write("text.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"abcdefghijklmnopqrstuvw\"}\n"),
              metrics = folder / "m.jsonl";
  Result r = run("llama_pretrain", {"--model", std::string(DTENSOR_SOURCE_DIR) + "/examples/configs/llama_tiny.json",
                                    "--batch-size", "2", "--seq-len", "16", "--threads", "1", "--data", text,
                                    "--data-mode", "pad", "--steps", "1", "--metrics", metrics});
  CHECK(r.err.empty());
  REQUIRE(r.code == 0);
  CHECK(nlohmann::json::parse(lines_of(read(metrics)).at(1))["tokens"] == 3 + 16);
}
