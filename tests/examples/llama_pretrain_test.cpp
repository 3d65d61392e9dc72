// llama_pretrain: its command line, errors, metrics and dry run.
#include <fmt/format.h>

#include <cstring>
#include <set>

#include "dtensor/cuda/runtime.h"
#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

const Words model = {"--model", source("examples/configs/llama_tiny.json")};
const std::string plans = source("examples/plans/");

// A folder with a text, and the shortest run on it.
struct Small {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(20000));
  Words arguments = model + Words{"--data", text, "--batch-size", "8", "--seq-len", "16", "--threads", "1"};
  Result operator()(const Words& more) const { return run("llama_pretrain", arguments + more); }
};

}  // namespace

TEST_CASE("bad input ends llama_pretrain with exit code 2 and an error that names the place and the remedy") {
  Small small;
  auto plan = [&](const char* text) { return small.folder.write("plan.json", text); };
  struct Case {
    Words arguments;
    std::string error;  // after "llama_pretrain: "
  };
  const std::string misspelt = small.folder.write(
      "misspelt.json",
      R"({"tensor_parallel": {"axis": "tp", "plan": {"model.layers.*.self_atn.q_proj": "ColwiseParallel"}}})");
  const std::string config = small.folder.write("config.json", R"({"warmup_steps": 3})");
  const Case cases[] = {
      {{"--mesh", "dp=2", "--launch", "mpi", "--steps", "1"},
       "[llama_pretrain] --launch mpi needs processes: start this with `mpirun -n 2 llama_pretrain ...` or srun"},
      {{"--device", "cuda", "--launch", "mpi", "--comm", "threads", "--steps", "1"},
       "[llama_pretrain] --launch mpi on --device cuda is --comm nccl: leave out --comm threads"},
      {{"--mesh", "dp=2", "--plan", plans + "tp.json", "--steps", "1"},
       R"([plan] the plan uses axis "tp", which mesh dp=2 lacks: add it, as in --mesh dp=2,tp=2)"},
      {{"--mesh", "dp=2,pp=2", "--steps", "1"},
       R"([mesh] nothing uses axis "pp" of dp=2,pp=2: give a plan that does, or name it dp to divide the batch)"},
      {{"--mesh", "tp=2", "--plan", misspelt, "--steps", "1"},
       R"([plan] tensor_parallel.plan: "model.layers.*.self_atn.q_proj" matches no module; the nearest is "model.layers.*.self_attn.q_proj")"},
      {{"--mesh", "tp=8", "--plan", plans + "tp.json", "--steps", "1"},
       R"([model.layers.0.self_attn] 4 heads do not divide over 8 ranks (tp): use fewer ranks on that axis, or let the projection's plan line have "output_layouts": "Replicate")"},
      {{"--data", small.folder / "nothing.txt", "--steps", "1"},
       "[data] cannot read " + small.folder / "nothing.txt" + ": No such file or directory"},
      {{"--mesh", "dp=3", "--steps", "1"},
       "[llama_pretrain] --batch-size 8 does not divide over the 3 data ranks of mesh dp=3"},
      {{"--mesh", "dp", "--steps", "1"}, R"([mesh] "dp" is no mesh: write axes and sizes as in dp=2,tp=4)"},
      {{"--mesh", "dp=0", "--steps", "1"}, R"([MeshShape] axis "dp" has size 0; a size is at least 1)"},
      {{"--mesh", "dp=2,dp=2", "--steps", "1"}, R"([MeshShape] axis "dp" is named twice)"},
      {{"--learning-rate=1"}, "there is no option --learning-rate; see --help"},  // nothing is near
      {{"--grad-accum", "2"}, "there is no option --grad-accum; see --help"},
      {{"--stepz", "1"}, R"(there is no option --stepz; the nearest is "--steps"; see --help)"},
      {{"tiny"}, "The following argument was not expected: tiny; see --help"},
      {{"--steps", "many"}, "Could not convert: --steps = many; see --help"},
      {{"--lr", "-1"}, "--lr: -1 is below 0; see --help"},
      {{"--lr", "inf"}, "--lr: inf is not finite; see --help"},
      {{"--lr", "nan"}, "--lr: nan is not finite; see --help"},
      {{"--clip", "-inf"}, "--clip: -inf is not finite; see --help"},
      {{"--weight-decay", "1e999"}, "--weight-decay: 1e999 is not finite; see --help"},
      {{"--steps", "0"}, "--steps: 0 is not above 0; see --help"},
      {{"--steps", "-3"}, "--steps: -3 is not above 0; see --help"},
      {{"--threads", "-2"}, "--threads: -2 is below 0; see --help"},
      {{"--threads", "20000"}, "--threads: 20000 is more than 1024 threads of a rank; see --help"},
      {{"--deadline", "-1"}, "--deadline: -1 is not above 0; see --help"},
      {{"--deadline", "0"}, "--deadline: 0 is not above 0; see --help"},
      {{"--deadline", "nan"}, "--deadline: nan is no number; see --help"},
      {{"--steps", "1", "--json"}, "[llama_pretrain] --json is how --dry-run prints: give --dry-run too"},
      {{"--check", "--dry-run"}, "[llama_pretrain] --dry-run finds what --check finds: give one of them"},
      {{"--steps", "1", "--metrics", small.folder / "."},
       "[llama_pretrain] cannot write --metrics " + small.folder / "." + ": it is a folder; name a file in it"},
      {{"--steps", "1", "--trace", small.folder / "none/t.json"},
       "[llama_pretrain] cannot write --trace " + small.folder / "none/t.json: does the folder exist?"},
      {{"--steps", "1", "--tensorboard", small.text + "/runs"},
       "[TensorBoard] cannot make the folder " + small.text + "/runs: Not a directory"},
      {{"--config", small.folder.write("overflow.json", R"({"lr": 1e999})")},
       "[config] " + small.folder / "overflow.json" + " is not JSON: "},
      {{"--config", small.folder.write("deadline.json", R"({"deadline": -2})")},
       "--deadline: -2 is not above 0; see --help"},
      {{}, "[llama_pretrain] --steps is missing: give a number of steps, or --dry-run"},
      {{"--steps", "1", "--epochs", "1"}, "[llama_pretrain] --steps and --epochs both say how long: give one of them"},
      {{"--steps", "1", "--eval-every", "1"}, "[llama_pretrain] --eval-every needs --eval-data"},
      {{"--steps", "1", "--tokenizer", small.folder / "none.json"}, "[tokenizer] cannot read "},
      {{"--steps", "1", "--data-mode", "pad"},
       "[llama_pretrain] 1 sequences of 16 tokens are fewer than --batch-size 8, "},
      {{"--config", config},
       R"([config] there is no option "warmup_steps"; the nearest is "warmup-steps" (in )" + config + ")"},
      {{"--steps", "1", "--metrics", small.folder / "no/m.jsonl"},
       "[llama_pretrain] cannot write --metrics " + small.folder / "no/m.jsonl" + ": does the folder exist?"},
      {{"--steps", "1", "--plan", plan(R"({"tensor_paralel": {}})")},
       R"([plan] the file: there is no field "tensor_paralel"; the nearest is "tensor_parallel")"},
      {{"--steps", "1", "--mesh", "dp=2", "--plan", small.folder / "none.json"},
       "[plan] cannot read " + small.folder / "none.json" + ": no such file"},
      {{"--steps", "1", "--config", small.folder.write("broken.json", "{\"lr\": }")},
       "[config] " + small.folder / "broken.json" + " is not JSON: "},
      {{"--steps", "1", "--comm", "nccl"}, "[llama_pretrain] --comm nccl needs --device cuda"},
      {{"--steps", "1", "--tune-gemm", "f"}, "[llama_pretrain] --tune-gemm needs --device cuda"},
      {{"--steps", "1", "--tf32"}, "[llama_pretrain] --tf32 needs --device cuda"},
      {{"--steps", "1", "--device", "tpu"}, "--device: tpu not in {cpu,cuda}; see --help"},
  };
  for (const Case& c : cases) {
    Result r = small(c.arguments);
    CAPTURE(c.arguments, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, StartsWith("llama_pretrain: " + c.error));
    CHECK(lines_of(r.err).size() == 1);
  }
  // One call says all that is wrong where one fault does not hide another.
  Result several = run("llama_pretrain",
                       {"--model", small.folder / "none.json", "--mesh", "dp", "--plan", small.folder / "none.json"});
  CHECK(several.code == 2);
  CHECK_THAT(several.err, Contains("llama_pretrain: [model config] cannot read ") &&
                              Contains("\nllama_pretrain: [mesh] ") &&
                              Contains("\nllama_pretrain: [plan] cannot read "));
  several = run("llama_pretrain", model + Words{"--data", small.text, "--mesh", "dp=3", "--batch-size", "8",
                                                "--seq-len", "4096", "--tf32"});
  CHECK(several.code == 2);
  CHECK_THAT(several.err, Contains("--tf32 needs") && Contains("--seq-len 4096 is more") &&
                              Contains("--batch-size 8 does not divide") && Contains("--steps is missing"));
  CHECK(lines_of(several.err).size() == 4);
  Result no_model = run("llama_pretrain", {"--data", small.text, "--steps", "1"});
  CHECK(no_model.code == 2);
  CHECK_THAT(no_model.err, StartsWith("llama_pretrain: [llama_pretrain] --model is missing: give a Hugging Face "
                                      "config.json, as examples/configs/llama_tiny.json"));
  Result no_data = run("llama_pretrain", model + Words{"--steps", "1"});
  CHECK(no_data.code == 2);
  CHECK_THAT(no_data.err,
             StartsWith("llama_pretrain: [llama_pretrain] --data is missing: give text files, or --dry-run"));
  const std::string small_vocabulary = small.folder.write(
      "vocab.json",
      R"({"vocab_size": 100, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1})");
  Result vocabulary = run("llama_pretrain", {"--model", small_vocabulary, "--dry-run"});
  CHECK(vocabulary.code == 2);
  CHECK_THAT(vocabulary.err, Contains("the model's vocab_size 100 is smaller than the tokenizer's 259"));
  Result long_sequence = run("llama_pretrain", model + Words{"--seq-len", "4096", "--dry-run"});
  CHECK(long_sequence.code == 2);
  CHECK_THAT(long_sequence.err, Contains("--seq-len 4096 is more than the model's max_position_embeddings 2048"));
}

