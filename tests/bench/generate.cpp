// generate [TOKENS]: tokens per second of a Llama with a cache and without, and whether a token's time is flat.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "nn/generate/generate.h"
#include "nn/models/config.h"

using namespace dtensor;

namespace {

// The time of each token, from the start.
std::vector<double> seconds_of(nn::CausalLM& model, size_t rows, int64_t tokens, bool cache) {
  std::vector<double> times;
  auto begin = std::chrono::steady_clock::now();
  nn::generate(model, std::vector<std::vector<int32_t>>(rows, {1, 2, 3, 4}),
               {.max_new_tokens = tokens, .cache = cache, .on_token = [&](size_t row, int32_t) {
                  std::chrono::duration<double> now = std::chrono::steady_clock::now() - begin;
                  if (row == rows - 1) times.push_back(now.count());
                }});
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  int64_t tokens = argc > 1 ? std::atoll(argv[1]) : 2000;
  auto rank = Rank::single();
  auto model = nn::ModelConfig::from_json({{"vocab_size", 4096},
                                           {"hidden_size", 256},
                                           {"intermediate_size", 768},
                                           {"num_hidden_layers", 4},
                                           {"num_attention_heads", 8},
                                           {"num_key_value_heads", 2},
                                           {"max_position_embeddings", tokens + 4}})
                   .make(DeviceMesh(*rank, "dp=1"));
  nn::materialize(*model, 1);
  fmt::print("| prompts | new tokens | tokens/s with cache | without |\n|---|---|---|---|\n");
  for (size_t rows : {1, 4})
    for (int64_t n : {32, 128, 256}) {
      double with = seconds_of(*model, rows, n, true).back(), without = seconds_of(*model, rows, n, false).back();
      fmt::print("| {} | {} | {:.0f} | {:.0f} |\n", rows, n, double(rows) * double(n) / with,
                 double(rows) * double(n) / without);
    }
  std::vector<double> t = seconds_of(*model, 1, tokens, true);
  fmt::print("\nms per token, one prompt:");
  size_t part = t.size() / 8;
  for (size_t i = 0; part && i < 8; ++i)
    fmt::print(" {:.2f}", (t[(i + 1) * part - 1] - t[i ? i * part - 1 : 0]) / double(i ? part : part - 1) * 1e3);
  fmt::print(" (each of {} tokens)\n", part);
}
