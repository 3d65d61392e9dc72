#include "ops/layer/attention.h"

#include <cmath>
#include <limits>

#include "ops/layer/dropout.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

namespace {
DistributedTensor attend(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& mask) {
  return ops::scaled_dot_product_attention(q, k, k, {.attn_mask = mask});
}
}  // namespace

TEST_CASE("attention: masks are added or hide, and a row that is left no key gives 0") {
  OneRank one;
  const float inf = std::numeric_limits<float>::infinity();
  DistributedTensor q = ops::mul(one({1, 2, 2, 4}), 0.1), k = ops::mul(one({1, 2, 3, 4}), 0.1);
  DistributedTensor seen = one(Tensor::of<bool>({2, 3}, {true, false, true, false, false, false}));
  DistributedTensor added = one(Tensor::of<float>({1, 2, 3}, {0, -inf, 0, -inf, -inf, -inf}));
  std::vector<double> y = numbers(attend(q, k, seen).full_tensor());
  CHECK(y == numbers(attend(q, k, added).full_tensor()));
  for (size_t i = 0; i < 16; ++i) CHECK((y[i] == 0) == (i % 8 >= 4));
  // The same as without the hidden key.
  DistributedTensor two = one(Tensor::of<float>({1, 1, 2, 1}, {0, 2})),
                    three = one(Tensor::of<float>({1, 1, 3, 1}, {0, 9, 2}));
  DistributedTensor first = one(Tensor::of<bool>({3}, {true, false, true})),
                    row = one(Tensor::of<float>({1, 1, 1, 1}, {1}));
  CHECK(attend(row, three, first).item() == Approx(attend(row, two, {}).item()));
  CHECK(attend(row, three, first).item() == Approx(2 * std::exp(2.0) / (1 + std::exp(2.0))));
}

TEST_CASE("attention over more than a block of keys and queries equals causal attention where the mask says so") {
  OneRank one;
  DistributedTensor q = ops::mul(one({1, 2, 300, 4}), 1e-3), k = ops::mul(one({1, 1, 300, 4}), 1e-3);
  std::vector<uint8_t> lower;
  for (int i = 0; i < 300; ++i)
    for (int j = 0; j < 300; ++j) lower.push_back(j <= i);
  Tensor triangle =
      ops::cast(one(Tensor::of<int64_t>({300, 300}, std::vector<int64_t>(lower.begin(), lower.end()))), DType::boolean)
          .local();
  std::vector<double> masked = numbers(attend(q, k, one(triangle)).full_tensor()),
                      causal = numbers(ops::scaled_dot_product_attention(q, k, k, {.causal = true}).full_tensor());
  REQUIRE(masked.size() == causal.size());
  for (size_t i = 0; i < causal.size(); ++i) REQUIRE(masked[i] == Approx(causal[i]).epsilon(1e-5));
}

TEST_CASE("a negative scale is the positive one of negative queries") {
  OneRank one;
  DistributedTensor q = ops::sin(one({1, 2, 3, 4})), k = ops::cos(one({1, 2, 3, 4}));
  for (bool causal : {false, true})
    CHECK(numbers(ops::scaled_dot_product_attention(q, k, k, {.causal = causal, .scale = -0.5}).full_tensor()) ==
          numbers(ops::scaled_dot_product_attention(-q, k, k, {.causal = causal, .scale = 0.5}).full_tensor()));
}

TEST_CASE("attention is told where the gradient of the queries may be added up in any order") {
  struct Calls : Observer {
    std::string log;
    void on_call(const CallEvent& e) override {
      if (e.op.name == "attention") log += e.attributes.to_string() + "\n";
    }
  };
  OneRank one;
  Calls calls;
  one.rank->add(calls);
  DistributedTensor q = one({1, 2, 3, 4});
  ops::scaled_dot_product_attention(q, q, q);
  ops::scaled_dot_product_attention(q, q, q, {.deterministic = false});
  one.rank->remove(calls);
  CHECK(calls.log ==
        "causal=false window=0 whole_kv=false chunks=1 scale=0.5 dropout_p=0 key=0 deterministic=true max_documents=0\n"
        "causal=false window=0 whole_kv=false chunks=1 scale=0.5 dropout_p=0 key=0 deterministic=false "
        "max_documents=0\n");
}