TEST_CASE("llama_pretrain --check says that a step fits, or what a dry run finds, and needs neither data nor steps") {
  Folder folder;
  auto plan = [&](const std::string& name, const std::string& text) { return folder.write(name + ".json", text); };
  const Words sizes = {"--batch-size", "8", "--seq-len", "16", "--check"};
  struct Case {
    Words arguments;
    std::string error;  // "": it fits
  };
  const Case cases[] = {
      {{}, ""},
      {{"--mesh", "dp=8"}, ""},
      {{"--mesh", "dp=2,tp=2", "--plan", plans + "fsdp_tp.json", "--strict"}, ""},
      {{"--mesh", "dp=8,tp=4", "--plan", plans + "tp_sp_loss.json"}, ""},
      {{"--mesh", "dp=2,pp=1"}, ""},  // an axis of one rank that nothing uses
      {{"--mesh", "tp=1,cp=1"}, ""},
      {{"--device", "cuda", "--dtype", "bf16", "--mesh", "dp=2"}, ""},  // needs no device
      {{"--deadline", "inf", "--threads", "8"}, ""},
      {{"--mesh", "dp=2,pp=2"}, R"([mesh] nothing uses axis "pp" of dp=2,pp=2)"},
      {{"--mesh", "dp=3"}, "[llama_pretrain] --batch-size 8 does not divide over the 3 data ranks of mesh dp=3"},
      {{"--mesh", "dp=2", "--plan", plans + "tp.json"}, R"([plan] the plan uses axis "tp", which mesh dp=2 lacks)"},
      {{"--mesh", "tp=8", "--plan", plans + "tp.json"},
       "[model.layers.0.self_attn] 4 heads do not divide over 8 ranks (tp)"},
      {{"--mesh", "tp=2", "--plan",
        plan("typo",
             R"({"tensor_parallel": {"axis": "tp", "plan": {"model.layers.*.mlp.up_porj": "ColwiseParallel"}}})")},
       R"([plan] tensor_parallel.plan: "model.layers.*.mlp.up_porj" matches no module; the nearest is "model.layers.*.mlp.up_proj")"},
      {{"--mesh", "tp=2", "--plan",
        plan(
            "dim",
            R"({"tensor_parallel": {"axis": "tp", "plan": {"model.norm": {"style": "SequenceParallel", "sequence_dim": 4294967297}}}})")},
       R"([plan] tensor_parallel.plan."model.norm".sequence_dim: 4294967297 is no dimension)"},
      {{"--mesh", "tp=2", "--plan",
        plan(
            "claim",
            R"j({"tensor_parallel": {"axis": "tp", "plan": {"lm_head": {"style": "ColwiseParallel", "input_layouts": "Shard(1)"}}}})j")},
       "[lm_head] lm_head: ColwiseParallel claims that input 0 arrives as tp=Shard(1), but it is "},
      {{"--mesh", "tp=2", "--strict", "--plan",
        plan("implicit",
             R"({"tensor_parallel": {"axis": "tp", "plan": {"model.layers.*.mlp.gate_proj": "ColwiseParallel"}}})")},
       "["},
      {{"--seq-len", "4096"}, "[llama_pretrain] --seq-len 4096 is more than the model's max_position_embeddings 2048"},
      {{"--model", plan("params", R"({"dim": 2048, "n_layers": 16})")},
       "[llama config] this is no config.json of a Llama: it lacks vocab_size, and hidden_size"},
      {{"--model", plan("overflow", R"({"vocab_size": 259, "rope_theta": 1e999})")},
       "[model config] " + folder / "overflow.json" + " is not JSON: "},
      {{"--plan", folder / "none.json"}, "[plan] cannot read " + folder / "none.json"},
      {{"--mesh", "dp=0"}, R"([MeshShape] axis "dp" has size 0)"},
      {{"--lr", "nan"}, "--lr: nan is not finite; see --help"},
  };
  for (const Case& c : cases) {
    bool own = std::find(c.arguments.begin(), c.arguments.end(), "--model") != c.arguments.end();
    bool sized = std::find(c.arguments.begin(), c.arguments.end(), "--seq-len") != c.arguments.end();
    Result r = run("llama_pretrain",
                   (own ? Words{} : model) + (sized ? Words{"--batch-size", "8", "--check"} : sizes) + c.arguments);
    CAPTURE(c.arguments, r.err);
    CHECK(r.out == (c.error.empty() ? "fits\n" : ""));
    CHECK(r.code == (c.error.empty() ? 0 : 2));
    if (c.error.empty())
      CHECK(r.err.empty());
    else
      CHECK_THAT(r.err, StartsWith("llama_pretrain: " + c.error));
  }
}

