// A step in micro-batches: the bits of one whole batch, one reduction per group, the memory of one micro-batch.
#include <set>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// Any tokens, of which some targets do not count: more of them in the first rows.
PackedText::Batch made_up(const DeviceMesh& m, int64_t rows, int64_t seq, int64_t vocabulary) {
  std::vector<int64_t> inputs, targets;
  for (int64_t i = 0; i < rows * seq; ++i) {
    int64_t r = (i * 7919 + 3) % 1009;
    inputs.push_back(r % vocabulary);
    targets.push_back(r % (2 + i / seq) == 0 ? ignored_target : (r * 31 + i) % vocabulary);
  }
  Layout layout = batch_layout(m.shape());
  return {DistributedTensor::distribute(Tensor::of<int64_t>({rows, seq}, inputs), m, layout),
          DistributedTensor::distribute(Tensor::of<int64_t>({rows, seq}, targets), m, layout)};
}

struct Result {
  double loss;
  std::vector<std::vector<float>> parameters;
  Entries entries;
  int64_t peak;
};

Result step(const std::string& mesh, const std::string& plan, int64_t rows, int64_t micro_batch_size,
            int64_t seq = 16) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    LlamaTrainingOptions o;
    o.micro_batch_size = micro_batch_size;
    o.clip = 0, o.lr = 1, o.adamw.eps = 1;  // so that the update is nearly the gradient
    LlamaTraining training(m, small_llama(4, 64), plan.empty() ? ParallelPlan{} : ParallelPlan::load(plan_file(plan)),
                           o);
    PackedText::Batch batch = made_up(m, rows, seq, 64);
    CommLog log(rank);
    m.communicator(m.shape().all()).barrier();
    rank.allocator()->reset_peak();
    Result r{training.trainer.step(batch).loss, {}, log.entries(), rank.allocator()->peak_bytes()};
    for (Parameter* p : training.model.parameters()) {
      Tensor t = p->stored().full_tensor();
      r.parameters.emplace_back(t.data<float>(), t.data<float>() + t.numel());
    }
    return r;
  })[0];
}

}  // namespace

TEST_CASE("law 6: a step in micro-batches has the bits of one whole batch on one rank") {
  struct Case {
    const char *mesh, *plan;
    int64_t micro_batch_size;
  };
  const Case cases[] = {{"dp=1", "", 4},          {"dp=1", "", 2},          {"dp=1", "", 1},
                        {"dp=2", "", 4},          {"dp=2", "", 2},          {"dp=4", "", 4},
                        {"dp=1", "fsdp.json", 2}, {"dp=2", "fsdp.json", 8}, {"dp=2", "fsdp.json", 4},
                        {"dp=2", "fsdp.json", 2}, {"dp=4", "fsdp.json", 4}};
  auto rank = Rank::recorded(1);
  LlamaForCausalLM model(DeviceMesh(*rank, "dp=1"), small_llama(4, 64));
  for (int64_t seq : {16, 65}) {
    Result one = step("dp=1", "", 8, 0, seq);
    for (const Case& c : cases) {
      INFO(c.plan << " on " << c.mesh << ", 8 rows in micro-batches of " << c.micro_batch_size << ", " << seq
                  << " tokens");
      Result r = step(c.mesh, c.plan, 8, c.micro_batch_size, seq);
      CHECK(std::memcmp(&r.loss, &one.loss, sizeof(double)) == 0);
      for (size_t p = 0; p < one.parameters.size(); ++p) {
        INFO(model.parameters()[p]->path());
        CHECK(std::memcmp(r.parameters[p].data(), one.parameters[p].data(), one.parameters[p].size() * sizeof(float)) ==
              0);
      }
    }
  }
}

TEST_CASE("other numbers of micro-batches agree to rounding") {
  Result one = step("dp=1", "", 12, 0);
  for (int64_t size : {2, 4, 6}) {
    Result r = step("dp=2", "fsdp.json", 12, size);
    CHECK(r.loss == Approx(one.loss).epsilon(1e-6));
    for (size_t p = 0; p < one.parameters.size(); ++p)
      CHECK(difference(std::vector<double>(r.parameters[p].begin(), r.parameters[p].end()),
                       std::vector<double>(one.parameters[p].begin(), one.parameters[p].end())) < 1e-5);
  }
}

TEST_CASE("four micro-batches of a fully sharded model are reduced once per group") {
  Result r = step("dp=2", "fsdp.json", 8, 2);
  std::map<std::string, int> tensors;
  std::set<int> launches;
  for (const auto& e : r.entries)
    if (e.phase == Phase::backward && e.collective == "reduce_scatter") ++tensors[e.reason], launches.insert(e.group);
  INFO(listing(r.entries));
  CHECK(launches.size() == 3);
  CHECK(tensors.size() == 21);
  for (const auto& [reason, n] : tensors) CHECK(n == 1);
}

TEST_CASE("micro-batches need the memory of one and of their sums") {
  for (const char* mesh : {"dp=1", "dp=2"}) {
    const int64_t seq = 128;
    Result whole = step(mesh, "fsdp.json", 16, 0, seq), quarter = step(mesh, "fsdp.json", 4, 0, seq),
           four = step(mesh, "fsdp.json", 16, 4, seq);
    int64_t gradients = 0;
    for (const auto& p : whole.parameters) gradients += int64_t(p.size() * sizeof(float));
    INFO(mesh << ": whole " << whole.peak << ", quarter " << quarter.peak << ", four " << four.peak << ", gradients "
              << gradients);
    CHECK(four.peak < quarter.peak + 2 * gradients + 3 * 16 * seq * 8);  // two sums, and the whole batch's tokens
    CHECK(four.peak < whole.peak);
  }
}

TEST_CASE("a batch that does not divide into micro-batches is an error") {
  for (int64_t size : {3, 16, -1, 1})
    CHECK_THAT(error_of([&] { step("dp=2", "", 8, size); }),
               Contains(" ranks: the micro-batch size divides the batch size, and the ranks divide it"));
}
