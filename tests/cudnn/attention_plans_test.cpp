// Attention's plans, checked by cuDNN itself for an H200 without having one.
//
// h200.json describes the device as CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION would. It was written by hand from public
// properties; one that was read off a device should take its place.
#include <dlfcn.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <sstream>

#include "ops/cuda/attention_backend.h"
#include "placement/error.h"

using namespace dtensor;
using namespace dtensor::cuda;
using Catch::Contains;

namespace {

constexpr AttentionPass forward = AttentionPass::forward, backward = AttentionPass::backward;

// cuDNN looks for libcuda.so.1. Where there is no driver, the toolkit's stub, which has that name, is it.
std::string h200() {
  static void* driver = [] {
    void* real = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    return real ? real : dlopen(CUDA_DRIVER_STUB, RTLD_NOW | RTLD_GLOBAL);
  }();
  if (!driver) FAIL("neither a driver nor the stub " CUDA_DRIVER_STUB " can be loaded");
  std::ifstream file(DTENSOR_SOURCE_DIR "/tests/cudnn/h200.json");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The library's plan of a call; skips nothing: where CUDA is built for these tests, cuDNN is there, or the test says
// so.
int64_t engine_of(const CudnnAttention& call, const std::string& device) {
  static const cudnn::Api api = cudnn::load();
  return cudnn_engines(api, call, device)[0].engine;
}

// q, k and v as one product of the three leaves them: [batch, sequence, heads + 2 kv_heads, head_dim]; or one by one.
CudnnAttention make_call(int64_t heads, int64_t kv_heads, int64_t queries, int64_t keys, int64_t head_dim,
                         bool packed = false) {
  CudnnAttention call;
  AttentionShape& s = call.shape;
  s = {.dtype = DType::bf16,
       .batch = 2,
       .heads = heads,
       .kv_heads = kv_heads,
       .queries = queries,
       .keys = keys,
       .head_dim = head_dim};
  auto strides = [&](int64_t sequence, int64_t of_heads) {
    return AttentionStrides{sequence * of_heads * head_dim, of_heads * head_dim, head_dim};
  };
  s.out = s.dout = s.dq = s.q = strides(queries, heads);
  s.dk = s.dv = s.k = s.v = strides(keys, kv_heads);
  if (packed) s.q = s.k = s.v = strides(keys, heads + 2 * kv_heads);
  return call;
}

std::string to_string(const CudnnAttention& call) {
  const AttentionShape& s = call.shape;
  return fmt::format("{}{} heads {}/{} of {}, {} queries, {} keys{}{}{}, strides {}",
                     call.pass == forward ? "forward" : "backward", call.deterministic ? "" : " in any order", s.heads,
                     s.kv_heads, s.head_dim, s.queries, s.keys,
                     s.causal ? fmt::format(", causal from {}", s.diagonal) : "",
                     s.window ? fmt::format(" in a window of {}", s.window) : "",
                     call.tokens   ? fmt::format(", {} runs of {} tokens", s.batch, call.tokens)
                     : call.padded ? ", padded"
                                   : "",
                     s.q.sequence);
}

void check_accepted(const CudnnAttention& call) {
  INFO(to_string(call));
  CHECK(attention_backend(call, {}, {}, {}).reason == "");
  CHECK_NOTHROW(engine_of(call, h200()));
}

// All combinations, or each `every`-th of them.
void check_combinations(int every) {
  int count = 0;
  for (int pass = 0; pass < 3; ++pass)
    for (int64_t head_dim : {32, 64, 96, 128, 256})
      for (int64_t kv_heads : {2, 8})
        for (int64_t sequence : {77, 128, 1024, 4096})
          for (int options = 0; options < 8; ++options) {
            if (count++ % every) continue;
            CudnnAttention call = make_call(8, kv_heads, sequence, sequence, head_dim, options & 1);
            call.shape.causal = options & 2, call.padded = options & 4;
            call.pass = pass == 0 ? forward : backward, call.deterministic = pass != 2;
            check_accepted(call);
          }
}

}  // namespace

TEST_CASE("cuDNN accepts attention for an H200: heads, lengths, masks, layouts, passes") { check_combinations(61); }
TEST_CASE("cuDNN accepts attention for an H200: all combinations", "[nightly]") { check_combinations(1); }

TEST_CASE("cuDNN accepts attention for an H200: queries and keys of different lengths") {
  struct Case {
    int64_t queries, keys;
    bool causal;
    int64_t diagonal;
  };
  for (Case t : {Case{256, 1024, true, 768},
                 {77, 200, true, 123},
                 {200, 77, true, 0},
                 {1, 128, true, 127},
                 {1, 1, true, 0},
                 {13, 1, false, 0},
                 {100, 1000, false, 0}})
    for (AttentionPass pass : {forward, backward}) {
      CudnnAttention call = make_call(6, 3, t.queries, t.keys, 40);
      call.pass = pass, call.shape.causal = t.causal, call.shape.diagonal = t.diagonal;
      check_accepted(call);
    }
}

TEST_CASE("a proposal of cuDNN's heuristics is made again by its number") {
  static const cudnn::Api api = cudnn::load();
  CudnnAttention call = make_call(16, 4, 4096, 4096, 128);
  call.shape.causal = true;
  for (AttentionPass pass : {forward, backward}) {
    call.pass = pass;
    std::vector<CudnnEngine> all = cudnn_engines(api, call, h200());
    REQUIRE(!all.empty());
    for (size_t i = 0; i < all.size(); ++i) {
      INFO("proposal " << all[i].proposal << ", engine " << all[i].engine);
      CHECK((i == 0 || all[i].proposal > all[i - 1].proposal));
      std::vector<CudnnEngine> one = cudnn_engines(api, call, h200(), all[i].proposal);
      CHECK((one.size() == 1 && one[0].proposal == all[i].proposal && one[0].engine == all[i].engine));
    }
    CHECK_THROWS_WITH(cudnn_engines(api, call, h200(), 1000), Contains("[cudnn] no engine takes this graph"));
  }
}

namespace {

void check_windows(int every) {
  int count = 0;
  for (int pass = 0; pass < 3; ++pass)
    for (int64_t head_dim : {64, 128})
      for (int64_t window : {1, 33, 4096})
        for (int form = 0; form < 3; ++form) {  // whole, padded, the last queries of more keys
          if (count++ % every) continue;
          CudnnAttention call = form < 2 ? make_call(8, 2, 1000, 1000, head_dim) : make_call(8, 2, 128, 1024, head_dim);
          call.pass = pass == 0 ? forward : backward, call.deterministic = pass != 2, call.padded = form == 1;
          call.shape.causal = true, call.shape.window = window, call.shape.diagonal = form == 2 ? 1024 - 128 : 0;
          check_accepted(call);
        }
}

}  // namespace

TEST_CASE("cuDNN accepts attention for an H200: windows") { check_windows(5); }
TEST_CASE("cuDNN accepts attention for an H200: all windows", "[nightly]") { check_windows(1); }

namespace {

// Documents: runs of tokens, 5 in each of two rows.
CudnnAttention runs_of(CudnnAttention call) {
  AttentionShape& s = call.shape;
  s.batch = 10, call.padded = true, call.tokens = 2 * s.queries;
  return call;
}

// All combinations, or each `every`-th of them.
void check_runs(int every) {
  int count = 0;
  for (int pass = 0; pass < 3; ++pass)
    for (int64_t head_dim : {32, 64, 80, 96, 128, 256})
      for (int64_t kv_heads : {1, 2, 8})
        for (int64_t sequence : {77, 128, 1024, 8192})
          for (bool packed : {false, true})
            for (int64_t window : {-1, 0, 100}) {  // -1: not causal
              if (count++ % every) continue;
              CudnnAttention call = runs_of(make_call(8, kv_heads, sequence, sequence, head_dim, packed));
              call.shape.causal = window >= 0, call.shape.window = std::max<int64_t>(window, 0);
              call.pass = pass == 0 ? forward : backward, call.deterministic = pass != 2;
              check_accepted(call);
            }
}

}  // namespace

TEST_CASE("cuDNN accepts documents for an H200: heads, masks, layouts, passes") { check_runs(61); }
TEST_CASE("cuDNN accepts documents for an H200: all combinations", "[nightly]") { check_runs(1); }

TEST_CASE("what cuDNN does not take goes to the library's own kernels, and says why") {
  struct Case {
    const char* reason;
    void (*change)(CudnnAttention& call, AttentionScores& scores, AttentionPointers& pointers, AttentionDevice& device);
  };
  const Case cases[] = {
      {"", [](auto&, auto&, auto&, auto&) {}},
      {"compute capability 9, not 8", [](auto&, auto&, auto&, auto& device) { device.capability = 8; }},
      {"[cudnn] libcudnn.so.9 was not found",
       [](auto&, auto&, auto&, auto& device) { device.no_cudnn = "[cudnn] libcudnn.so.9 was not found"; }},
      {"not given masks", [](auto&, auto& scores, auto&, auto&) { scores.bias = &scores; }},
      {"not given masks",
       [](auto&, auto& scores, auto&, auto&) {
         static const bool visible = true;
         scores.visible = &visible;
       }},
      {"dropout's numbers",
       [](auto&, auto& scores, auto&, auto&) {
         static const int64_t step = 1;
         scores.drop_step = &step;
       }},
      {"not given positions",
       [](auto&, auto& scores, auto&, auto&) {
         static const int64_t position = 1;
         scores.key_positions = &position;
       }},
      {"documents of whole sequences, of which it is said how many are in each: max_documents",
       [](auto&, auto& scores, auto&, auto&) {
         static const int64_t document = 1;
         scores.query_documents = scores.key_documents = &document;
       }},
      {"documents, or lengths of keys",
       [](auto& call, auto& scores, auto&, auto&) {
         static const int64_t length = 1;
         call = runs_of(call), scores.key_lengths = &length;
       }},
      {"", [](auto& call, auto&, auto&, auto&) { call = runs_of(call), call.shape.head_dim = 40; }},
      {"heads of a multiple of 16 elements, not 40",
       [](auto& call, auto&, auto&, auto&) { call = runs_of(call), call.pass = backward, call.shape.head_dim = 40; }},
      {"at most 65535 documents, not 65536",
       [](auto& call, auto&, auto&, auto&) { call = runs_of(call), call.shape.batch = 65536; }},
      {"token follows token, not with strides 131072, 512 and 64",
       [](auto& call, auto&, auto&, auto&) { call = runs_of(call), call.shape.q.batch *= 2; }},
      {"token follows token, not with strides 8192, 64 and 1024",
       [](auto& call, auto&, auto&, auto&) {
         call = runs_of(call), call.shape.k = {8192, 64, 1024};
       }},
      {"at most 17179869184: the scores of one document have gradients of 17314349056 bytes",
       [](auto& call, auto&, auto&, auto&) {
         call = runs_of(make_call(32, 8, 16448, 16448, 64)), call.pass = backward;
       }},
      {"bf16, not f32", [](auto& call, auto&, auto&, auto&) { call.shape.dtype = DType::f32; }},
      {"nothing is to be computed", [](auto& call, auto&, auto&, auto&) { call.shape.keys = 0; }},
      {"a multiple of 8, not 7", [](auto& call, auto&, auto&, auto&) { call.shape.head_dim = 7; }},
      {"multiples of 8, not 16384, 4 and 64", [](auto& call, auto&, auto&, auto&) { call.shape.k.sequence = 4; }},
      {"multiples of 8, not 65536, 0 and 64", [](auto& call, auto&, auto&, auto&) { call.shape.q.sequence = 0; }},
      {"128 queries from 100 on and 128 keys",
       [](auto& call, auto&, auto&, auto&) { call.shape.causal = true, call.shape.diagonal = 100; }},
      {"128 queries from 128 on and 256 keys",
       [](auto& call, auto&, auto&, auto&) {
         call.shape.causal = call.padded = true, call.shape.keys = 256, call.shape.diagonal = 128;
       }},
      {"at most 17179869184: the scores of one key head have gradients of 34359738368 bytes",
       [](auto& call, auto&, auto&, auto&) { call.pass = backward, call.shape.queries = call.shape.keys = 65536; }},
      {"multiples of 16 bytes",
       [](auto&, auto&, auto& pointers, auto&) { pointers.v = reinterpret_cast<const char*>(8); }},
  };
  for (const Case& t : cases) {
    CudnnAttention call = make_call(8, 2, 128, 128, 64);
    AttentionScores scores;
    AttentionPointers pointers{};
    AttentionDevice device;
    t.change(call, scores, pointers, device);
    AttentionBackend backend = attention_backend(call, scores, pointers, device);
    INFO(t.reason);
    CHECK(backend.name == (*t.reason ? "own" : "cudnn"));
    CHECK_THAT(backend.reason, Contains(t.reason));
  }
  CHECK_THROWS_WITH(attention_backend(make_call(8, 2, 128, 128, 264), {}, {}, {}),
                    Contains("[attention] heads of 264 elements: on CUDA they may have at most 256"));
}

TEST_CASE("the deterministic backward pass is run in parts") {
  struct Case {
    int64_t batch, heads, kv_heads, sequence, wanted_bytes, most_bytes;
    AttentionPart part;
  };
  const int64_t gib = 1 << 30;
  for (Case t : {Case{4, 32, 8, 4096, 8 * gib, 8 * gib, {4, 8}},  // 4 GiB
                 {4, 32, 8, 4096, 2 * gib, 8 * gib, {2, 8}},
                 {4, 32, 8, 4096, gib, 8 * gib, {1, 8}},
                 {4, 32, 8, 4096, gib / 2, 8 * gib, {1, 4}},
                 {4, 32, 8, 4096, gib / 8, gib / 8, {1, 1}},
                 {4, 32, 8, 4096, 1, gib / 8, {1, 1}},
                 {4, 32, 8, 4096, 1, gib / 8 - 1, {0, 0}},
                 {5, 3, 3, 64, 4 * 3 * 8192, gib, {4, 3}},
                 {5, 3, 3, 64, 3 * 3 * 8192, gib, {3, 3}},
                 {5, 3, 3, 63, 4 * 3 * 8192, gib, {4, 3}},
                 {5, 3, 3, 63, 3 * 3 * 8192, gib, {0, 0}}}) {  // 1 to 3 would not begin at 16 bytes
    CudnnAttention call = make_call(t.heads, t.kv_heads, t.sequence, t.sequence, 128);
    call.shape.batch = t.batch, call.pass = backward;
    INFO(t.batch << " " << t.heads << " " << t.sequence << " " << t.wanted_bytes);
    CHECK(attention_part(call, t.wanted_bytes, t.most_bytes) == t.part);
    call.pass = forward;
    CHECK(attention_part(call, t.wanted_bytes, t.most_bytes) == AttentionPart{t.batch, t.kv_heads});
    call.pass = backward, call.deterministic = false;
    CHECK(attention_part(call, t.wanted_bytes, t.most_bytes) == AttentionPart{t.batch, t.kv_heads});
  }
  CudnnAttention runs = runs_of(make_call(3, 3, 64, 64, 128));  // of documents, anywhere
  runs.pass = backward;
  const int64_t one = 3 * 64 * 64 * 2;
  CHECK(attention_part(runs, 20 * one, gib) == AttentionPart{10, 3});
  CHECK(attention_part(runs, 4 * one - 1, gib) == AttentionPart{3, 3});
  CHECK(attention_part(runs, 1, one) == AttentionPart{1, 3});
  CHECK(attention_part(runs, 1, one - 1) == AttentionPart{0, 0});
  runs.deterministic = false;
  CHECK(attention_part(runs, 1, 1) == AttentionPart{10, 3});
}

TEST_CASE("keys that no query sees are left out") {
  CudnnAttention call = make_call(8, 2, 128, 1024, 64);
  CHECK(without_unseen_keys(call.shape).keys == 1024);
  call.shape.causal = true;
  CHECK(without_unseen_keys(call.shape).keys == 128);
  call.shape.diagonal = 256;
  CHECK(without_unseen_keys(call.shape).keys == 384);
  call.shape.diagonal = 1000;
  CHECK(without_unseen_keys(call.shape).keys == 1024);
}

TEST_CASE("what cuDNN says no to is an error") {
  CHECK_THROWS_WITH(engine_of(make_call(8, 2, 128, 128, 7), h200()), Contains("[cudnn] no engine takes this graph"));
  CHECK_THROWS_WITH(engine_of(make_call(8, 2, 128, 128, 64), "{}"), Contains("[cudnn] cudnnBackend"));
  if (device_count() == 0)
    CHECK_THROWS_WITH(Cudnn(std::make_shared<Allocator>(), cudnn::load()), Contains("[cudnn] cudnnCreate: "));
}