TEST_CASE("a deadline that is meant as never is none") {
  Small small;
  for (const char* deadline : {"inf", "1e10", "1e30"}) {
    Result r = small({"--steps", "1", "--mesh", "dp=2", "--deadline", deadline});
    CAPTURE(deadline, r.err);
    CHECK(r.code == 0);
  }
}

TEST_CASE(
    "llama_pretrain --model takes a folder of Hugging Face, and numbers that no model can have are refused before a "
    "run") {
  Folder folder;
  Json good = Json::parse(read(model[1]));
  auto with = [&](const char* key, double value) {
    Json j = good;
    j[key] = value;
    folder.write("config.json", j.dump());
    return run("llama_pretrain", {"--model", folder / "", "--check"});
  };
  folder.write("config.json", good.dump());
  CHECK(run("llama_pretrain", {"--model", folder / "", "--check"}).out == "fits\n");
  for (const auto& [key, value, error] : {std::tuple("rope_theta", -10000.0, "rope_theta is -10000"),
                                          {"rms_norm_eps", 0.0, "rms_norm_eps is 0"},
                                          {"initializer_range", -0.02, "initializer_range is -0.02"}}) {
    Result r = with(key, value);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, StartsWith("llama_pretrain: [llama config] " + std::string(error)));
  }
}

