// The collectives of a transformer block are those of Megatron.
#include <fmt/format.h>
#include <set>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// One step's list, by the same code over a communicator that only writes down (law 8).
Entries dry_run(const std::string& plan, const std::string& mesh, int64_t layers = 2) {
  MeshShape shape = MeshShape::parse(mesh);
  auto rank = Rank::recorded(shape.world());
  rank->strict = true;
  DeviceMesh m(*rank, shape);
  LlamaConfig c = small_llama();
  c.num_hidden_layers = layers;
  LlamaTraining training(m, c, ParallelPlan::load(plan_file(plan)), {});
  CommLog log(*rank);
  training.trainer.step(meta_batch(m, batch_layout(shape), 8, 16));
  return log.entries();
}

}  // namespace

TEST_CASE("collectives per transformer block and step") {
  struct Case {
    const char *plan, *forward, *backward;
  };
  const Case cases[] = {
      {"tp.json", "all_reduce 2", "all_reduce 2"},
      {"tp_sp_loss.json", "all_gather 2, reduce_scatter 2", "all_gather 2, reduce_scatter 2"},
      // q, k and v gathered, their gradients sliced; the gradient of the attention, whose value is whole, gathered
      {"tutorial_tp.json", "all_gather 5, reduce_scatter 2", "all_gather 3, reduce_scatter 2"}};
  for (const Case& c : cases)
    for (const char* mesh : {"tp=2", "tp=4", "dp=2,tp=2"}) {
      Entries entries = dry_run(c.plan, mesh);
      INFO(c.plan << " on " << mesh << "\n" << listing(entries));
      for (int layer : {0, 1}) {
        std::string block = fmt::format("model.layers.{}", layer);
        CHECK(counts(entries, Phase::forward, block) == c.forward);
        CHECK(counts(entries, Phase::backward, block) == c.backward);
        CHECK(counts(entries, Phase::optimizer, block) == "");
        // Attention and MLP have half of them each, forward.
        if (std::string(c.plan) != "tutorial_tp.json")
          CHECK(counts(entries, Phase::forward, block + ".self_attn") ==
                counts(entries, Phase::forward, block + ".mlp"));
      }
      for (const auto& e : entries) {
        if (below(e.module, "model.layers")) CHECK(e.axes == "tp");
        CHECK(e.asked_for);
        CHECK(e.reason != "remade for the gradient");  // gathered inputs are kept
        if (e.phase == Phase::backward) CHECK_THAT(e.reason, StartsWith("gradient of "));
      }
    }
}

TEST_CASE("a step's collectives outside of the blocks") {
  struct Case {
    const char *plan, *mesh, *forward, *backward;
  };
  const Case cases[] = {
      // the embedding; the logits; on dp the loss: sum and count
      {"tp.json", "tp=2", "all_gather 1, all_reduce 1", "all_reduce 1"},
      {"tp.json", "dp=2,tp=2", "all_gather 1, all_reduce 3", "all_reduce 1"},
      // the embedding; the head's input; the loss: maxima, sums of two kinds
      {"tp_sp_loss.json", "tp=2", "all_gather 1, all_reduce 3, reduce_scatter 1", "all_gather 1, reduce_scatter 1"},
      {"tp_sp_loss.json", "dp=2,tp=2", "all_gather 1, all_reduce 5, reduce_scatter 1",
       "all_gather 1, reduce_scatter 1"},
  };
  for (const Case& c : cases) {
    Entries entries = dry_run(c.plan, c.mesh), outside;
    for (const auto& e : entries)
      if (!below(e.module, "model.layers")) outside.push_back(e);
    INFO(c.plan << " on " << c.mesh << "\n" << listing(outside));
    CHECK(counts(outside, Phase::forward) == c.forward);
    CHECK(counts(outside, Phase::backward) == c.backward);
  }
}

TEST_CASE("collectives of a block name their module, their plan line and their value") {
  Entries entries = dry_run("tp_sp_loss.json", "tp=2", 1);
  std::vector<std::string> lines;
  for (const auto& e : entries)
    if (below(e.module, "model.layers"))
      lines.push_back(fmt::format("{} {} {} {} -> {} [{}] {}", name(e.phase), e.collective, e.module, e.from, e.to,
                                  e.plan_line, e.reason));
  const std::string block = "model.layers.0", line = " [model.layers.*";
  std::vector<std::string> forward(lines.begin(), lines.begin() + 4);
  CHECK(forward ==
        std::vector<std::string>{
            "forward all_gather " + block +
                ".self_attn tp=Shard(1) -> tp=Replicate [\"model.layers.*.self_attn\": PrepareModuleInput] ",
            "forward reduce_scatter " + block +
                ".self_attn.o_proj tp=Partial(sum) -> tp=Shard(1) [\"model.layers.*.self_attn.o_proj\": "
                "RowwiseParallel] ",
            "forward all_gather " + block +
                ".mlp tp=Shard(1) -> tp=Replicate [\"model.layers.*.mlp\": PrepareModuleInput] ",
            "forward reduce_scatter " + block +
                ".mlp.down_proj tp=Partial(sum) -> tp=Shard(1) [\"model.layers.*.mlp.down_proj\": RowwiseParallel] "});
  std::vector<std::string> backward;
  for (const auto& e : entries)
    if (below(e.module, "model.layers") && e.phase == Phase::backward)
      backward.push_back(fmt::format("{} {}: {}", e.collective, e.module, e.reason));
  CHECK(backward ==
        std::vector<std::string>{"all_gather " + block + ".mlp.down_proj: gradient of linear",
                                 "reduce_scatter " + block + ".post_attention_layernorm: gradient of add_rms_norm",
                                 "all_gather " + block + ".self_attn.o_proj: gradient of linear",
                                 "reduce_scatter " + block + ".input_layernorm: gradient of rms_norm"});
}

TEST_CASE("parameter gradients are reduced in one launch per kind and only over the axes that hold contributions") {
  struct Case {
    const char *plan, *mesh;
    std::vector<std::string> axes;  // that occur
  };
  const Case cases[] = {{"tp.json", "tp=2", {}},              // all whole or sharded
                        {"tp_sp_loss.json", "tp=2", {"tp"}},  // norm weights, which see a part of the sequence
                        {"tp.json", "dp=2,tp=2", {"dp"}},
                        {"tp_sp_loss.json", "dp=2,tp=2", {"dp", "dp,tp"}}};
  for (const Case& c : cases) {
    Entries entries = dry_run(c.plan, c.mesh);
    INFO(c.plan << " on " << c.mesh << "\n" << listing(entries));
    std::map<std::string, std::set<int>> launches;
    std::map<std::string, int> reduced;
    for (const auto& e : entries) {
      if (e.phase != Phase::optimizer || e.reason == "gradient norm") continue;
      CHECK_THAT(e.reason, StartsWith("gradient of "));
      CHECK(e.collective == "all_reduce");
      launches[e.axes].insert(e.group);
      ++reduced[e.reason];
    }
    std::vector<std::string> axes;
    for (const auto& [a, groups] : launches) {
      axes.push_back(a);
      CHECK(groups.size() == 1);
    }
    CHECK(axes == c.axes);
    for (const auto& [reason, n] : reduced) CHECK(n == 1);
    if (c.mesh[0] == 'd') CHECK(reduced.size() == 21);  // all parameters
    if (c.axes == std::vector<std::string>{"tp"}) CHECK(reduced.size() == 5);
  }
}
