// The checkpoints of a training run: a folder per step, of which some are kept.
#pragma once

#include "nn/checkpoint/checkpoint.h"

namespace dtensor::nn {

// The steps of the whole checkpoints in a folder, "step-00000100", least first; none where there is no folder.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& folder);
std::filesystem::path checkpoint_of_step(const std::filesystem::path& folder, int64_t step);

// All ranks of a mesh make one and call its functions together.
class CheckpointFolder {
 public:
  // The last `keep` of them are kept, and the best besides; 0: all.
  CheckpointFolder(const DeviceMesh& mesh, std::filesystem::path folder, int64_t keep);

  // The newest one that is sound: whole, and every byte as it was written. Those that are not are told to `damaged`, on
  // rank 0, and passed over. Errors: there are some, but none is sound.
  std::optional<Checkpoint> newest_sound(const std::function<void(const std::string&)>& damaged) const;

  // Begins to write that of a step, as CheckpointWriter::begin. The one with the least `score`, as of an evaluation, is
  // the best.
  void begin(int64_t step, CheckpointItems items, std::optional<double> score = {});
  struct Written : CheckpointWriter::Written {
    int64_t step;
  };
  // As CheckpointWriter::wait.
  std::optional<Written> wait();
  bool is_done() const { return writer_.is_done(); }

 private:
  DeviceMesh mesh_;
  std::filesystem::path folder_;
  CheckpointWriter writer_;
  int64_t step_ = 0;  // of the one begun last
};

}  // namespace dtensor::nn