TEST_CASE("without a CUDA device llama_pretrain on cuda ends with exit code 2, and its dry run does not need one") {
  Small small;
  if (!dtensor::cuda::unavailable().empty()) {
    Result r = small({"--device", "cuda", "--steps", "1"});
    CHECK(r.code == 2);
    CHECK_THAT(r.err, StartsWith("llama_pretrain: [llama_pretrain] --device cuda: " + dtensor::cuda::unavailable() +
                                 "; use --device cpu"));
  } else {  // processes are what is missing
    Result r = small({"--device", "cuda", "--comm", "nccl", "--steps", "1"});
    CHECK(r.code == 2);
    CHECK_THAT(r.err, Contains("[llama_pretrain] --comm nccl needs processes: start this with torchrun, mpirun or "
                               "srun, or use --comm threads"));
  }
  Result dry =
      run("llama_pretrain", model + Words{"--device", "cuda", "--dtype", "bf16", "--mesh", "dp=2,tp=2", "--plan",
                                          plans + "fsdp_tp.json", "--dry-run", "--batch-size", "8", "--seq-len", "16"});
  CAPTURE(dry.err);
  CHECK(dry.code == 0);
  CHECK_THAT(dry.out, Contains("bf16["));
}

TEST_CASE("llama_pretrain --help ends with exit code 0 and names every option") {
  Result r = run("llama_pretrain", {"--help"});
  CHECK(r.code == 0);
  CHECK(r.err.empty());
  for (const char* option :
       {"model",        "mesh",         "plan", "data",     "steps",   "batch-size", "seq-len", "seed",  "lr",
        "warmup-steps", "weight-decay", "clip", "metrics",  "config",  "resume",     "device",  "dtype", "comm",
        "cuda-graph",   "tune-gemm",    "tf32", "deadline", "threads", "strict",     "dry-run", "check", "json"})
    CHECK_THAT(r.out, Contains("--" + std::string(option) + " "));
  CHECK_THAT(r.out, Contains("--mesh TEXT=dp=1"));
}

