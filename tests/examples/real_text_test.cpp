// The tiny Llama on real text, on every mesh and plan: the answer does not depend on them.
#include <cmath>

#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

// $DTENSOR_DATA, or the text beside the repository; "" where there is none.
std::string real_text() {
  const char* given = std::getenv("DTENSOR_DATA");
  std::string file = given ? given : source("../shared/data/tinyshakespeare.txt");
  return std::filesystem::exists(file) ? file : "";
}

Metrics train(const std::string& text, const std::string& mesh, const std::string& plan, int steps, int batch,
              int sequence, const char* lr) {
  Folder folder;
  Words arguments = {"--model",        source("examples/configs/llama_tiny.json"),
                     "--data",         text,
                     "--mesh",         mesh,
                     "--metrics",      folder / "metrics.jsonl",
                     "--steps",        std::to_string(steps),
                     "--batch-size",   std::to_string(batch),
                     "--seq-len",      std::to_string(sequence),
                     "--lr",           lr,
                     "--warmup-steps", "5",
                     "--strict"};
  if (!plan.empty()) arguments = arguments + Words{"--plan", source("examples/plans/" + plan)};
  Result r = run("llama_pretrain", arguments);
  CAPTURE(mesh, plan, r.err);
  REQUIRE(r.code == 0);
  Metrics m = read_metrics(folder / "metrics.jsonl");
  REQUIRE(m.loss.size() == size_t(steps));
  return m;
}

}  // namespace

TEST_CASE("real text: every mesh and plan trains as one rank does") {
  std::string text = real_text();
  if (text.empty()) {
    WARN("skipped: no text; name a file by DTENSOR_DATA");
    return;
  }
  const std::pair<const char*, const char*> cases[] = {
      {"dp=2", ""},
      {"dp=4", ""},
      {"dp=2", "fsdp.json"},
      {"dp=4", "fsdp.json"},
      {"dp=2", "ddp.json"},
      {"tp=2", "tp.json"},
      {"tp=4", "tp.json"},
      {"dp=2,tp=2", "tp.json"},
      {"tp=2", "tp_sp_loss.json"},
      {"tp=4", "tp_sp_loss.json"},
      {"dp=2,tp=2", "tp_sp_loss.json"},
      {"tp=2", "tutorial_tp.json"},
      {"dp=2,tp=2", "fsdp_tp.json"},
      {"dp=4,tp=2", "fsdp_tp.json"},
  };
  Metrics one = train(text, "dp=1", "", 30, 8, 64, "0.001");
  CHECK(one.loss.front() == Approx(std::log(259)).margin(0.1));
  CHECK(one.loss.back() < 3.4);
  for (auto [mesh, plan] : cases) {
    CAPTURE(mesh, plan);
    Metrics m = train(text, mesh, plan, 30, 8, 64, "0.001");
    CHECK(difference(one.loss, m.loss, 30) < 1e-5);
    CHECK(difference(one.grad_norm, m.grad_norm, 8) < 1e-5);  // later, Adam amplifies rounding
    bool bits = m.loss == one.loss;
    if (std::getenv("DTENSOR_VERBOSE"))
      WARN(mesh << " " << plan << ": losses within " << difference(one.loss, m.loss, 30)
                << (bits ? ", the same bits" : "") << "; norms within " << difference(one.grad_norm, m.grad_norm, 8));
  }
}

TEST_CASE("real text: 200 steps bring the loss from ln(259) to under 2.6", "[nightly]") {
  std::string text = real_text();
  if (text.empty()) {
    WARN("skipped: no text; name a file by DTENSOR_DATA");
    return;
  }
  Metrics m = train(text, "dp=2,tp=2", "fsdp_tp.json", 200, 16, 128, "0.003");
  CHECK(m.loss.front() == Approx(std::log(259)).margin(0.1));
  CHECK(m.loss.back() < 2.6);
}
