#include <optional>

#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

TEST_CASE("errors of calls begin with the op and show the values") {
  OneRank one;
  DistributedTensor a = one({5, 7}), vector = one(Shape{7});
  CHECK_THROWS_WITH(ops::matmul(a, one({6, 3})), Contains("[matmul] inner sizes 7 and 6 differ: f32[5,7]"));
  CHECK_THROWS_WITH(call(ops::matmul_op, {&a, &vector}),
                    Contains("[matmul] operand 1 has 1 dimensions, [7]; it needs at least 2"));
  CHECK_THROWS_WITH(ops::add(a, one({5, 3})),
                    Contains("[add] sizes 7 and 3 of one dimension do not broadcast: operand 1 is [5,3]"));
  CHECK_THROWS_WITH(ops::add(a, one({5, 7}, DType::f64)),
                    Contains("[add] element types differ: f32[5,7] and f64[5,7]; use cast()"));
  CHECK_THROWS_WITH(call(ops::add_op, {&a}), Contains("[add] takes 2 operands, not 1"));
  CHECK_THROWS_WITH(call(ops::add_op, {nullptr, nullptr}), Contains("[add] operand 0 is absent"));
  CHECK_THROWS_WITH(call(ops::cat_op, {nullptr, nullptr}), Contains("[cat] all operands are absent"));
  CHECK_THROWS_WITH(ops::sum(a, {2}), Contains("[sum] dimension 2 is out of range for 2 dimensions"));
  CHECK_THROWS_WITH(ops::sum(a, {0, -2}), Contains("[sum] a dimension is named twice"));
  CHECK_THROWS_WITH(ops::exp(one({3}, DType::i64)), Contains("[exp] element type i64 of [3]: use cast()"));
  CHECK_THROWS_WITH(ops::div(one({3}, DType::i64), one({3}, DType::i64)),
                    Contains("[div] element type i64 of [3]: use cast()"));
  CHECK_THROWS_WITH(ops::mul(one({3}, DType::i64), 0.5), Contains("[mul_scalar] 0.5 is no integer"));
  CHECK_THROWS_WITH(ops::swiglu(a, one({7})), Contains("[swiglu] shapes differ: [5,7] and [7]"));
  CHECK_THROWS_WITH(ops::linear_weight_gradient(a, one({1, 7})),
                    Contains("[linear_weight_gradient] leading dimensions [5] and [1] differ"));
  CHECK_THROWS_WITH(ops::linear_add(a, one({3, 7}), one({1, 3})),
                    Contains("[linear_add] leading dimensions [5] and [1] differ"));
  CHECK_THROWS_WITH(ops::embedding(a, a), Contains("[embedding] indices are i64, not f32[5,7]"));
  CHECK_THROWS_WITH(ops::embedding(one({5}, DType::i64), one({4, 2})),
                    Contains("[embedding] id 4 is outside the vocabulary [0,4)"));
  CHECK_THROWS_WITH(ops::rotary(one({1, 2, 1, 3}), 100),
                    Contains("[rotary] heads of 3 elements; pairs need an even number"));
  CHECK_THROWS_WITH(ops::rms_norm(a, one({5}), 1e-5), Contains("[rms_norm] sizes of d differ"));
}

TEST_CASE("operands on two meshes are an error that names both") {
  OneRank one;
  DeviceMesh other(*one.rank, "y=1");
  DistributedTensor a = one({3}), b = DistributedTensor::distribute(iota({3}), other, Layout());
  CHECK_THROWS_WITH(ops::add(a, b), Contains("[add] operands on two meshes: x=1 and y=1"));
}

TEST_CASE("law 7: in strict mode, communication that nobody asked for is an error") {
  auto run = [](bool strict, bool by_hand) {
    launch(2, [&](Rank& rank) {
      DeviceMesh mesh(rank, "tp=2");
      DistributedTensor a = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(0)});
      DistributedTensor b = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(1)});
      rank.strict = strict;
      if (by_hand) b = b.redistribute({Shard(0)});
      expect(numbers(ops::add(a, b).full_tensor())[7], 14);
    });
  };
  run(false, false);
  run(true, true);
  CHECK_THROWS_WITH(run(true, false), Contains("[add] strict mode: ") && Contains("f32[4,6] tp=Shard(") &&
                                          Contains("which nobody asked for") && Contains("redistribute()"));
}

TEST_CASE("calls repeat from the cache: it stays flat") {
  OneRank one;
  DistributedTensor a = one({4, 6}), w = one({3, 6});
  auto step = [&] {
    DistributedTensor y = ops::linear(a, w);
    y = ops::reshape(ops::mul(y, 0.5), {2, 2, -1});
    return ops::sum(ops::transpose(y, 0, 1), {-1});
  };
  step();
  size_t calls = cached_calls(*one.rank);
  CHECK(calls > 0);
  for (int i = 0; i < 10; ++i) step();
  CHECK(cached_calls(*one.rank) == calls);
  ops::transpose(a, 0, 1);  // another attribute is another call
  ops::sum(a, {0});
  CHECK(cached_calls(*one.rank) == calls + 2);
  ops::sum(a, {0});
  CHECK(cached_calls(*one.rank) == calls + 2);
}

