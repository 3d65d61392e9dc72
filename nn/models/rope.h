// Rotary position embeddings as Hugging Face's configurations describe them, scaling to longer texts included.
#pragma once

#include <optional>

#include "nn/models/config.h"
#include "ops/layer/rotary.h"

namespace dtensor::nn {

// Fields and defaults are those of rope_scaling (transformers 4) and rope_parameters (5).
struct RopeConfig {
  enum class Type : uint8_t { standard, linear, dynamic, yarn, llama3, longrope };
  Type type = Type::standard;
  double theta = 10000;
  double partial_rotary_factor = 1;  // of a head's elements; the rest does not turn
  double factor = 1;
  int64_t max_position_embeddings = 2048, original_max_position_embeddings = 2048;
  double low_freq_factor = 1, high_freq_factor = 4;    // llama3
  double beta_fast = 32, beta_slow = 1;                // yarn
  std::optional<double> attention_factor;              // yarn, longrope; else from the factor
  double mscale = 0, mscale_all_dim = 0;               // yarn
  bool truncate = true;                                // yarn
  std::vector<double> short_factor, long_factor = {};  // longrope: of each pair

  // From a model's config, whose max_position_embeddings is given. Errors: a type that is not known, fields that a type
  // needs, numbers that none can have.
  static RopeConfig from(const ConfigReader& config, int64_t max_position_embeddings);

  // Of heads of `head_dim` elements, for a text of `length` tokens. Sources: Chen et al., "Extending context window"
  // (2023), linear; "NTK-aware scaled RoPE" (2023), dynamic; Peng et al., "YaRN" (2023); Llama 3.1's model card; Ding
  // et al., "LongRoPE" (2024).
  ops::RotaryAngles angles(int64_t head_dim, int64_t length) const;
  // Whether the angles depend on the length.
  bool depends_on_length() const { return type == Type::dynamic || type == Type::longrope; }
};

}  // namespace dtensor::nn
