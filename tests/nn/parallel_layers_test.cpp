#include "nn/parallel/layers.h"

#include "tests/autograd.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

constexpr int64_t vocabulary = 11, width = 6, inner = 10;  // 11 and 10 divide over neither 3 nor 4 ranks

// Rows of a table, a linear layer, gelu, a linear layer back: plain, or of layers that shard themselves.
struct Block {
  std::unique_ptr<Embedding> table;
  std::unique_ptr<Linear> up, down;

  Block(Module& root, bool parallel, bool gathered) {
    if (!parallel) {
      table = std::make_unique<Embedding>(root, "table", vocabulary, width, 0.5, 2);
      up = std::make_unique<Linear>(root, "up", width, inner, true, 0.5);
      down = std::make_unique<Linear>(root, "down", inner, width, true, 0.5);
      return;
    }
    using Column = ColumnParallelLinear;
    using Row = RowParallelLinear;
    using Table = VocabParallelEmbedding;
    table = std::make_unique<Table>(root, "table", vocabulary, width, Table::Options{.std = 0.5, .padding_idx = 2});
    up = std::make_unique<Column>(root, "up", width, inner, Column::Options{.gather_output = gathered, .std = 0.5});
    down = std::make_unique<Row>(root, "down", inner, width, Row::Options{.input_is_parallel = !gathered, .std = 0.5});
  }
  DistributedTensor operator()(const DistributedTensor& ids) { return (*down)(ops::gelu((*up)((*table)(ids)))); }
};

struct LayerRun {
  std::vector<double> output, gradients;
  std::string layouts, forward, backward;
};

LayerRun run(const std::string& mesh, bool parallel, bool gathered) {
  return on_mesh(mesh,
                 [&](const DeviceMesh& m) {
                   Root root(m);
                   Block block(root, parallel, gathered);
                   materialize(root, 1);
                   for (Linear* l : {block.up.get(), block.down.get()}) {
                     DistributedTensor b = l->bias->stored();
                     b.copy_(DistributedTensor::distribute(f32(b.shape(), 3), m, b.layout()));
                   }
                   // The batch is sharded over dp where there is such an axis.
                   Layout rows = m.shape().find("dp") >= 0 ? Layout().with(0, Shard(0)) : Layout();
                   Tensor ids = Tensor::of<int64_t>({2, 6}, {0, 10, 3, 3, 1, 2, 7, 4, 5, 6, 0, 8});
                   CommLog log(m.rank_state());
                   Autograd autograd(m.rank_state());
                   for (Parameter* p : root.parameters()) autograd.watch(p->stored());
                   DistributedTensor y, loss;
                   {
                     PhaseScope phase(m.rank_state(), Phase::forward);
                     y = block(DistributedTensor::distribute(ids, m, rows));
                     loss = ops::sum(ops::square(y));
                   }
                   LayerRun r;
                   r.forward = counts(log.entries(), Phase::forward);
                   r.layouts = to_string(y.layout(), m.shape());
                   loss = loss.redistribute(Layout());
                   autograd.backward(loss, {.reduce = false});
                   r.backward = counts(log.entries(), Phase::backward);
                   r.output = values(y.full_tensor());
                   for (Parameter* p : root.parameters()) {
                     r.layouts += ", " + to_string(p->stored().layout(), m.shape());
                     std::vector<double> g = values(autograd.store.reduce({p->stored()})[0].full_tensor());
                     r.gradients.insert(r.gradients.end(), g.begin(), g.end());
                   }
                   return r;
                 })
      .back();
}

}  // namespace

TEST_CASE("layers that shard themselves have the outputs and gradients of the plain ones") {
  LayerRun plain = run("tp=1", false, false);
  for (bool gathered : {false, true}) {
    for (const char* mesh : {"tp=2", "tp=3", "tp=4", "dp=2,tp=2"}) {
      INFO(mesh << (gathered ? ", gathered between" : ", sharded between"));
      LayerRun r = run(mesh, true, gathered);
      CHECK(difference(r.output, plain.output) < 1e-5);
      CHECK(difference(r.gradients, plain.gradients) < 1e-4);
      std::string of_batch = mesh[0] == 'd' ? "dp=Shard(0) " : "", dp = mesh[0] == 'd' ? "dp=Replicate " : "";
      CHECK(r.layouts == of_batch + "tp=Replicate, " + dp + "tp=Shard(0), " + dp + "tp=Shard(0), " + dp +
                             "tp=Shard(0), " + dp + "tp=Shard(1), " + dp + "tp=Replicate");
      // A sum behind the table, one behind the second layer; the columns come together only where that is asked for.
      CHECK(r.forward == (gathered ? "all_gather 1, all_reduce 2" : "all_reduce 2"));
    }
    LayerRun one = run("tp=1", true, gathered);  // an axis of one rank: the plain layers
    CHECK(one.output == plain.output);
    CHECK(one.gradients == plain.gradients);
    CHECK(one.forward == "");
  }
}

TEST_CASE("layers that shard themselves bring what comes, but a claim is held against the fact") {
  on_mesh("tp=2", [](const DeviceMesh& m) {
    Root root(m);
    ColumnParallelLinear column(root, "column", 6, 4);
    RowParallelLinear row(root, "row", 4, 6), claims(root, "claims", 4, 6, {.input_is_parallel = true});
    VocabParallelEmbedding table(root, "table", 5, 4);
    materialize(root, 1);
    auto x = [&](const Shape& s, Placement p) { return DistributedTensor::distribute(f32(s, 1), m, Layout{p}); };
    auto is = [&](const DistributedTensor& y, const char* text) {
      check(to_string(y) == text, "{} is not {}", to_string(y), text);
    };
    is(column(x({2, 6}, Shard(0))), "f32[2,4] tp=Replicate");
    is(row(x({2, 4}, Replicate())), "f32[2,6] tp=Replicate");
    is(row(x({2, 4}, Shard(0))), "f32[2,6] tp=Replicate");
    is(claims(x({2, 4}, Shard(1))), "f32[2,6] tp=Replicate");
    is(table(DistributedTensor::distribute(Tensor::of<int64_t>({2, 2}, {4, 0, 1, 2}), m, Layout{Shard(1)})),
       "f32[2,2,4] tp=Replicate");
    std::string error = error_of([&] { claims(x({2, 4}, Replicate())); });
    check(error.starts_with("[claims] RowParallelLinear claims that input 0 arrives as tp=Shard(1), but it is f32[2,4] "
                            "tp=Replicate"),
          "{}", error);
  });
}

TEST_CASE("layers that shard themselves name the axis that a mesh has not") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  Root root(mesh);
  CHECK_THAT(error_of([&] { ColumnParallelLinear(root, "a", 4, 4); }),
             StartsWith("[ColumnParallelLinear] ") && Contains("\"tp\""));
  CHECK_THAT(error_of([&] { RowParallelLinear(root, "b", 4, 4, {.axis = "model"}); }),
             StartsWith("[RowParallelLinear] ") && Contains("\"model\""));
  CHECK_THAT(error_of([&] { VocabParallelEmbedding(root, "c", 4, 4); }), StartsWith("[VocabParallelEmbedding] "));
}
