#include "nn/models/rope.h"

#include <cmath>
#include <numbers>

namespace dtensor::nn {
namespace {

using Type = RopeConfig::Type;

Type parse_type(const ConfigReader& rope) {
  std::string name = "default";
  rope.text("type", name);  // as transformers wrote it before 4.43
  rope.text("rope_type", name);
  const std::pair<const char*, Type> list[] = {
      {"default", Type::standard}, {"linear", Type::linear},     {"dynamic", Type::dynamic}, {"yarn", Type::yarn},
      {"llama3", Type::llama3},    {"longrope", Type::longrope}, {"su", Type::longrope}};
  for (const auto& [known, type] : list)
    if (name == known) return type;
  fail("[{}] rope_type is \"{}\"; supported are default, linear, dynamic, yarn, llama3, longrope", rope.who(), name);
}

void read_factors(const ConfigReader& rope, const char* key, std::vector<double>& list) {
  check(rope.has(key) && rope[key].is_array(), "[{}] rope_type longrope needs {}, a list of numbers", rope.who(), key);
  for (const auto& v : rope[key]) {
    check(v.is_number() && v.get<double>() > 0, "[{}] {} has {}; it needs numbers above 0", rope.who(), key, v.dump());
    list.push_back(v.get<double>());
  }
}

void read_scaling(const ConfigReader& rope, RopeConfig& c) {
  c.type = parse_type(rope);
  rope.positive("rope_theta", c.theta);
  rope.positive("partial_rotary_factor", c.partial_rotary_factor);
  if (c.type == Type::standard) return;
  bool given = rope.has("factor");
  if (c.type != Type::longrope && c.type != Type::yarn)
    check(given, "[{}] rope_type {} needs a factor", rope.who(),
          rope[rope.has("rope_type") ? "rope_type" : "type"].dump());
  rope.integer("original_max_position_embeddings", c.original_max_position_embeddings);
  c.factor = double(c.max_position_embeddings) / double(c.original_max_position_embeddings);
  rope.number("factor", c.factor);
  check(c.factor >= 1 || !given, "[{}] the factor of rope scaling is {}; it is at least 1", rope.who(), c.factor);
  rope.positive("low_freq_factor", c.low_freq_factor);
  rope.positive("high_freq_factor", c.high_freq_factor);
  check(c.high_freq_factor > c.low_freq_factor, "[{}] high_freq_factor {} is not above low_freq_factor {}", rope.who(),
        c.high_freq_factor, c.low_freq_factor);
  rope.positive("beta_fast", c.beta_fast);
  rope.positive("beta_slow", c.beta_slow);
  if (double a = 1; rope.has("attention_factor")) rope.positive("attention_factor", a), c.attention_factor = a;
  rope.number("mscale", c.mscale);
  rope.number("mscale_all_dim", c.mscale_all_dim);
  rope.flag("truncate", c.truncate);
  if (c.type == Type::longrope)
    read_factors(rope, "short_factor", c.short_factor), read_factors(rope, "long_factor", c.long_factor);
}

// --- Frequencies of `pairs` pairs, before scaling theta^(-i/pairs).

// Low frequencies are divided by the factor, high ones stay, and between it goes smoothly.
double llama3(const RopeConfig& c, double frequency) {
  double length = double(c.original_max_position_embeddings), wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < length / c.high_freq_factor) return frequency;
  if (wavelength > length / c.low_freq_factor) return frequency / c.factor;
  double smooth = (length / wavelength - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor);
  return (1 - smooth) * frequency / c.factor + smooth * frequency;
}

// From the pair that turns beta_fast times over the original length to that which turns beta_slow times, frequencies go
// from what they were to a factor less.
std::vector<double> yarn(const RopeConfig& c, std::vector<double> frequencies) {
  auto dim = double(2 * frequencies.size());
  auto pair_of = [&](double turns) {
    return dim * std::log(double(c.original_max_position_embeddings) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(c.theta));
  };
  double low = pair_of(c.beta_fast), high = pair_of(c.beta_slow);
  if (c.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double less = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / c.factor * less + frequencies[i] * (1 - less);
  }
  return frequencies;
}

double yarn_scale(const RopeConfig& c) {
  auto scale = [&](double m) { return c.factor <= 1 ? 1 : 0.1 * m * std::log(c.factor) + 1; };
  if (c.mscale != 0 && c.mscale_all_dim != 0) return scale(c.mscale) / scale(c.mscale_all_dim);
  return scale(1);
}

double longrope_scale(const RopeConfig& c) {
  return c.factor <= 1 ? 1 : std::sqrt(1 + std::log(c.factor) / std::log(double(c.original_max_position_embeddings)));
}

}  // namespace

RopeConfig RopeConfig::from(const ConfigReader& config, int64_t max_position_embeddings) {
  RopeConfig c;
  c.max_position_embeddings = c.original_max_position_embeddings = max_position_embeddings;
  config.positive("rope_theta", c.theta);
  config.positive("partial_rotary_factor", c.partial_rotary_factor);
  config.integer("original_max_position_embeddings", c.original_max_position_embeddings);
  for (const char* key : {"rope_scaling", "rope_parameters"})
    if (config.has(key)) read_scaling(ConfigReader(config[key], config.who() + ": " + key), c);
  check(c.partial_rotary_factor <= 1, "[{}] partial_rotary_factor is {}; it is at most 1", config.who(),
        c.partial_rotary_factor);
  return c;
}

ops::RotaryAngles RopeConfig::angles(int64_t head_dim, int64_t length) const {
  if (type == Type::standard && partial_rotary_factor == 1) return {.theta = theta};
  int64_t pairs = int64_t(double(head_dim) * partial_rotary_factor) / 2;
  double base = theta;
  if (type == Type::dynamic) {
    double longer = double(std::max(length, max_position_embeddings)) / double(max_position_embeddings);
    base *= std::pow(factor * longer - (factor - 1), double(pairs) / double(pairs - 1));
  }
  ops::RotaryAngles a{.theta = theta};
  for (int64_t i = 0; i < pairs; ++i) a.frequencies.push_back(std::pow(base, -double(i) / double(pairs)));
  if (type == Type::linear)
    for (double& f : a.frequencies) f /= factor;
  if (type == Type::llama3)
    for (double& f : a.frequencies) f = llama3(*this, f);
  if (type == Type::yarn)
    a.frequencies = yarn(*this, a.frequencies), a.scale = attention_factor.value_or(yarn_scale(*this));
  if (type == Type::longrope) {
    const std::vector<double>& by = length > original_max_position_embeddings ? long_factor : short_factor;
    check(int64_t(by.size()) == pairs, "[rope] longrope has {} factors for the {} pairs of a head of {} elements",
          by.size(), pairs, head_dim);
    for (int64_t i = 0; i < pairs; ++i) a.frequencies[size_t(i)] /= by[size_t(i)];
    a.scale = attention_factor.value_or(longrope_scale(*this));
  }
  return a;
}

}  // namespace dtensor::nn
