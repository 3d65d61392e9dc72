#include "nn/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "nn/data/permutation.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

constexpr int64_t turns = 4096;

// Shares of `turns`, in proportion to the weights: rounded down, what is left to the largest remainders.
std::vector<int64_t> shares_of(const std::vector<double>& weights) {
  for (size_t i = 0; i < weights.size(); ++i)
    check(std::isfinite(weights[i]) && weights[i] > 0,
          "[data] weight {} of part {} is no positive number: leave the part out, or give it one", weights[i], i);
  double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> shares;
  std::vector<std::pair<double, size_t>> remainders;
  for (size_t i = 0; i < weights.size(); ++i) {
    double exact = weights[i] / sum * double(turns);
    check(exact >= 1,
          "[data] weight {} of part {} is less than 1/4096 of the sum {}: leave the part out, or give it more",
          weights[i], i, sum);
    shares.push_back(int64_t(exact));
    remainders.emplace_back(double(shares.back()) - exact, i);
  }
  std::sort(remainders.begin(), remainders.end());
  int64_t left = turns - std::accumulate(shares.begin(), shares.end(), int64_t(0));
  for (int64_t k = 0; k < left; ++k) ++shares[remainders[size_t(k) % remainders.size()].second];
  return shares;
}

const char* name(DataMode mode) { return mode == DataMode::pack ? "pack" : "pad"; }

}  // namespace

Dataset::Dataset(std::vector<Part> parts, DatasetOptions options) : parts_(std::move(parts)), options_(options) {
  check(options_.seq_len >= 1, "[data] a sequence length of {}", options_.seq_len);
  check(!parts_.empty(), "[data] there is no data: give files");
  std::vector<double> weights;
  for (const Part& p : parts_) {
    std::string which = parts_.size() > 1 ? fmt::format(" of part {}", sizes_.size()) : "";
    weights.push_back(p.weight);
    sizes_.push_back(samples_of(p.source));
    samples_ += sizes_.back();
    check(sizes_.back() >= 1,
          "[data] {} tokens{} are less than one sequence of {} and its target: give more text, or a smaller --seq-len",
          p.source.tokens(), which, options_.seq_len);
  }
  shares_ = shares_of(weights);
  // Each turn goes to the part that is most behind its share.
  std::vector<int64_t> given(parts_.size());
  for (int64_t turn = 0; turn < turns; ++turn) {
    size_t next = 0;
    auto behind = [&](size_t i) { return shares_[i] * (turn + 1) - given[i] * turns; };
    for (size_t i = 1; i < parts_.size(); ++i)
      if (behind(i) > behind(next)) next = i;
    turns_.push_back(uint16_t(next));
    ranks_.push_back(uint16_t(given[next]++));
  }
}

int64_t Dataset::samples_of(const TokenSource& source) const {
  if (options_.mode == DataMode::pad) return source.documents();
  return source.tokens() == 0 ? 0 : (source.tokens() - 1) / options_.seq_len;
}

Dataset::Place Dataset::place(int64_t n) const {
  if (parts_.size() == 1) return {0, n};
  int64_t round = n / turns;
  auto turn = size_t(n % turns);
  size_t part = turns_[turn];
  return {part, round * shares_[part] + ranks_[turn]};
}

void Dataset::read(int64_t n, Sample to) const {
  auto [part, index] = place(n);
  int64_t size = sizes_[part], epoch = index / size, i = index % size;
  if (options_.shuffle) i = Permutation(size, options_.seed + part, epoch)(i);
  const TokenSource& source = parts_[part].source;
  options_.mode == DataMode::pack ? read_packed(source, i, to) : read_padded(source, i, to);
  if (options_.vocab_size == 0) return;
  for (auto ids : {to.inputs, to.targets})
    for (int64_t id : ids)
      check(id < options_.vocab_size,
            "[data] token {} in sample {} is outside of the vocabulary of {}: another tokenizer made the data", id, n,
            options_.vocab_size);
}

int64_t Dataset::max_documents() const {
  if (options_.mode == DataMode::pad) return 1;
  int64_t most = 0;
  for (size_t part = 0; part < parts_.size(); ++part) {
    const TokenSource& source = parts_[part].source;
    int64_t window = -1, count = 0;  // a window that documents begin in, and how many it has
    for (int64_t d = 0; d < source.documents(); ++d) {
      const int64_t begin = source.document_begin(d), at = begin / options_.seq_len;
      if (at >= sizes_[part]) break;
      if (begin == source.document_begin(d + 1)) continue;  // it has no tokens
      if (at != window) window = at, count = begin % options_.seq_len ? 1 : 0;
      most = std::max(most, ++count);
    }
  }
  return most;
}

void Dataset::read_packed(const TokenSource& source, int64_t window, Sample to) const {
  int64_t s = options_.seq_len, begin = window * s;
  source.read(begin, to.inputs);
  source.read(begin + 1, to.targets);
  int64_t document = source.document_of(begin), first = source.document_begin(document),
          next = source.document_begin(document + 1);
  int64_t number = 0;
  for (int64_t i = 0; i < s; ++i) {
    while (begin + i >= next) {  // also over documents without tokens
      if (first != next) ++number;
      first = next, next = source.document_begin(++document + 1);
      if (first == next) continue;
    }
    to.positions[size_t(i)] = begin + i - first;
    to.documents[size_t(i)] = number;
  }
}

void Dataset::read_padded(const TokenSource& source, int64_t document, Sample to) const {
  int64_t s = options_.seq_len, begin = source.document_begin(document);
  int64_t size = std::min(s + 1, source.document_begin(document + 1) - begin), inputs = std::min(size, s);
  source.read(begin, to.inputs.first(size_t(inputs)));
  if (size > 1) source.read(begin + 1, to.targets.first(size_t(size - 1)));
  for (int64_t i = 0; i < s; ++i) {
    to.positions[size_t(i)] = i;
    to.documents[size_t(i)] = i < inputs ? 0 : -1;
    if (i >= inputs) to.inputs[size_t(i)] = options_.pad;
    if (i >= size - 1) to.targets[size_t(i)] = ignored_target;
  }
}

nlohmann::ordered_json Dataset::state(int64_t samples) const {
  std::vector<double> weights;
  for (const Part& p : parts_) weights.push_back(p.weight);
  return {{"samples", samples},          {"mode", name(options_.mode)}, {"seq_len", options_.seq_len},
          {"shuffle", options_.shuffle}, {"seed", options_.seed},       {"sizes", sizes_},
          {"weights", weights}};
}

int64_t Dataset::resume(const nlohmann::ordered_json& saved) const {
  check(saved.is_object() && saved.contains("samples") && saved["samples"].is_number_integer() && saved["samples"] >= 0,
        "[data] a position has no \"samples\"");
  auto samples = saved["samples"].get<int64_t>();
  nlohmann::ordered_json here = state(samples);
  for (const auto& [key, value] : here.items()) {
    auto then = saved.find(key);
    if (then == saved.end() || *then != value)
      fail("[data] the position is of other data: \"{}\" was {}, and is {} here", key,
           then == saved.end() ? "absent" : then->dump(), value.dump());
  }
  return samples;
}

}  // namespace dtensor::nn