TEST_CASE("a run prints a line per step and a summary, and its metrics read back to the same bits") {
  Small small;
  std::string file = small.folder / "metrics.jsonl";
  Result r = small({"--steps", "3", "--mesh", "dp=2", "--metrics", file});
  REQUIRE(r.code == 0);
  CHECK(r.err.empty());
  Words out = lines_of(r.out), metrics = lines_of(read(file));
  REQUIRE(out.size() == 6);
  CHECK(out[0] == "1050496 parameters, mesh dp=2, 128 tokens per step");
  CHECK_THAT(out[1], StartsWith("step 1/3  loss 5.") && Contains("  grad_norm ") && Contains("  lr 1.00e-03  ") &&
                         EndsWith(" tokens/s"));
  CHECK_THAT(out[3], StartsWith("step 3/3  loss "));
  CHECK_THAT(out[4], StartsWith("done: loss 5.") && Contains(" at the last; 3 steps in "));
  CHECK(out[5] == "metrics of every step: " + file);
  CHECK(r.out.find('\r') == std::string::npos);

  REQUIRE(metrics.size() == 4);
  CHECK(Json::parse(metrics[0])["kind"] == "run");
  metrics.erase(metrics.begin());
  for (size_t i = 0; i < 3; ++i) {
    Json j = Json::parse(metrics[i]);
    Words keys;
    for (const auto& [key, value] : j.items()) keys.push_back(key);
    CHECK(keys == Words{"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_second", "step_seconds",
                        "host_seconds", "peak_memory_bytes", "time"});
    CHECK(j["peak_memory_bytes"].get<int64_t>() > 0);
    CHECK(j["step"] == i + 1);
    CHECK(j["tokens"] == 128);
    CHECK(j["step_seconds"].get<double>() > 0);
    CHECK(j["tokens_per_second"].get<double>() == Approx(128 / j["step_seconds"].get<double>()));
    for (const char* key : {"loss", "grad_norm", "lr"}) {  // the text is the number's, printed with 17 digits
      char text[64];
      std::snprintf(text, sizeof text, "\"%s\": %.17g,", key, j[key].get<double>());
      CHECK_THAT(metrics[i], Contains(text));
    }
    double loss = j["loss"];
    CHECK(double(float(loss)) == loss);  // a float32, digit for digit
  }
}

