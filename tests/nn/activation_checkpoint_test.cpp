// Activation checkpointing: the same bits, less memory, more work.
#include "nn/parallel/activation_checkpoint.h"

#include <fmt/format.h>

#include "dtensor/random_scope.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Calls : Observer {
  explicit Calls(Rank& r) : rank(r) { rank.add(*this); }
  ~Calls() override { rank.remove(*this); }
  void on_call(const CallEvent& e) override { ++count[std::string(e.op.name)]; }
  Rank& rank;
  std::map<std::string, int> count;
};

struct Result {
  std::vector<double> losses, gradients;  // of the third step
  std::map<std::string, int> calls;
  Entries entries;
  int64_t peak;  // bytes beyond those before the step
};

// Blocks with dropout: what is random is made again alike.
struct Block : Callable<DistributedTensor(const DistributedTensor&)> {
  Block(Module& parent, std::string name) : Callable(parent, std::move(name)) { input_names = {"x"}; }
  std::string_view kind() const override { return "Block"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    return x + ops::dropout(down(ops::gelu(up(ops::dropout(x, 0.25)))), 0.5);
  }
  Linear up{*this, "up", 16, 32, true, 0.3}, down{*this, "down", 32, 16, true, 0.3};
};
struct Tower : Callable<DistributedTensor(const DistributedTensor&)> {
  explicit Tower(const DeviceMesh& mesh) : Callable(mesh) {
    input_names = {"x"};
    for (int i = 0; i < 4; ++i) layers.emplace_back();
  }
  std::string_view kind() const override { return "Tower"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    DistributedTensor h = x;
    for (Block& b : layers) h = b(h);
    return h;
  }
  ModuleList<Block> layers{*this, "layers"};
};

// One plan's sections besides the checkpointing.
std::string with(const std::string& sections, const std::string& checkpointing) {
  return "{" + sections + (sections.empty() || checkpointing.empty() ? "" : ", ") +
         (checkpointing.empty() ? "" : "\"activation_checkpoint\": " + checkpointing) + "}";
}

Result run(const std::string& mesh, const std::string& plan_text, int64_t micro_batches = 1) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    Tower model(m);
    ParallelPlan plan = ParallelPlan::from_json(json(plan_text));
    plan.apply(model);
    materialize(model, 1);
    AdamW optimizer(model.parameters(), {});
    Loss loss([&](const Batch& b) { return ops::mean(ops::square(model(b[0])), {1}); });
    Trainer trainer(model, loss, optimizer, {.lr = 0.1, .micro_batch_size = 32 / micro_batches});
    DistributedTensor x = DistributedTensor::distribute(f32({32, 16}, 3), m, batch_layout(m.shape(), plan));
    Result r{};
    Calls calls(rank);
    CommLog log(rank);
    for (int i = 0; i < 3; ++i) {
      calls.count.clear(), log.clear();
      m.communicator(m.shape().all()).barrier();
      rank.allocator()->reset_peak();
      int64_t before = rank.allocator()->bytes_in_use();
      r.losses.push_back(trainer.step({x}).loss);
      r.peak = rank.allocator()->peak_bytes() - before;
    }
    r.calls = calls.count, r.entries = log.entries();
    for (Parameter* p : model.parameters())
      for (double v : values(p->stored().full_tensor())) r.gradients.push_back(v);
    return r;
  })[0];
}

const char* all_modes[] = {R"({"mode": "none"})",
                           R"({"mode": "full"})",
                           R"({"mode": "selective", "option": 2})",
                           R"({"mode": "selective", "option": "op"})",
                           R"({"budget": "9000B"})",
                           R"({"budget": "1GiB"})"};

const std::string tower_tp =
    R"j("tensor_parallel": {"axis": "tp", "plan": {
      "layers.*": {"style": "SequenceParallel", "sequence_dim": 0},
      "layers.*.up": {"style": "ColwiseParallel", "input_layouts": "Shard(0)"},
      "layers.*.down": {"style": "RowwiseParallel", "output_layouts": "Shard(0)"}}})j";

}  // namespace

TEST_CASE("activation checkpointing changes no bits") {
  const std::string fsdp = R"("fully_shard": {"axis": "dp", "modules": ["layers.*"]})",
                    kept = R"("fully_shard": {"axis": "dp", "modules": ["layers.*"], "reshard_after_forward": false})";
  struct Case {
    const char* mesh;
    std::string sections;
  };
  for (const Case& c : {Case{"dp=1", ""}, {"dp=2", fsdp}, {"dp=2", kept}})
    for (int64_t micro : {1, 4}) {
      Result none = run(c.mesh, with(c.sections, ""), micro);
      for (const char* mode : all_modes) {
        INFO(mode << " with " << c.sections << " on " << c.mesh << " in " << micro);
        Result r = run(c.mesh, with(c.sections, mode), micro);
        CHECK(r.losses == none.losses);
        CHECK(r.gradients == none.gradients);
      }
    }
}