TEST_CASE("the wanted layout decides among equals: an embedding's gradient in shards") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor ids = DistributedTensor::distribute(iota({5}, DType::i64), mesh, Layout());
    DistributedTensor dy = DistributedTensor::distribute(iota({5, 4}), mesh, Layout());
    Moved moved(rank);
    auto gradient = [&](const Layout* wanted) {
      return call(ops::embedding_backward_op, {&ids, &dy}, ops::TableSize{6}, {wanted});
    };
    Layout rows{Shard(0)};
    expect(gradient(&rows).layout(), rows);
    expect(gradient(nullptr).layout(), Layout());
    expect(numbers(gradient(&rows).full_tensor()), numbers(gradient(nullptr).full_tensor()));
  });
}

TEST_CASE("a column-parallel and a row-parallel linear layer need one all-reduce") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto on = [&](const Shape& s, Placement p) { return DistributedTensor::distribute(iota(s), mesh, {p}); };
    DistributedTensor x = on({3, 4}, Replicate()), up = on({8, 4}, Shard(0)), down = on({4, 8}, Shard(1));
    Moved moved(rank);
    DistributedTensor y = ops::linear(ops::relu(ops::linear(x, up)), down);
    expect(y.layout(), Layout{Partial()});
    expect(moved.log, "");
    // A bias is added once.
    DistributedTensor bias = on({4}, Replicate()), z = ops::linear(ops::relu(ops::linear(x, up)), down, bias);
    expect(z.layout(), Layout{Partial()});
    expect(moved.log, "");
    expect(numbers(z.full_tensor())[1], numbers(y.full_tensor())[1] + 1);
    expect(moved.launches, 2);
  });
}

// --- cards of a program's own

namespace {

template <int times>
void times_kernel(const Context&, std::span<const Tensor> in, std::span<Tensor> out) {
  for (int64_t i = 0; i < in[0].numel(); ++i) out[0].data<float>()[i] = float(times) * in[0].data<float>()[i];
}
template <int times>
std::vector<DistributedTensor> times_composite(std::span<const DistributedTensor* const> in, const Attributes&) {
  return {ops::mul(*in[0], double(times))};
}

}  // namespace

TEST_CASE("a card is itself, not its address: another one in its place is another op") {
  OneRank one;
  DistributedTensor x = one({3});
  std::optional<Op> card;
  auto second = [&](const Op& op) { return numbers(call(op, {&x}).local())[1]; };
  card.emplace(Op{.name = "own", .rule = "...->...", .cpu = times_kernel<2>});
  CHECK(second(*card) == 2);
  card.emplace(Op{.name = "own", .rule = "...->...", .cpu = times_kernel<3>});
  CHECK(second(*card) == 3);
  *card = Op{.name = "own", .rule = "...->...", .cpu = times_kernel<5>};
  CHECK(second(*card) == 5);
  Op copy = *card;
  copy.cpu = times_kernel<7>;
  CHECK(second(copy) == 7);
  CHECK(second(*card) == 5);
  size_t calls = cached_calls(*one.rank);
  for (int i = 0; i < 3; ++i) CHECK(second(copy) == 7);
  CHECK(cached_calls(*one.rank) == calls);
}

TEST_CASE("who records a call can hold its card for as long as it needs it") {
  class Recorder : public Observer {
   public:
    void on_call(const CallEvent& e) override { cards.push_back(e.lasting); }
    std::vector<std::shared_ptr<const Op>> cards;
  };
  Recorder recorder;
  {
    OneRank one;
    DistributedTensor x = one({3});
    one.rank->add(recorder);
    for (int i = 0; i < 2; ++i) {
      const Op card = {.name = "own", .rule = "...->...", .cpu = times_kernel<2>, .keeps = {.inputs = {0}}};
      call(card, {&x});
      call(card, {&x});
      const Op composite = {.name = "own_composite", .composite = times_composite<2>};
      call(composite, {&x});
    }
    one.rank->remove(recorder);
  }
  REQUIRE(recorder.cards.size() == 8);
  for (size_t i : {0, 4}) {
    CHECK(recorder.cards[i] == recorder.cards[i + 1]);
    CHECK(recorder.cards[i]->name == "own");
    CHECK(recorder.cards[i]->keeps.inputs == std::vector<int>{0});
    CHECK(recorder.cards[i + 2]->name == "mul_scalar");
    CHECK(recorder.cards[i + 3]->composite == times_composite<2>);
  }
  CHECK(recorder.cards[0] != recorder.cards[4]);
  CHECK(recorder.cards[2] == recorder.cards[6]);
}