TEST_CASE("attention refuses masks that do not fit") {
  OneRank one;
  DistributedTensor q = one({2, 4, 3, 2}), k = one({2, 2, 5, 2}), mask = one({3, 5});
  ops::AttentionOptions both{.causal = true, .attn_mask = mask};
  CHECK_THROWS_WITH(ops::scaled_dot_product_attention(q, k, k, both),
                    Contains("attn_mask and is_causal are both given"));
  CHECK_THROWS_WITH(attend(q, k, one({5, 3})),
                    Contains("attn_mask f32[5,3]") && Contains("[batch, heads, queries, keys] [2,4,3,5]"));
  CHECK_THROWS_WITH(attend(q, k, one({2, 2, 3, 5})), Contains("does not broadcast"));
  CHECK_THROWS_WITH(attend(q, k, one({1, 1, 1, 3, 5})), Contains("has more than 4 dimensions"));
  CHECK_THROWS_WITH(attend(q, k, one({3, 5}, DType::i64)),
                    Contains("attn_mask is bool or of the queries' type, not i64"));
  CHECK_THROWS_WITH(ops::scaled_dot_product_attention(q, k, k, {.dropout_p = 2}), Contains("the probability 2"));
}

TEST_CASE("attention: a mask that is sharded as batch, heads and queries are moves nothing") {
  OneRank one;
  Tensor queries = iota({2, 4, 6, 2}), keys = iota({2, 2, 5, 2}), bias = iota({2, 4, 6, 5});
  auto small = [](const DistributedTensor& x) { return ops::mul(x, 0.01); };
  std::vector<double> whole = numbers(attend(small(one(queries)), small(one(keys)), small(one(bias))).full_tensor());
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    rank.strict = true;
    for (int d : {0, 1, 2}) {
      auto q = DistributedTensor::distribute(queries, mesh, {Shard(d)});
      auto k = DistributedTensor::distribute(keys, mesh, {d == 2 ? Placement(Replicate()) : Shard(d)});
      auto m = DistributedTensor::distribute(bias, mesh, {Shard(d)});
      Moved moved(rank);
      DistributedTensor y = attend(small(q), small(k), small(m));
      expect(moved.log, "");
      expect(y.layout(), Layout({Shard(d)}));
      expect(numbers(y.full_tensor()), whole);
    }
  });
}

namespace {

Tensor integers(const Shape& shape, const std::vector<int64_t>& list) { return Tensor::of<int64_t>(shape, list); }
std::vector<int64_t> counted(int64_t n, int64_t first = 0) {
  std::vector<int64_t> list(static_cast<size_t>(n));
  std::iota(list.begin(), list.end(), first);
  return list;
}
// [shape], of both signs and no simple ratios.
Tensor wave(const Shape& shape, double frequency) {
  std::vector<float> v;
  for (int64_t i = 0; i < numel(shape); ++i) v.push_back(float(std::sin(frequency * double(i + 1))));
  return Tensor::of<float>(shape, v);
}

// Out, and the gradients of q, k and v.
std::vector<std::vector<double>> attention_and_gradients(const OneRank& one, const Tensor& q, const Tensor& k,
                                                         const std::vector<Tensor>& more,
                                                         ops::Attention a = {.causal = true, .scale = 0.3}) {
  std::vector<DistributedTensor> in;
  std::vector<const DistributedTensor*> operands;
  auto add = [&](const Tensor& t) { in.push_back(t.defined() ? one(t) : DistributedTensor()); };
  for (const Tensor& t : {q, k, k}) add(t);
  for (const Tensor& t : more) add(t);
  for (const DistributedTensor& x : in) operands.push_back(&x);
  auto out = call_all(ops::attention_op, operands, a);
  DistributedTensor dout = one(wave(q.shape(), 0.7));
  std::vector<const DistributedTensor*> back{&dout, &in[0], &in[1], &in[2], &out[0], &out[1]};
  for (size_t i = 3; i < in.size(); ++i) back.push_back(&in[i]);
  std::vector<std::vector<double>> all{numbers(out[0].local()), numbers(out[1].local())};
  for (const DistributedTensor& g : call_all(ops::attention_backward_op, back, ops::AttentionBackward{a, false}))
    all.push_back(numbers(g.local()));
  return all;
}

}  // namespace