TEST_CASE("a run leaves a trace of the steps after its first one, and event files") {
  Small small;
  std::string trace = small.folder / "t.json";
  Result r = small({"--steps", "4", "--mesh", "dp=2", "--trace", trace, "--trace-steps", "2", "--tensorboard",
                    small.folder / "board", "--metrics", small.folder / "m.jsonl"});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK_THAT(r.out, Contains("trace of 2 steps: " + trace));
  std::set<std::pair<int, std::string>> steps;
  const Json all = Json::parse(read(trace));
  for (const Json& e : all.at("traceEvents"))
    if (e.value("name", "").starts_with("step ")) steps.emplace(e.at("pid"), e.at("name"));
  CHECK(steps == std::set<std::pair<int, std::string>>{{0, "step 2"}, {0, "step 3"}, {1, "step 2"}, {1, "step 3"}});
  for (const std::string& line : lines_of(read(small.folder / "m.jsonl"))) {
    Json j = Json::parse(line);
    if (!j.contains("loss")) continue;
    double sum = 0;
    for (const auto& [part, seconds] : j.at("time").items()) sum += seconds.get<double>();
    CHECK(sum > 0);
    CHECK(sum <= j.at("step_seconds").get<double>() + 1e-6);
  }
  CHECK(std::distance(std::filesystem::directory_iterator(small.folder / "board"), {}) == 1);
  // A run of one step has that one.
  CHECK_THAT(small({"--steps", "1", "--trace", trace}).out, Contains("trace of 1 steps: " + trace));
  CHECK_THAT(small({"--steps", "2", "--trace", "/dev/full"}).err,
             Contains("[llama_pretrain] cannot write to --trace /dev/full: is the disk full?"));
}

TEST_CASE("a run's page has the numbers of its metrics, and says how the run ended") {
  Small small;
  std::string page = small.folder / "run.html", metrics = small.folder / "m.jsonl";
  Result r = small({"--steps", "3", "--mesh", "dp=2", "--report", page, "--metrics", metrics});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  std::string html = read(page);
  CHECK_THAT(html, Contains("<p>done</p>") && Contains("<b>3</b>steps") && Contains("--steps 3 --mesh dp=2"));
  CHECK_THAT(html, Contains("<h2>Collectives</h2>") && Contains("all_reduce"));
  double loss = Json::parse(lines_of(read(metrics)).back()).at("loss");
  CHECK_THAT(html, Contains(fmt::format("<b>{:.4f}</b>training loss", loss)) && Contains(fmt::format("{:.6g}", loss)));
  CHECK(small({"--steps", "3", "--report", page, "--metrics", "/dev/full"}).code == 1);
  CHECK_THAT(read(page), Contains("<p>failed: ") && Contains("cannot write to --metrics /dev/full"));
  CHECK(small({"--steps", "3", "--report", small.folder / "none/run.html"}).code == 2);
}

TEST_CASE("report puts runs beside each other, and says what is no metrics file") {
  Folder folder;
  std::string a = folder.write("a.jsonl", "{\"step\": 1, \"loss\": 3}\n{\"step\": 2, \"loss\": 2.5}\n");
  std::string b = folder.write("b.jsonl", "{\"step\": 1, \"loss\": 2.75}\n");
  Result r = run("report", {a, b, "--output", folder / "page.html"});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  Words lines = lines_of(r.out);
  CHECK_THAT(lines[0], Contains("a") && EndsWith("b"));
  CHECK_THAT(r.out, Contains("last loss") && Contains("2.5000  2.7500"));
  CHECK_THAT(read(folder / "page.html"), Contains("<title>a, b</title>"));
  CHECK_THAT(run("report", {a, folder / "c.jsonl"}).err, StartsWith("report: [metrics] cannot read "));
  CHECK_THAT(run("report", {a, "--output", folder / "none/page.html"}).err,
             Contains("[report] cannot write --output " + folder / "none/page.html: does the folder exist?"));
  CHECK(run("report", {}).code == 2);
  CHECK(run("report", {"--help"}).code == 0);
}

