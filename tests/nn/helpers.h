// What the tests of nn share. Catch's assertions are for one thread: ranks return what they find, or throw by check(),
// and the test compares when launch() has returned.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dtensor/comm_log.h"
#include "dtensor/launch.h"
#include "dtensor/redistribute.h"
#include "nn/train/causal_lm.h"
#include "nn/train/gradients.h"
#include "tests/autograd.h"
#include "tests/errors.h"
#include "tests/folder.h"

namespace dtensor::testing {

using Catch::Contains;
using Catch::EndsWith;
using Catch::StartsWith;
using Entries = std::vector<CommLog::Entry>;

inline nlohmann::ordered_json json(std::string_view text) { return nlohmann::ordered_json::parse(text); }

// f(mesh) on every rank of "dp=2,tp=2"; what it returns, by rank.
template <class F>
auto on_mesh(const std::string& mesh, F f) {
  MeshShape shape = MeshShape::parse(mesh);
  using Result = std::invoke_result_t<F, const DeviceMesh&>;
  auto options = LaunchOptions{.deadline = std::chrono::minutes(1), .threads = 1};
  if constexpr (std::is_void_v<Result>) {
    launch(
        shape.world(), [&](Rank& rank) { f(DeviceMesh(rank, shape)); }, options);
  } else {
    std::vector<Result> results(size_t(shape.world()));
    launch(
        shape.world(), [&](Rank& rank) { results[size_t(rank.rank())] = f(DeviceMesh(rank, shape)); }, options);
    return results;
  }
}

// Numbers that repeat nowhere, between -1 and 1.
inline std::vector<double> numbers(int64_t n, int seed) {
  std::vector<double> v;
  for (int64_t i = 0; i < n; ++i) v.push_back(std::sin(1.0 + 2.3 * double(i) + 0.37 * seed));
  return v;
}
inline Tensor f64(const Shape& shape, int seed) { return Tensor::of<double>(shape, numbers(numel(shape), seed)); }
inline Tensor f32(const Shape& shape, int seed) {
  auto v = numbers(numel(shape), seed);
  return Tensor::of<float>(shape, std::vector<float>(v.begin(), v.end()));
}

inline std::vector<double> values(const Tensor& t) {
  Tensor c = t.contiguous();
  std::vector<double> v;
  for (int64_t i = 0; i < c.numel(); ++i) v.push_back(element(c, i));
  return v;
}

// The largest difference, relative to the largest value.
inline double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double most = 0, scale = 1e-300;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::isnan(a[i]) || std::isnan(b[i]) ? std::numeric_limits<double>::infinity()
                                                : std::max(most, std::abs(a[i] - b[i]));
    scale = std::max({scale, std::abs(a[i]), std::abs(b[i])});
  }
  return most / scale;
}

inline bool below(const std::string& module, const std::string& path) {
  return path.empty() || module == path || module.starts_with(path + ".");
}

// "all_gather 2, reduce_scatter 2": the collectives of one phase in one module and below it.
inline std::string counts(const Entries& entries, Phase phase, const std::string& module = "") {
  Entries some;
  for (const auto& e : entries)
    if (e.phase == phase && below(e.module, module)) some.push_back(e);
  std::string text;
  for (const auto& [kind, n] : count_by_kind(some)) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", kind, n);
  return text;
}

inline std::string listing(const Entries& entries) {
  std::string text;
  for (const auto& e : entries) text += to_string(e) + "\n";
  return text;
}

// A module for others to be in.
struct Root : nn::Module {
  using Module::Module;
  std::string_view kind() const override { return "Root"; }
};

// Text with something to learn in it.
inline std::string some_text(int64_t bytes) {
  const char* words[] = {"sum ", "shard ", "of ", "the ", "mesh ", "part ", "rank ", "gather.\n"};
  std::string text;
  for (uint32_t i = 1; int64_t(text.size()) < bytes; i = i * 1664525u + 1013904223u) text += words[i >> 29];
  return text;
}

// A Llama of the shape of the real ones, small. Bytes as tokens; 259 classes do not divide over 2 or 4 ranks.
inline nn::LlamaConfig small_llama(int64_t kv_heads = 4, int64_t vocabulary = 259) {
  nn::LlamaConfig c;
  c.vocab_size = vocabulary, c.hidden_size = 32, c.intermediate_size = 64, c.num_hidden_layers = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = kv_heads, c.head_dim = 8;
  c.rms_norm_eps = 1e-5;
  return c;
}

inline std::string plan_file(const std::string& name) {
  return std::string(DTENSOR_SOURCE_DIR) + "/examples/plans/" + name;
}

// The family that a shipped plan is for: "gpt2_tp.json" is for gpt2; most are for Llamas.
inline std::string model_of_plan(const std::string& file) {
  for (const char* family : {"gpt2", "gpt", "phi3", "bert", "gla"})
    if (file.starts_with(std::string(family) + "_")) return family;
  return "llama";
}

// Two linear layers.
struct Mlp : nn::Callable<DistributedTensor(const DistributedTensor&)> {
  explicit Mlp(const DeviceMesh& mesh, bool bias = false)
      : Callable(mesh), up(*this, "up", 6, 8, bias, 0.5), down(*this, "down", 8, 6, bias, 0.5) {
    input_names = {"x"};
  }
  std::string_view kind() const override { return "Mlp"; }
  DistributedTensor forward(const DistributedTensor& x) override { return down(ops::gelu(up(x))); }
  nn::Linear up, down;
};

}  // namespace dtensor::testing