TEST_CASE("law 6: positions that are given as they would be anyway change no bit of attention and rotary") {
  OneRank one;
  const int64_t n = 300;
  Tensor q = wave({2, n, 4, 8}, 0.37), k = wave({2, n, 2, 8}, 0.73), none;
  std::vector<int64_t> twice = counted(n);
  for (int64_t i = 0; i < n; ++i) twice.push_back(i);
  Tensor flat = integers({n}, counted(n)), by_batch = integers({2, n}, twice), all = integers({2}, {n, n});
  auto expected = attention_and_gradients(one, q, k, {none, none, none, none, none, none, none, none});
  for (const auto& [of_q, of_k, lengths] : {std::tuple{flat, none, none},
                                            {none, flat, none},
                                            {flat, flat, none},
                                            {by_batch, by_batch, none},
                                            {none, by_batch, all},
                                            {none, none, all}})
    CHECK(attention_and_gradients(one, q, k, {none, none, none, of_q, of_k, lengths, none, none}) == expected);
  std::vector<double> turned = numbers(ops::rotary(one(q), 100).full_tensor());
  CHECK(numbers(ops::rotary(one(q), 100, one(flat)).full_tensor()) == turned);
  CHECK(numbers(ops::rotary(one(q), 100, one(by_batch)).full_tensor()) == turned);
  auto [x, y] = ops::rotary(one(q), one(k), 100, one(by_batch));
  CHECK(numbers(x.full_tensor()) == turned);
  CHECK(numbers(y.full_tensor()) == numbers(ops::rotary(one(k), 100).full_tensor()));
}

TEST_CASE("law 6: queries in any order with their positions have the bits of queries in order, on any mesh") {
  // Balanced context parallelism: rank r of P has chunks r and 2P-1-r of the sequence, and all keys in order.
  OneRank one;
  const int64_t n = 160, chunk = n / 4;
  Tensor q = wave({1, 2, n, 8}, 0.37), k = wave({1, 2, n, 8}, 0.73), v = wave({1, 2, n, 8}, 1.1);
  std::vector<double> whole =
      numbers(ops::scaled_dot_product_attention(one(q), one(k), one(v), {.causal = true}).full_tensor());
  std::vector<int64_t> order;
  for (int64_t c : {0, 3, 1, 2})
    for (int64_t i = 0; i < chunk; ++i) order.push_back(c * chunk + i);
  std::vector<double> permuted;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i : order)
      for (int64_t d = 0; d < 8; ++d) permuted.push_back(whole[size_t((h * n + i) * 8 + d)]);
  DistributedTensor q_permuted = ops::index_select(one(q), 2, one(integers({n}, order)));
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "cp=2");
    rank.strict = true;
    auto queries = DistributedTensor::distribute(q_permuted.local(), mesh, {Shard(2)});
    auto positions = DistributedTensor::distribute(integers({n}, order), mesh, {Shard(0)});
    auto keys = DistributedTensor::distribute(k, mesh, Layout()),
         values = DistributedTensor::distribute(v, mesh, Layout());
    Moved moved(rank);
    auto y = ops::scaled_dot_product_attention(queries, keys, values, {.causal = true, .q_positions = positions});
    expect(moved.log, "");
    expect(y.layout(), Layout({Shard(2)}));
    expect(numbers(y.full_tensor()), permuted);
  });
}