TEST_CASE("options of --config hold unless the command line has them") {
  Small small;
  std::string by_file = small.folder / "file.jsonl", by_flags = small.folder / "flags.jsonl",
              other = small.folder / "other.jsonl";
  Json config = {{"model", model[1]}, {"data", {small.text}}, {"steps", 5},        {"batch-size", 8},
                 {"seq-len", 16},     {"lr", 0.005},          {"warmup-steps", 2}, {"seed", 7},
                 {"mesh", "dp=2"},    {"strict", true},       {"metrics", by_file}};
  std::string file = small.folder.write("config.json", config.dump());
  Result r = run("llama_pretrain", {"--steps", "2", "--config", file});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK_THAT(r.out, StartsWith("1050496 parameters, mesh dp=2, 128 tokens per step\nstep 1/2 "));
  REQUIRE(small({"--steps", "2", "--lr", "0.005", "--warmup-steps", "2", "--seed", "7", "--mesh", "dp=2", "--metrics",
                 by_flags})
              .code == 0);
  CHECK(read_metrics(by_file).loss == read_metrics(by_flags).loss);
  CHECK(read_metrics(by_file).grad_norm == read_metrics(by_flags).grad_norm);
  REQUIRE(run("llama_pretrain", {"--config", file, "--steps", "2", "--seed", "8", "--metrics", other}).code == 0);
  CHECK(read_metrics(other).loss != read_metrics(by_file).loss);
}

TEST_CASE("a dry run lists the collectives of a step, for a mesh of any size, as text and as JSON") {
  Words arguments =
      model + Words{"--plan", plans + "tp.json", "--mesh", "dp=64,tp=4", "--batch-size", "128", "--dry-run"};
  Result text = run("llama_pretrain", arguments);
  REQUIRE(text.code == 0);
  CHECK(text.err.empty());
  CHECK_THAT(text.out, StartsWith("One step on dp=64,tp=4, bytes as the busiest rank receives them\n"));
  CHECK_THAT(text.out, Contains("\nphase      collective  axes    bytes  tensor            for\n"));
  CHECK_THAT(text.out, Contains("\nphase      collective  launches  tensors    bytes\nforward    all_reduce"));
  CHECK_THAT(
      text.out,
      Contains(
          "f32[128,128,128]  model.layers.3.mlp.down_proj  [\"model.layers.*.mlp.down_proj\": RowwiseParallel]\n"));
  CHECK_THAT(text.out, Contains("model.layers.0.post_attention_layernorm: gradient of add_rms_norm\n"));
  CHECK_THAT(text.out, Contains("gradient of model.embed_tokens.weight and 38 more\n"));
  CHECK_THAT(text.out, !Contains("(implicit)"));

  Result json = run("llama_pretrain", arguments + Words{"--json"});
  REQUIRE(json.code == 0);
  Json j = Json::parse(json.out);
  CHECK(j["mesh"] == "dp=64,tp=4");
  REQUIRE(j["collectives"].size() > 20);
  int64_t bytes = 0;
  int forward = 0, backward = 0, listed = 0;
  for (const Json& c : j["collectives"]) {
    for (const char* key : {"phase", "collective", "axes", "tensor", "from", "to", "bytes", "group", "module", "op",
                            "reason", "plan_line", "asked_for"})
      REQUIRE(c.contains(key));
    CHECK(c["asked_for"] == true);
    bytes += c["bytes"].get<int64_t>();
    bool block = c["module"].get<std::string>().starts_with("model.layers.2.");
    forward += block && c["phase"] == "forward" && c["collective"] == "all_reduce";
    backward += block && c["phase"] == "backward" && c["collective"] == "all_reduce";
  }
  for (const auto& [kind, n] : j["counts"].items()) listed += n.get<int>();
  CHECK(j["bytes"] == bytes);
  CHECK(size_t(listed) == j["collectives"].size());
  CHECK(forward == 2);  // Megatron's
  CHECK(backward == 2);
}