TEST_CASE("each mode of activation checkpointing makes its own results again") {
  auto of = [&](const char* mode) { return run("dp=1", with("", mode)); };
  Result none = of(all_modes[0]), full = of(all_modes[1]), second = of(all_modes[2]), ops = of(all_modes[3]),
         little = of(all_modes[4]), plenty = of(all_modes[5]);
  // 8 products and 4 of gelu; products have 8 + 8 more for the gradients of weights and inputs.
  int products = none.calls["linear"], gelus = none.calls["gelu"];
  // down's result needs no second time: only the dropout that follows does, which keeps no operand.
  CHECK(full.calls["linear"] == products + 4);
  CHECK(second.calls["linear"] == products + 2);
  CHECK(ops.calls["linear"] == products);  // up's is kept
  CHECK(ops.calls["gelu"] == gelus + 4);
  CHECK(plenty.calls == none.calls);
  CHECK(little.calls["linear"] > products);
  CHECK(little.calls["linear"] < products + 4);
  CHECK(full.peak < ops.peak);
  CHECK(ops.peak < none.peak);
  CHECK(full.peak < second.peak);
  CHECK(second.peak < none.peak);
  CHECK(full.peak <= little.peak);  // at the last block, all of which is there
  CHECK(little.peak < plenty.peak);
}

// Gathers of parameters, and of what was sharded along the sequence, are part of what is made again.
TEST_CASE("gathers are made again with what they are for, and reductions are not") {
  const std::string fsdp = R"("fully_shard": {"axis": "dp", "modules": ["layers.*"]})";
  auto gathers = [&](const Result& r, const char* axis, const char* kind) {
    std::set<int> groups;
    for (const auto& e : r.entries)
      if (e.phase == Phase::backward && e.axes == axis && e.collective == kind) groups.insert(e.group);
    return groups.size();
  };
  Result r = run("dp=2", with(fsdp, all_modes[1]));
  INFO(listing(r.entries));
  CHECK(gathers(r, "dp", "all_gather") == 4);  // one for each block, as without checkpointing
  auto sequence = [&](const char* mode) { return run("tp=2", with(tower_tp, mode)); };
  Result none = sequence(all_modes[0]), full = sequence(all_modes[1]), ops = sequence(all_modes[3]);
  INFO(listing(full.entries));
  CHECK(full.losses == none.losses);
  CHECK(full.gradients == none.gradients);
  CHECK(ops.gradients == none.gradients);
  CHECK(gathers(none, "tp", "all_gather") == 4);  // gradients of the scattered outputs
  CHECK(gathers(full, "tp", "all_gather") == 8);
  CHECK(gathers(ops, "tp", "all_gather") == 8);
  CHECK(gathers(full, "tp", "reduce_scatter") == gathers(none, "tp", "reduce_scatter"));
}

TEST_CASE("plans of data and tensor parallelism give the same bits with activation checkpointing") {
  for (auto [file, mesh] :
       {std::pair("fsdp_tp.json", "dp=2,tp=2"), {"tp_sp_loss.json", "tp=2"}, {"zero2.json", "dp=2"}}) {
    std::vector<std::vector<double>> all;
    for (const char* mode : all_modes) {
      INFO(file << " " << mode);
      ParallelPlan plan = ParallelPlan::load(plan_file(file));
      plan.activation_checkpoint = ParallelPlan::from_json(json(with("", mode))).activation_checkpoint;
      all.push_back(on_mesh(mesh, [&](const DeviceMesh& m) {
        m.rank_state().strict = true;
        LlamaTraining training(m, small_llama(4, 64), plan, {.steps = 10});
        std::vector<double> numbers;
        std::vector<int64_t> ids(4 * 16);
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i * i * 7 % 64);
        auto x = DistributedTensor::distribute(Tensor::of<int64_t>({4, 16}, ids), m, batch_layout(m.shape(), plan));
        for (int i = 0; i < 3; ++i) {
          Trainer::Step s = training.trainer.step({x, x});
          numbers.push_back(s.loss), numbers.push_back(s.grad_norm);
        }
        return numbers;
      })[0]);
      CHECK(all.back() == all.front());
    }
  }
}