TEST_CASE("an operand on another device than the rank's is an error that names both") {
  auto rank = Rank::recorded(1);
  DeviceMesh mesh(*rank, "x=1");
  DistributedTensor meta = DistributedTensor::empty(mesh, {DType::f32, {3}, {}}),
                    host = DistributedTensor::empty(mesh, mesh.intern({DType::f32, {3}, {}}), iota({3}));
  CHECK(ops::add(meta, meta).is_meta());
  CHECK_THROWS_WITH(ops::add(meta, host),
                    "[add] operand 1, f32[3] x=Replicate, is on cpu and this rank's kernels on meta; bring its part "
                    "here, .to(rank.allocator())");
}

TEST_CASE("from the factors of calls an observer counts the work of each rank, however it is sharded") {
  class Flops : public Observer {
   public:
    void on_call(const CallEvent& e) override {
      if (e.op.name != "matmul") return;
      int64_t local = 2, all = 2;
      for (const Context::FactorRange& f : e.factors) local *= f.range.size(), all *= f.size;
      mine += local, whole += all;
    }
    int64_t mine = 0, whole = 0;
  };
  struct Case {
    Placement x, w;
    int64_t local;  // of 2 * 8 * 16 * 6 on all
  };
  for (const Case& c : {Case{Replicate(), Replicate(), 1536},
                        {Shard(0), Replicate(), 768},
                        {Replicate(), Shard(1), 768},
                        {Shard(1), Shard(0), 768}})
    launch(2, [&](Rank& rank) {
      DeviceMesh mesh(rank, "tp=2");
      DistributedTensor x = DistributedTensor::distribute(iota({8, 16}), mesh, {c.x}),
                        w = DistributedTensor::distribute(iota({16, 6}), mesh, {c.w});
      Flops flops;
      rank.add(flops);
      ops::matmul(x, w);
      rank.remove(flops);
      expect(flops.mine, c.local);
      expect(flops.whole, 1536);
    });
}

TEST_CASE("a call says whether it added to the tensor that it was given") {
  class Last : public Observer {
   public:
    void on_call(const CallEvent& e) override { accumulated = e.accumulated, into = e.options.into; }
    bool accumulated = false;
    const DistributedTensor* into = nullptr;
  };
  OneRank one;
  DistributedTensor dy = one({4, 2}), x = one({4, 3}), sum = ops::linear_weight_gradient(dy, x);
  std::vector<double> once = numbers(sum.local());
  Last last;
  one.rank->add(last);
  for (bool shared : {false, true}) {
    DistributedTensor other = shared ? sum : DistributedTensor();
    bool added = !shared;
    DistributedTensor y =
        call(ops::linear_weight_gradient_op, {&dy, &x}, ops::Product{}, {.into = &sum, .accumulated = &added});
    CHECK(added == !shared);
    CHECK(last.accumulated == !shared);
    CHECK(last.into == &sum);
    CHECK((y.id() == sum.id()) == !shared);
  }
  one.rank->remove(last);
  CHECK(numbers(sum.local())[1] == 2 * once[1]);
}

TEST_CASE("what a card writes in place is never moved: a layout that would have to be is an error") {
  const Op add_rows = {.name = "add_rows",
                       .rule = "a[b],a[b]->a[b]",
                       .writes = {0},
                       .cpu = [](const Context&, std::span<const Tensor> in, std::span<Tensor> out) {
                         for (int64_t i = 0; i < in[1].numel(); ++i) out[0].data<float>()[i] += in[1].data<float>()[i];
                       }};
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    DistributedTensor rows = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(0)}),
                      columns = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(1)});
    DistributedTensor x = DistributedTensor::distribute(iota({4, 6}), mesh, {Shard(0)});
    DistributedTensor y = call(add_rows, {&x, &columns});
    expect(int64_t(y.id()), int64_t(x.id()));
    expect(numbers(x.full_tensor())[7], 14);
    std::string error;
    try {
      call(add_rows, {&columns, &rows});
    } catch (const Error& e) {
      error = e.what();
    }
    expect(error,
           "[add_rows] operand 0 is written in place, which f32[4,6] tp=Shard(1) cannot be; redistribute it to "
           "tp=Shard(0) first");
    expect(numbers(columns.full_tensor())[7], 7);
  });
}

TEST_CASE("a lasting card is its card: a call of it, as records replay them, needs no other decision or kernel") {
  OneRank one;
  DistributedTensor x = one({4});
  std::shared_ptr<const Op> card = lasting(ops::relu_op);
  CHECK(card->identity.key() == ops::relu_op.identity.key());
  CHECK(lasting(*card) == card);
  call(ops::relu_op, {&x});
  size_t calls = cached_calls(*one.rank);
  call(*card, {&x});
  CHECK(cached_calls(*one.rank) == calls);
  const Op copy = ops::relu_op;  // another card
  CHECK(copy.identity.key() != ops::relu_op.identity.key());
}
