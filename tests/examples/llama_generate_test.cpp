// llama_generate, from a run's checkpoints and from a Hugging Face folder made of them.
#include <set>

#include "tests/examples/programs.h"

using namespace dtensor::testing;
namespace fs = std::filesystem;

namespace {

// A tiny model that has seen some words, on byte tokens, and the Hugging Face folder that llama_convert makes of it.
struct Trained {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(20000)), dir = folder / "run", exported = folder / "exported";

  explicit Trained(const std::string& model = "llama_tiny") {
    REQUIRE(run("llama_pretrain", {"--model", source("examples/configs/" + model + ".json"), "--data", text, "--steps",
                                   "25", "--batch-size", "8", "--seq-len", "32", "--lr", "0.003", "--threads", "1",
                                   "--checkpoint-dir", dir, "--metrics", folder / "m.jsonl"})
                .code == 0);
    Result r = run("llama_convert", {"--from", dir, "--to", exported});
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
  }
};

const Words two_prompts = {"--prompt", "sum shard of", "--prompt", "the"};

std::vector<Json> json_of(const Words& arguments) {
  Result r = run("llama_generate", arguments + Words{"--json", "--threads", "1"});
  CAPTURE(arguments, r.err);
  REQUIRE(r.code == 0);
  std::vector<Json> lines;
  for (const std::string& line : lines_of(r.out)) lines.push_back(Json::parse(line));
  return lines;
}

// The options that --help lists.
std::set<std::string> options_in(const std::string& text, const std::string& line_begin) {
  std::set<std::string> found;
  for (const std::string& line : lines_of(text))
    if (line.starts_with(line_begin)) {
      size_t at = line_begin.size() - 2;
      found.insert(line.substr(at, line.find_first_of(" ,`:", at) - at));
    }
  return found;
}

}  // namespace

TEST_CASE("llama_generate: the same text from a checkpoint and a folder, on any mesh, with a cache and without") {
  Trained t;
  Words greedy = two_prompts + Words{"--max-new-tokens", "24", "--temperature", "0"},
        sampled = two_prompts + Words{"--max-new-tokens", "24",  "--temperature", "1", "--top-k", "50",
                                      "--top-p",          "0.9", "--seed",        "5"};
  for (const Words& how : {greedy, sampled}) {
    std::vector<Json> one = json_of(Words{"--from", t.dir} + how);
    REQUIRE(one.size() == 2);
    CHECK(one[0]["prompt_ids"].size() == 13);  // [BOT] and 12 bytes
    CHECK(one[0]["prompt_ids"][1] == 's');
    CHECK(one[0]["ids"].size() <= 24);
    CHECK(one[0]["text"].get<std::string>().size() >= 20);
    for (const Words& more : {Words{"--no-cache"},
                              {"--mesh", "tp=2"},
                              {"--mesh", "tp=4", "--plan", "auto"},
                              {"--mesh", "dp=2"},
                              {"--mesh", "tp=2", "--plan", source("examples/plans/tp_sp_loss.json")}})
      CHECK(json_of(Words{"--from", t.dir} + how + more) == one);
    CHECK(json_of(Words{"--from", t.exported, "--tokenizer", "bytes"} + how)[0]["text"].get<std::string>().size() > 0);
  }
  // Prompts alone give what they give together, and the text is what is shown as it comes.
  std::vector<Json> both = json_of(Words{"--from", t.dir} + greedy);
  Words alone{"--from", t.dir, "--prompt", "the", "--max-new-tokens", "24", "--temperature", "0"};
  CHECK(json_of(alone)[0] == both[1]);
  std::string first = both[0]["text"], second = both[1]["text"];
  CHECK(run("llama_generate", alone).out == second + "\n");
  CHECK(run("llama_generate", Words{"--from", t.dir} + greedy).out ==
        "==> sum shard of <==\n" + first + "\n==> the <==\n" + second + "\n");
  CHECK(json_of(alone + Words{"--dtype", "bf16"})[0]["prompt_ids"] == both[1]["prompt_ids"]);
  // A token that generation_config.json says ends the text.
  int stop = both[1]["ids"][4];
  std::ofstream(t.dir + "/generation_config.json") << Json{{"eos_token_id", {stop, 258}}}.dump();
  std::vector<int> ids = both[1]["ids"];
  ids.erase(std::find(ids.begin(), ids.end(), stop) + 1, ids.end());
  CHECK(json_of(alone)[0]["ids"] == ids);
}

TEST_CASE("llama_generate: gated linear attention goes on from its state, the same text with it and without") {
  Trained t("gla_tiny");
  Words how = two_prompts + Words{"--max-new-tokens", "24", "--temperature", "0.8", "--seed", "5"};
  std::vector<Json> one = json_of(Words{"--from", t.dir} + how);
  REQUIRE(one.size() == 2);
  CHECK(one[0]["text"].get<std::string>().size() >= 20);
  for (const Words& more : {Words{"--no-cache"}, {"--mesh", "tp=2"}, {"--mesh", "tp=4"}, {"--mesh", "dp=2"}})
    CHECK(json_of(Words{"--from", t.dir} + how + more) == one);
  CHECK(json_of(Words{"--from", t.exported, "--tokenizer", "bytes"} + how).size() == 2);
}

