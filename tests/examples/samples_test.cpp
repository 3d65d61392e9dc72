// --sample-every of llama_pretrain.
#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

const std::string plans = source("examples/plans/");

struct Small {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(20000));
  Result operator()(const std::string& metrics, const Words& more) const {
    return run("llama_pretrain", Words{"--model", source("examples/configs/llama_tiny.json"), "--data", text,
                                       "--batch-size", "8", "--seq-len", "32", "--lr", "0.003", "--steps", "5",
                                       "--threads", "1", "--hash", "--metrics", folder / metrics} +
                                     more);
  }
  std::vector<Json> lines(const std::string& metrics, const char* with) const {
    std::vector<Json> list;
    for (const std::string& line : lines_of(read(folder / metrics)))
      if (Json j = Json::parse(line); j.contains(with)) list.push_back(j);
    return list;
  }
  // What training computed, step by step.
  std::vector<Json> bits(const std::string& metrics) const {
    std::vector<Json> list;
    for (const Json& j : lines(metrics, "loss")) list.push_back({j.at("loss"), j.at("grad_norm"), j.at("hash")});
    return list;
  }
};

const Words samples{"--sample-every",  "2",   "--sample-prompt", "sum shard",
                    "--sample-prompt", "the", "--sample-tokens", "12"};

}  // namespace

TEST_CASE("texts written between steps change no bits of training, on any mesh") {
  Small small;
  std::vector<Json> texts;
  const Words ways[] = {{},
                        {"--dtype", "bf16", "--micro-batch-size", "4"},
                        {"--ema", "0.5"},
                        {"--strict", "--mesh", "dp=2", "--plan", plans + "fsdp.json"},
                        {"--strict", "--mesh", "tp=2", "--plan", plans + "tp_sp_loss.json"},
                        {"--strict", "--mesh", "dp=2,tp=2", "--plan", plans + "fsdp_tp.json"}};
  for (const Words& way : ways) {
    CAPTURE(way);
    REQUIRE(small("without", way).code == 0);
    Result r = small("with", way + samples);
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
    CHECK(small.bits("with") == small.bits("without"));
    CHECK(small.lines("without", "prompt").empty());
    std::vector<Json> all = small.lines("with", "prompt");
    REQUIRE(all.size() == 6);  // of steps 2, 4 and 5
    for (size_t i = 0; i < 6; ++i) {
      CHECK(all[i]["kind"] == "sample");
      CHECK(all[i]["step"] == (i < 2 ? 2 : i < 4 ? 4 : 5));
      CHECK(all[i]["prompt"] == (i % 2 ? "the" : "sum shard"));
      CHECK(!all[i]["text"].get<std::string>().empty());
    }
    if (way.empty()) texts = all;
    if (way.size() && way[0] == "--strict") CHECK(all == texts);  // the same on every mesh
    if (way.size() && way[0] == "--ema") CHECK(all != texts);     // by the average
  }
}

TEST_CASE("a text of a run is what llama_generate makes of its checkpoint, and is shown in the page") {
  Small small;
  Result r = small("m", samples + Words{"--checkpoint-dir", small.folder / "run", "--seed", "7", "--report",
                                        small.folder / "run.html", "--sample-temperature", "0.5"});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  std::vector<Json> all = small.lines("m", "prompt");
  REQUIRE(all.size() == 6);
  Result one = run("llama_generate", {"--from", small.folder / "run", "--json", "--seed", "7", "--temperature", "0.5",
                                      "--max-new-tokens", "12", "--prompt", "sum shard", "--prompt", "the"});
  REQUIRE(one.code == 0);
  for (size_t i : {0, 1}) CHECK(Json::parse(lines_of(one.out).at(i)).at("text") == all[4 + i].at("text"));
  CHECK_THAT(r.out, Contains("step 4: the model writes\n    sum shard"));
  CHECK_THAT(read(small.folder / "run.html"),
             Contains("<h2>Samples</h2><p>step 5</p><pre>the<b>") && Contains("<p>step 2</p><pre>sum shard<b>"));
  // Without a prompt a text begins as documents do; without --sample-every there is none.
  REQUIRE(small("n", {"--sample-every", "5", "--sample-tokens", "3"}).code == 0);
  CHECK(small.lines("n", "prompt").at(0).at("prompt") == "");
}

TEST_CASE("texts that a run cannot write are told before it begins") {
  Small small;
  struct Case {
    Words arguments;
    std::string error;
  };
  const Case cases[] = {
      {{"--sample-prompt", "a"}, "[llama_pretrain] --sample-prompt needs --sample-every"},
      {{"--sample-every", "-1"}, "--sample-every: -1 is below 0; see --help"},
      {{"--sample-every", "2", "--sample-tokens", "0"}, "--sample-tokens: 0 is not above 0; see --help"},
      {{"--sample-every", "2", "--sample-temperature", "-1"}, "--sample-temperature: -1 is below 0; see --help"},
      {{"--sample-every", "2", "--sample-prompt", "ab", "--sample-tokens", "2046"},
       "[llama_pretrain] a --sample-prompt of 3 tokens and --sample-tokens 2046 are more than the model's "
       "max_position_embeddings 2048"},
      {{"--sample-every", "2", "--mesh", "cp=2", "--plan",
        small.folder.write("cp.json", R"({"context_parallel": {"axis": "cp"}})")},
       "[llama_pretrain] --sample-every: texts come token by token, and mesh cp=2 divides the sequence: leave it out, "
       "and give a checkpoint to llama_generate"}};
  for (const Case& c : cases) {
    Result r = small("m", c.arguments);
    CAPTURE(c.arguments, r.err);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, StartsWith("llama_pretrain: " + c.error));
    CHECK(lines_of(r.err).size() == 1);
  }
  // A tokenizer of whose tokens none begins or ends a document.
  std::string tokenizer = small.folder / "tokenizer.json";
  REQUIRE(
      run("tokenizer_train", {"--data", small.text, "--vocab-size", "257", "--special", "<x>", "--output", tokenizer})
          .code == 0);
  Result r = small("m", {"--sample-every", "2", "--tokenizer", tokenizer});
  CAPTURE(r.err);
  CHECK(r.code == 2);
  CHECK_THAT(r.err, Contains("[llama_pretrain] --sample-prompt \"\" has no tokens, and nothing begins a document: give "
                             "a text"));
}
