// From tokens on disk to samples, in an order that depends on nothing but (data, options).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "nn/data/token_source.h"

namespace dtensor::nn {

// The target of what is no next token: padding. No id is it, so a tokenizer whose [PAD] is its end of text still learns
// to end.
inline constexpr int64_t ignored_target = -100;

// How documents become sequences of seq_len inputs and their next tokens.
//   pack   all tokens, one document after the other, cut into windows that overlap by one token
//   pad    a document each: clipped, or filled up with padding
enum class DataMode : uint8_t { pack, pad };

struct DatasetOptions {
  DataMode mode = DataMode::pack;
  int64_t seq_len = 0;
  bool shuffle = false;    // each epoch in an order of its own
  uint64_t seed = 42;      // of these orders
  int64_t pad = 0;         // the id that inputs are filled up with
  int64_t vocab_size = 0;  // larger ids are an error; 0: not checked
};

// A sequence; all spans have seq_len elements.
struct Sample {
  std::span<int64_t> inputs, targets;
  std::span<int64_t> positions;  // in the document
  std::span<int64_t> documents;  // 0 for the first in the sequence, then 1, ...; -1 of padding
};

// Several sources, from which samples are taken in proportion to their weights: of any 4096 samples in a row that begin
// at a multiple of 4096 each source has its share, to one sample. A source that is used up begins again, in the order
// of its next epoch. Sample n of the whole sequence is found from n alone, so any rank can make any sample.
class Dataset {
 public:
  struct Part {
    TokenSource source;
    double weight = 1;
  };
  // Errors: less than one sequence in a source; weights that are not positive, or below 1/4096 of their sum.
  Dataset(std::vector<Part> parts, DatasetOptions options);

  int64_t seq_len() const { return options_.seq_len; }
  const DatasetOptions& options() const { return options_; }
  int64_t samples() const { return samples_; }  // of an epoch: those of all sources
  // The most documents that a sample has, found from where each of them begins.
  int64_t max_documents() const;
  // Sample n >= 0, over all epochs. Errors: a token that is not in the vocabulary, with its place.
  void read(int64_t n, Sample to) const;

  // What a position in the sequence of samples depends on; a checkpoint keeps it beside the number of samples read.
  //     {"samples": 1200, "mode": "pack", "seq_len": 128, "shuffle": true, "seed": 42, "sizes": [..], "weights": [..]}
  nlohmann::ordered_json state(int64_t samples) const;
  // The number of samples that `state` had read. Errors: a state of other data or options.
  int64_t resume(const nlohmann::ordered_json& state) const;

 private:
  struct Place {
    size_t part;
    int64_t index;  // in the part's samples over all its epochs
  };
  Place place(int64_t n) const;
  int64_t samples_of(const TokenSource& source) const;
  void read_packed(const TokenSource& source, int64_t window, Sample to) const;
  void read_padded(const TokenSource& source, int64_t document, Sample to) const;

  std::vector<Part> parts_;
  DatasetOptions options_;
  std::vector<int64_t> sizes_;
  int64_t samples_ = 0;
  std::vector<uint16_t> turns_;  // which part each of 4096 samples is from
  std::vector<uint16_t> ranks_;  // how many before it are from the same
  std::vector<int64_t> shares_;  // of each part
};

}  // namespace dtensor::nn