TEST_CASE(
    "attention: a cache of a fixed size with a changing count is its keys so far, and what is beyond is not read") {
  OneRank one;
  const int64_t size = 200;
  Tensor all = wave({2, 2, size, 8}, 0.73), q = wave({2, 4, 1, 8}, 0.37);
  size_t decisions = 0;
  for (int64_t count : {1, 64, 65, 150, 200}) {
    Tensor cache = all.clone();
    for (int64_t i = 0; i < cache.numel(); ++i)
      if (i / 8 % size >= count) cache.data<float>()[i] = NAN;
    auto y = ops::scaled_dot_product_attention(
        one(q), one(cache), one(cache),
        {.causal = true, .q_positions = one(integers({1}, {count - 1})), .k_lengths = one(integers({}, {count}))});
    if (count == 1) decisions = cached_calls(*one.rank);
    auto now = one(all.narrow(2, 0, count).clone());
    INFO(count << " keys");
    CHECK(cached_calls(*one.rank) == decisions);
    OneRank other;
    CHECK(numbers(y.full_tensor()) ==
          numbers(ops::scaled_dot_product_attention(other(q), other(now.local()), other(now.local())).full_tensor()));
  }
  // A count for each batch entry.
  auto y =
      numbers(ops::scaled_dot_product_attention(one(q), one(all), one(all), {.k_lengths = one(integers({2}, {7, 0}))})
                  .full_tensor());
  auto seven = one(all.narrow(2, 0, 7).clone());
  auto first = numbers(ops::scaled_dot_product_attention(one(q), seven, seven).full_tensor());
  for (size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == (i < y.size() / 2 ? first[i] : 0));  // no key gives 0
}

TEST_CASE("attention and rotary refuse positions and lengths that do not fit") {
  OneRank one;
  DistributedTensor q = one({2, 4, 3, 2}), k = one({2, 2, 5, 2}), x = one({2, 3, 4, 2});
  auto attend = [&](const ops::AttentionOptions& o) { ops::scaled_dot_product_attention(q, k, k, o); };
  CHECK_THROWS_WITH(
      attend({.causal = true, .q_positions = one({5}, DType::i64)}),
      Contains("[scaled_dot_product_attention] q_positions are i64[5]") && Contains("not i64[3] or i64[2,3]"));
  CHECK_THROWS_WITH(attend({.causal = true, .k_positions = one({2, 5})}), Contains("k_positions are f32[2,5]"));
  CHECK_THROWS_WITH(attend({.q_positions = one({3}, DType::i64)}),
                    Contains("[scaled_dot_product_attention] q_positions and k_positions say what is_causal hides, or "
                             "which weights dropout_p drops: neither is asked for"));
  CHECK_THROWS_WITH(attend({.k_lengths = one({3}, DType::i64)}),
                    Contains("[scaled_dot_product_attention] k_lengths is i64[3]") && Contains("not i64[] or i64[2]"));
  CHECK_THROWS_WITH(attend({.k_lengths = one(integers({2}, {3, 6}))}), Contains("k_lengths has 6, outside [0,5]"));
  CHECK_THROWS_WITH(attend({.q_documents = one({3}, DType::i64)}),
                    Contains("[scaled_dot_product_attention] documents are given of queries or of keys alone: give "
                             "q_documents and k_documents, or neither"));
  CHECK_THROWS_WITH(attend({.q_documents = one({4}, DType::i64), .k_documents = one({5}, DType::i64)}),
                    Contains("[scaled_dot_product_attention] q_documents are i64[4]"));
  CHECK_THROWS_WITH(
      attend({.window = 2}),
      Contains("[scaled_dot_product_attention] a window of 2 without is_causal: it is a number of keys up "
               "to the query's own, with is_causal"));
  CHECK_THROWS_WITH(attend({.causal = true, .window = -1}), Contains("a window of -1: it is"));
  CHECK_THROWS_WITH(ops::rotary(x, ops::RotaryAngles{.frequencies = {1, 1}}),
                    Contains("[rotary] 2 frequencies turn 4 elements, but heads have 2"));
  CHECK_THROWS_WITH(ops::rotary(x, 100, one({4}, DType::i64)), Contains("[rotary] positions are i64[4]"));
  CHECK_THROWS_WITH(ops::rotary(x, x, 100, one({3})), Contains("[rotary] positions are f32[3]"));
  DistributedTensor floats = one({3});
  CHECK_THROWS_WITH(call(ops::rotary_op, {&x, &floats}, ops::Rotary{100}),
                    Contains("[rotary] positions are i64, not f32"));
}

