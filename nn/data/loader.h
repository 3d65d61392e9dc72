// Samples to batches on a mesh.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "dtensor/distributed_tensor.h"
#include "nn/data/dataset.h"

namespace dtensor::nn {

// i64 [rows, seq_len] each; a trainer takes inputs and targets.
struct TokenBatch {
  DistributedTensor inputs, targets;
  DistributedTensor positions, documents;  // of Sample
  operator std::vector<DistributedTensor>() const { return {inputs, targets}; }
};

// Batch k holds samples k * rows, k * rows + 1, ...: the same on every mesh. Each rank reads those of its part of the
// layout only, and a thread of its own reads ahead.
class BatchLoader {
 public:
  // From sample `first` on (Dataset::resume). `data` outlives the loader. Errors: fewer samples than rows, which would
  // repeat rows in a batch.
  BatchLoader(const Dataset& data, const DeviceMesh& mesh, const Layout& layout, int64_t rows, int64_t first = 0,
              int ahead = 2);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;

  // Errors: those of Dataset::read.
  TokenBatch next();
  // The samples read before the next batch, of all ranks: what Dataset::state takes.
  int64_t samples() const { return samples_; }

 private:
  // The rank's part of a batch.
  struct Part {
    std::vector<int64_t> values[4];
    std::exception_ptr error;
  };
  Part read(int64_t first) const;
  void work();

  const Dataset& data_;
  DeviceMesh mesh_;
  SpecHandle spec_;
  int64_t rows_, samples_, to_read_;
  size_t ahead_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Part> ready_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace dtensor::nn
