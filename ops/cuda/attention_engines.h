// Which of cuDNN's engines computes each kind of attention call: chosen by time, and kept in a file.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ops/cuda/cudnn_attention.h"

namespace dtensor::cuda {

class AttentionEngines {
 public:
  // `version`: of cuDNN, whose proposals mean nothing to another.
  explicit AttentionEngines(size_t version) : version_(version) {}

  // The number of the heuristics' proposal; none: the first that accepts the call.
  std::optional<int64_t> chosen(const CudnnAttention& call) const;

  // An engine that accepts a call.
  struct Candidate {
    int64_t proposal, engine;
    std::function<void(const AttentionPointers&, const AttentionLengths&)> run;
  };
  // Runs each on random operands, and chooses the fastest, whose index is returned; a line about it is added to
  // `found`.
  size_t choose(const CudnnAttention& call, const std::vector<Candidate>& list,
                const std::shared_ptr<Allocator>& allocator, std::vector<std::string>& found);

  // Cudnn has the contracts.
  void save(const std::string& path) const;
  void load(const std::string& path);

 private:
  using Key = std::array<int64_t, 40>;  // all of a CudnnAttention
  static Key key_of(const CudnnAttention& call);

  size_t version_;
  std::map<Key, int64_t> proposals_;
};

}  // namespace dtensor::cuda