namespace {

// Of `n` elements in documents of these lengths; the rest is padding.
std::vector<int64_t> documents(int64_t n, std::initializer_list<int64_t> lengths) {
  std::vector<int64_t> list;
  int64_t number = 0;
  for (int64_t length : lengths) list.insert(list.end(), size_t(length), number++);
  list.resize(size_t(n), -1);
  return list;
}

}  // namespace

TEST_CASE("attention: documents, padding and windows are masks, forward and backward") {
  OneRank one;
  const int64_t n = 150;
  Tensor q = wave({2, n, 4, 8}, 0.37), k = wave({2, n, 2, 8}, 0.73), none;
  std::vector<int64_t> rows = documents(n, {3, 64, 1, 50}), second = documents(n, {100, 50});
  rows.insert(rows.end(), second.begin(), second.end());
  Tensor of_each = integers({2, n}, rows);
  for (int64_t window : {0, 1, 20})
    for (bool with_documents : {false, true}) {
      if (!window && !with_documents) continue;
      CAPTURE(window, with_documents);
      std::vector<float> mask(size_t(2 * n * n));
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < n; ++j) {
            const int64_t *d = &rows[size_t(b * n)], own = d[i];
            bool seen = j <= i && (!window || i - j < window) && (!with_documents || (own >= 0 && own == d[j]));
            mask[size_t((b * n + i) * n + j)] = seen ? 0 : -std::numeric_limits<float>::infinity();
          }
      ops::Attention hidden{.causal = true, .window = window, .scale = 0.3}, masked{.scale = 0.3};
      Tensor d = with_documents ? of_each : none;
      auto got = attention_and_gradients(one, q, k, {none, none, none, none, none, none, d, d}, hidden);
      auto expected = attention_and_gradients(
          one, q, k, {Tensor::of<float>({2, 1, n, n}, mask), none, none, none, none, none, none, none}, masked);
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i)
        for (size_t e = 0; e < got[i].size(); ++e) {
          if (std::isinf(expected[i][e]) && got[i][e] == expected[i][e]) continue;  // lse of a row that sees nothing
          REQUIRE(got[i][e] == Approx(expected[i][e]).epsilon(1e-4).margin(1e-5));
        }
    }
}

TEST_CASE("law 6: one query, whose heads are computed together, has the bits that it has among others") {
  OneRank one;
  const int64_t s = 3, t = 130;
  DistributedTensor q = ops::sin(one({2, 6, s, 5})), k = ops::cos(one({2, 2, t, 5})), v = ops::sin(one({2, 2, t, 5}));
  const std::vector<int64_t> at{70, 9, 129}, of{1, 0, 1};
  std::vector<int64_t> k_documents(t, 1);
  for (size_t j = 0; j < 40; ++j) k_documents[j] = j == 3 ? -1 : 0;
  auto whole = [&](ops::AttentionOptions o) { return ops::scaled_dot_product_attention(q, k, v, o); };
  auto alone = [&](int64_t i, ops::AttentionOptions o) {
    return ops::scaled_dot_product_attention(ops::slice(q, 2, i, i + 1), k, v, o);
  };
  auto list = [&](std::vector<int64_t> values) { return one(Tensor::of<int64_t>({int64_t(values.size())}, values)); };
  DistributedTensor bias = ops::sin(one({2, 6, s, t})), seen = ops::gt(ops::sin(one({1, 6, s, t})), 0.3);
  for (int64_t i = 0; i < s; ++i) {
    INFO("query " << i);
    auto same = [&](const ops::AttentionOptions& all, const ops::AttentionOptions& its) {
      CHECK(numbers(ops::slice(whole(all), 2, i, i + 1).full_tensor()) == numbers(alone(i, its).full_tensor()));
    };
    const size_t n = size_t(i);
    same({}, {});
    same({.k_lengths = list({5, 99})}, {.k_lengths = list({5, 99})});
    for (int64_t window : {0, 66})
      same({.causal = true, .window = window, .q_positions = list(at)},
           {.causal = true, .window = window, .q_positions = list({at[n]})});
    if (i == 0) same({.causal = true}, {.causal = true});  // by index
    same({.attn_mask = bias}, {.attn_mask = ops::slice(bias, 2, i, i + 1)});
    same({.attn_mask = seen}, {.attn_mask = ops::slice(seen, 2, i, i + 1)});
    same(
        {.causal = true, .q_positions = list(at), .q_documents = list(of), .k_documents = list(k_documents)},
        {.causal = true, .q_positions = list({at[n]}), .q_documents = list({of[n]}), .k_documents = list(k_documents)});
  }
}