TEST_CASE("what a budget keeps is the best choice there is") {
  auto best = [](const std::vector<Keepable>& list, int64_t budget) {
    int64_t most = 0;
    for (uint32_t set = 0; set < (1u << list.size()); ++set) {
      int64_t bytes = 0, work = 0;
      for (size_t i = 0; i < list.size(); ++i)
        if (set >> i & 1) bytes += list[i].bytes, work += list[i].work;
      if (bytes <= budget) most = std::max(most, work);
    }
    return most;
  };
  uint32_t state = 7;
  auto below = [&](uint32_t n) { return int64_t((state = state * 1664525u + 1013904223u) >> 16) % n; };
  for (int round = 0; round < 300; ++round) {
    std::vector<Keepable> block, list;
    for (int64_t i = below(5); i >= 0; --i) block.push_back({below(9) * 64, below(50)});
    for (int64_t layers = 1 + below(2); layers >= 0; --layers) list.insert(list.end(), block.begin(), block.end());
    int64_t all = 0;
    for (const Keepable& k : list) all += k.bytes;
    for (int64_t budget : {int64_t(0), int64_t(63), all / 3, all / 2, all, all + 1}) {
      std::vector<bool> kept = choose_kept(list, budget);
      REQUIRE(kept.size() == list.size());
      int64_t bytes = 0, work = 0;
      for (size_t i = 0; i < list.size(); ++i)
        if (kept[i]) bytes += list[i].bytes, work += list[i].work;
      INFO("round " << round << ", budget " << budget << " of " << all);
      CHECK(bytes <= budget);
      CHECK(work == best(list, budget));
    }
  }
  CHECK(choose_kept({}, 5).empty());
  CHECK(choose_kept({{10, 1}, {10, 1}}, 10) == std::vector<bool>{false, true});  // whose gradient comes first
}

TEST_CASE("errors of activation_checkpoint") {
  struct Case {
    const char *section, *error;
  };
  const Case cases[] = {
      {R"({})", "[plan] activation_checkpoint: \"mode\" or \"budget\" is missing"},
      {R"({"mode": "some"})",
       "[plan] activation_checkpoint.mode: \"some\" is none of \"none\", \"full\" and \"selective\""},
      {R"({"mode": "full", "option": 2})",
       "[plan] activation_checkpoint.option: an option is for the mode \"selective\" alone: remove it"},
      {R"({"mode": "selective"})",
       "[plan] activation_checkpoint: the mode \"selective\" needs an \"option\": \"op\", or a number of blocks"},
      {R"({"mode": "selective", "option": 0})", "[plan] activation_checkpoint.option: 0 is no integer from 1 to"},
      {R"({"mode": "selective", "option": "ops"})", "[plan] activation_checkpoint.option: \"ops\" is no integer"},
      {R"({"mode": "full", "budget": "1GiB"})",
       "[plan] activation_checkpoint.mode: a budget says what is kept: remove one of them"},
      {R"({"budget": "12"})",
       "[plan] activation_checkpoint.budget: \"12\" is no amount of memory: a number and a unit, as in"},
      {R"({"budget": "GiB"})", "[plan] activation_checkpoint.budget: \"GiB\" is no amount of memory"},
      {R"({"budget": "-1GiB"})", "[plan] activation_checkpoint.budget: \"-1GiB\" is no amount of memory"},
      {R"({"budget": "1e30TiB"})", "[plan] activation_checkpoint.budget: \"1e30TiB\" is no amount of memory"},
      {R"({"budget": 12})", "[plan] activation_checkpoint.budget: 12 is no string"},
  };
  for (const Case& c : cases) {
    INFO(c.section);
    CHECK_THAT(error_of([&] { ParallelPlan::from_json(json(with("", c.section))); }), StartsWith(c.error));
  }
  auto rank = Rank::recorded(1);
  Mlp mlp(DeviceMesh(*rank, "dp=1"));
  CHECK_THAT(
      error_of([&] { ParallelPlan::from_json(json(with("", R"({"mode": "full"})"))).apply(mlp); }),
      Contains(
          "[plan] activation_checkpoint: the model has no blocks, the elements of a ModuleList: call nn::checkpoint() "
          "for its modules"));
  for (const char* mode : all_modes) {
    ParallelPlan plan = ParallelPlan::from_json(json(with("", mode)));
    CHECK(ParallelPlan::from_json(plan.to_json()) == plan);
  }
}

TEST_CASE("an error in a checkpointed block leaves nothing behind") {
  auto rank = Rank::single();
  DeviceMesh m(*rank, "dp=1");
  Tower model(m);
  ParallelPlan::from_json(json(with("", R"({"mode": "full"})"))).apply(model);
  materialize(model, 1);
  GradientStore store(*rank);
  watch_parameters(store, model.parameters());
  CHECK_THAT(error_of([&] {
               Record record(store);
               Record::Scope scope(record);
               model(DistributedTensor::distribute(f32({2, 5}, 1), m, Layout()));
             }),
             Contains("no RandomScope is open"));
  CHECK(rank->keep_policy == nullptr);
}