TEST_CASE("llama_generate: a run with a tokenizer keeps it beside its checkpoints, and llama_convert takes it along") {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(30000)), dir = folder / "run", tokenizer = folder / "t.json";
  REQUIRE(run("tokenizer_train", {"--data", text, "--vocab-size", "259", "--output", tokenizer}).code == 0);
  Words training{"--model",          source("examples/configs/llama_tiny.json"),
                 "--data",           text,
                 "--batch-size",     "4",
                 "--seq-len",        "16",
                 "--threads",        "1",
                 "--tokenizer",      tokenizer,
                 "--checkpoint-dir", dir};
  Result r = run("llama_pretrain", training + Words{"--steps", "2"});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK(read(dir + "/tokenizer.json") == read(tokenizer));
  std::ofstream(dir + "/generation_config.json") << R"({"eos_token_id": 3})";
  REQUIRE(run("llama_convert", {"--from", dir, "--to", folder / "hf"}).code == 0);
  REQUIRE(run("llama_convert", {"--from", folder / "hf", "--to", folder / "back"}).code == 0);
  Words how{"--prompt", "the mesh", "--max-new-tokens", "8", "--temperature", "0"};
  std::vector<Json> one = json_of(Words{"--from", dir} + how);
  for (const char* other : {"hf", "back"}) {
    CHECK(read(folder / (std::string(other) + "/tokenizer.json")) == read(tokenizer));
    CHECK(read(folder / (std::string(other) + "/generation_config.json")) == R"({"eos_token_id": 3})");
    CHECK(json_of(Words{"--from", folder / other} + how)[0]["text"].is_string());
  }
  CHECK(json_of(Words{"--from", folder / "back"} + how) == json_of(Words{"--from", folder / "hf"} + how));
  CHECK(one[0]["prompt_ids"][0] == 0);  // [BOT], as its documents began
  // What cannot be copied is an error, not left out.
  fs::remove(dir + "/tokenizer.json");
  fs::create_directory(dir + "/tokenizer.json");
  Result bad = run("llama_convert", {"--from", dir, "--to", folder / "bad"});
  CHECK(bad.code == 1);
  CHECK_THAT(bad.err, Contains("[llama_convert] cannot copy "));
  bad = run("llama_pretrain", training + Words{"--steps", "3"});
  CHECK(bad.code == 1);
  CHECK_THAT(bad.err, Contains("[llama_pretrain] cannot copy "));
}

TEST_CASE("llama_generate: bad input is told before anything starts") {
  Trained t;
  struct Case {
    Words arguments;
    std::string error;
  };
  Words a{"--prompt", "a"}, from = Words{"--from", t.dir} + a;
  fs::create_directory(t.folder / "bad");
  std::string config = read(t.exported + "/config.json");
  fs::create_directory(t.folder / "no_weights");
  t.folder.write("no_weights/config.json", config);
  fs::copy(t.exported, t.folder / "eos");
  t.folder.write("eos/generation_config.json", R"({"eos_token_id": "two"})");
  const Case cases[] = {
      {a, "--from is required; see --help"},
      {{"--from", t.dir}, "--prompt is required; see --help"},
      {from + Words{"--tempreature", "1"}, "; see --help"},
      {Words{"--from", t.folder / "none"} + a, "[ModelFolder] there is no folder "},
      {Words{"--from", t.folder / "bad"} + a, " is neither a checkpoint nor a Hugging Face folder: it has no "},
      {Words{"--from", t.folder / "no_weights"} + a, "no_weights"},
      {Words{"--from", t.exported} + a, " has no tokenizer.json: give the tokenizer of its training, or \"bytes\""},
      {Words{"--from", t.folder / "eos", "--tokenizer", "bytes"} + a,
       R"(generation_config.json is "two", which is no token and no list of tokens)"},
      {from + Words{"--tokenizer", source("tests/data/reference/gpt2.json")}, "[ModelFolder] the tokenizer has "},
      {from + Words{"--temperature", "-1"}, "[llama_generate] temperature is -1; it is 0 (greedy) or positive"},
      {from + Words{"--top-p", "0"}, "[llama_generate] top_p is 0; "},
      {from + Words{"--top-k", "-2"}, "[llama_generate] top_k is -2; "},
      {from + Words{"--max-new-tokens", "0"}, "[llama_generate] --max-new-tokens 0 is not above 0"},
      {from + Words{"--max-new-tokens", "2047"},
       "[llama_generate] a prompt of 2 tokens and --max-new-tokens 2047 are more than the model's "
       "max_position_embeddings 2048"},
      {from + Words{"--mesh", "dp=1,cp=2,tp=1", "--plan",
                    t.folder.write("cp.json", R"({"context_parallel": {"axis": "cp"}})")},
       " has context_parallel, which generation cannot use"},
      {from + Words{"--device", "cuda"}, "[llama_generate] --device cuda: "},
      {Words{"--from", t.exported, "--tokenizer", "bytes", "--prompt", ""},
       "[llama_generate] --prompt \"\" has no tokens, and nothing begins a text: give a longer one"},
  };
  for (const Case& c : cases) {
    Result r = run("llama_generate", c.arguments);
    CAPTURE(c.arguments, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, StartsWith("llama_generate: ") && Contains(c.error));
  }
  Result full = run("/bin/sh", {"-c", DTENSOR_BIN_DIR "/llama_generate --from " + t.dir + " --prompt a >/dev/full"});
  CHECK(full.code == 1);
  CHECK_THAT(full.err, Contains("[llama_generate] cannot write to standard output"));
}

TEST_CASE("llama_generate: docs/generation.md has the options of --help, each once") {
  Result help = run("llama_generate", {"--help"});
  REQUIRE(help.code == 0);
  std::set<std::string> listed = options_in(help.out, "  --");
  CHECK(listed.size() >= 15);
  CHECK(listed == options_in(read(source("docs/generation.md")), "| `--"));
}