TEST_CASE("attention: max_documents changes no bits, and what breaks it is an error that says where") {
  const int64_t n = 150;
  Tensor q = wave({2, 4, n, 8}, 0.37), k = wave({2, 2, n, 8}, 0.73);
  std::vector<int64_t> rows = documents(n, {3, 64, 1, 50}), second = documents(n, {100, 50}), places;
  rows.insert(rows.end(), second.begin(), second.end());
  for (size_t i = 0; i < rows.size(); ++i)
    places.push_back(i % size_t(n) && rows[i] == rows[i - 1] ? places.back() + 1 : 7);
  auto attend = [&](const DeviceMesh& m, const char* of_heads, const char* of_tokens, int64_t max_documents,
                    const std::vector<int64_t>& d, const std::vector<int64_t>& of_keys, const std::vector<int64_t>& p,
                    const std::vector<int64_t>& p_of_keys) {
    auto heads = [&](const Tensor& t) { return DistributedTensor::distribute(t, m, of_heads); };
    auto tokens = [&](const std::vector<int64_t>& list) {
      return DistributedTensor::distribute(integers({2, n}, list), m, of_tokens);
    };
    return numbers(ops::scaled_dot_product_attention(heads(q), heads(k), heads(k),
                                                     {.causal = true,
                                                      .q_positions = tokens(p),
                                                      .k_positions = tokens(p_of_keys),
                                                      .q_documents = tokens(d),
                                                      .k_documents = tokens(of_keys),
                                                      .max_documents = max_documents})
                       .full_tensor());
  };
  OneRank one;
  auto here = [&](int64_t max_documents, const std::vector<int64_t>& d, const std::vector<int64_t>& of_keys,
                  const std::vector<int64_t>& p, const std::vector<int64_t>& p_of_keys) {
    return attend(one.mesh, "x=Replicate", "x=Replicate", max_documents, d, of_keys, p, p_of_keys);
  };
  std::vector<double> expected = here(0, rows, rows, places, places);
  for (int64_t most : {4, 5, 1000}) CHECK(here(most, rows, rows, places, places) == expected);
  for (auto of : {std::pair("x=Shard(0)", "x=Shard(0)"), {"x=Shard(2)", "x=Shard(1)"}})  // heads, tokens
    launch(2, [&](Rank& rank) {
      DeviceMesh m(rank, "x=2");
      CHECK(attend(m, of.first, of.second, 4, rows, rows, places, places) == expected);
    });

  auto with = [](std::vector<int64_t> list, size_t at, int64_t value) {
    list[at] = value;
    return list;
  };
  const std::string who = "[scaled_dot_product_attention] ", remedy = ": max_documents promises otherwise: give 0, ";
  CHECK_THROWS_WITH(here(3, rows, rows, places, places),
                    Contains(who + "row 0 has more documents than max_documents = 3: another begins at token 68; give "
                                   "what the data has, or 0"));
  std::vector<int64_t> back = with(rows, 299, 0);
  CHECK_THROWS_WITH(here(4, back, back, places, places),
                    Contains(who + "row 1 goes from document 1 to 0 at token 149" + remedy));
  back = with(rows, 20, -1);
  CHECK_THROWS_WITH(here(4, back, back, places, places),
                    Contains(who + "row 0 goes from document 1 to 1 at token 21" + remedy));
  CHECK_THROWS_WITH(here(4, with(rows, 149, 3), rows, places, places),
                    Contains(who + "query 149 of row 0 is of document 3, and key 149 of -1" + remedy));
  CHECK_THROWS_WITH(here(4, rows, rows, places, with(places, 151, 0)),
                    Contains(who + "query 1 of row 1 is at position 8, and key 1 at 0" + remedy));
  std::vector<int64_t> jump = with(places, 151, 9);
  CHECK_THROWS_WITH(here(4, rows, rows, jump, jump),
                    Contains(who + "positions of document 0 in row 1 go from 7 to 9 at token 1" + remedy));
  auto refused = [&](const Tensor& of_k, const ops::AttentionOptions& options) {
    ops::scaled_dot_product_attention(one(q), one(of_k), one(of_k), options);
  };
  CHECK_THROWS_WITH(refused(k, {.max_documents = 4}),
                    Contains(who + "max_documents = 4 without q_documents: it is how many a row of q_documents has at "
                                   "most, or 0"));
  DistributedTensor d = one(integers({2, n}, rows)), shorter = one(integers({9}, documents(9, {9})));
  CHECK_THROWS_WITH(refused(k, {.q_documents = d, .k_documents = d, .max_documents = -1}),
                    Contains(who + "max_documents = -1: it is"));
  CHECK_THROWS_WITH(
      refused(wave({2, 2, 9, 8}, 1), {.q_documents = d, .k_documents = shorter, .max_documents = 4}),
      Contains(who +
               "max_documents = 4 of 150 queries and 9 keys: it is of queries and keys that are the same tokens"));
}