TEST_CASE("losses do not depend on the mesh, on a small text") {
  Small small;
  std::string one = small.folder / "one.jsonl", four = small.folder / "four.jsonl";
  Words steps = {"--steps", "10", "--lr", "0.003"};
  REQUIRE(small(steps + Words{"--mesh", "dp=1", "--metrics", one}).code == 0);
  REQUIRE(small(steps + Words{"--mesh", "dp=2,tp=2", "--plan", plans + "fsdp_tp.json", "--metrics", four}).code == 0);
  CHECK(difference(read_metrics(one).loss, read_metrics(four).loss, 10) < 1e-5);
  CHECK(read_metrics(one).loss.back() < 4.5);
}

constexpr const char* other_families[] = {"gpt2_", "gpt_", "phi3_", "bert_", "gla_"};

TEST_CASE("law 7: every shipped plan passes --strict, and so does data parallelism without a plan") {
  Small small;
  int tested = 0;
  for (const auto& entry : std::filesystem::directory_iterator(plans)) {
    CAPTURE(entry.path());
    std::string name = entry.path().filename();
    bool other = std::any_of(std::begin(other_families), std::end(other_families),
                             [&](const char* family) { return name.starts_with(family); });
    if (other) continue;  // tests/nn/models_test.cpp and tests/parity have their models
    Json plan = Json::parse(read(entry.path()));
    bool hybrid = plan.contains("fully_shard") && plan["fully_shard"].contains("replicate_axis");
    std::string mesh = plan.contains("context_parallel")  ? "dp=2,cp=2,tp=2"
                       : hybrid                           ? "dp_replicate=2,dp_shard=2,tp=2"
                       : plan.contains("tensor_parallel") ? "dp=2,tp=2"
                                                          : "dp=4";
    Words arguments = {"--plan", entry.path().string(), "--strict", "--mesh", mesh};
    CHECK(small(arguments + Words{"--steps", "1"}).code == 0);
    Json dry = Json::parse(small(arguments + Words{"--dry-run", "--json"}).out);
    for (const Json& c : dry["collectives"]) CHECK(c["asked_for"] == true);
    ++tested;
  }
  CHECK(tested >= 6);
  CHECK(small({"--strict", "--mesh", "dp=2", "--steps", "1"}).code == 0);
}

TEST_CASE("metrics that cannot be written end a run with exit code 1") {
  Small small;
  Result r = small({"--steps", "2", "--metrics", "/dev/full"});
  CHECK(r.code == 1);
  CHECK_THAT(r.err, Contains("[llama_pretrain] cannot write to --metrics /dev/full: is the disk full?"));
}

TEST_CASE("a run whose loss is no number ends with exit code 1 and names the step") {
  Small small;
  auto mesh =
      GENERATE(as<Words>(), Words{"--mesh", "dp=1"}, Words{"--mesh", "dp=2,tp=2", "--plan", plans + "fsdp_tp.json"});
  std::string file = small.folder / "metrics.jsonl";
  Result r = small(mesh + Words{"--steps", "5", "--lr", "1e30", "--metrics", file});
  CHECK(r.code == 1);
  CHECK_THAT(r.out, Contains("step 1/5  loss ") && !Contains("done"));
  CHECK_THAT(r.err, StartsWith("llama_pretrain: [Trainer] step 2: the loss is ") &&
                        Contains("; the first value that is not finite is the "));
  CHECK(read_metrics(file).loss.size() == 1);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which take more addresses than there is memory
TEST_CASE("memory that runs out says what was asked, what is held and what to do") {
  Small small;
  Words command = Words{DTENSOR_BIN_DIR "/llama_pretrain"} + model +  // a step of this takes some gigabytes
                  Words{"--data",       small.folder.write("long.txt", some_text(200000)),
                        "--batch-size", "64",
                        "--seq-len",    "1024",
                        "--steps",      "1",
                        "--threads",    "1"};
  Result r = run("/bin/sh", Words{"-c", "ulimit -v 1000000; exec \"$@\"", "sh"} + command);
  INFO(r.err);
  CHECK(r.code == 1);
  CHECK_THAT(
      r.err,
      Contains("no host memory for ") && Contains(" bytes: the tensors of this rank hold ") &&
          Contains("; take a smaller --batch-size, or give the process more (`ulimit -v` limits it too); it ran out in "
                   "model") &&
          Contains(" in the forward pass"));
}
#endif