TEST_CASE("law 6: a document has the same bits wherever it is packed, at multiples of a block of keys") {
  OneRank one;
  Tensor q = wave({1, 1, 192, 8}, 0.37), k = wave({1, 1, 192, 8}, 0.73);
  DistributedTensor d = one(integers({192}, documents(192, {64, 100})));
  auto y = numbers(
      ops::scaled_dot_product_attention(one(q), one(k), one(k), {.causal = true, .q_documents = d, .k_documents = d})
          .full_tensor());
  Tensor alone_q = q.narrow(2, 64, 100).clone(), alone_k = k.narrow(2, 64, 100).clone();
  auto alone = numbers(
      ops::scaled_dot_product_attention(one(alone_q), one(alone_k), one(alone_k), {.causal = true}).full_tensor());
  CHECK(std::vector<double>(y.begin() + 64 * 8, y.begin() + 164 * 8) == alone);
  CHECK(std::vector<double>(y.begin() + 164 * 8, y.end()) == std::vector<double>(28 * 8, 0));
}

TEST_CASE("attention: with more ranks than key heads, queries stay sharded by heads and nothing of them moves") {
  OneRank one;
  const int64_t n = 20;
  for (int64_t kv_heads : {1, 2, 4}) {
    Tensor q = wave({2, 8, n, 4}, 0.37), k = wave({2, kv_heads, n, 4}, 0.73);
    std::vector<double> whole =
        numbers(ops::scaled_dot_product_attention(one(q), one(k), one(k), {.causal = true}).full_tensor());
    launch(4, [&](Rank& rank) {
      DeviceMesh mesh(rank, "tp=4");
      rank.strict = true;
      auto queries = DistributedTensor::distribute(q, mesh, {Shard(1)});
      auto keys = DistributedTensor::distribute(k, mesh, Layout());
      Moved moved(rank);
      auto y = ops::scaled_dot_product_attention(queries, keys, keys, {.causal = true});
      auto [turned, turned_keys] = ops::rotary(ops::transpose(queries, 1, 2), ops::transpose(keys, 1, 2), 100);
      expect(moved.log, "");
      expect(y.layout(), Layout({Shard(1)}));
      expect(turned.layout(), Layout({Shard(2)}));
      expect(numbers(y.full_tensor()), whole);
    });
  }
}
