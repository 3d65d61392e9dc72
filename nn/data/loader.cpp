#include "nn/data/loader.h"

#include <algorithm>

namespace dtensor::nn {

BatchLoader::BatchLoader(const Dataset& data, const DeviceMesh& mesh, const Layout& layout, int64_t rows, int64_t first,
                         int ahead)
    : data_(data),
      mesh_(mesh),
      spec_(mesh.intern({DType::i64, {rows, data.seq_len()}, layout})),
      rows_(rows),
      samples_(first),
      to_read_(first),
      ahead_(size_t(ahead)) {
  check(data.samples() >= rows,
        "[data] {} sequences of {} tokens are fewer than the {} rows of a batch, which would have some twice: give "
        "more text, a "
        "smaller --batch-size or a smaller --seq-len",
        data.samples(), data.seq_len(), rows);
  thread_ = std::thread([this] { work(); });
}

BatchLoader::~BatchLoader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

BatchLoader::Part BatchLoader::read(int64_t first) const {
  Part part;
  auto s = size_t(data_.seq_len());
  std::vector<int64_t> whole[4];
  for (auto& w : whole) w.resize(s);
  auto columns = spec_->box[1];
  for (int64_t row = spec_->box[0].begin; row < spec_->box[0].end; ++row) {
    data_.read(first + row, {whole[0], whole[1], whole[2], whole[3]});
    for (size_t k = 0; k < 4; ++k)
      part.values[k].insert(part.values[k].end(), whole[k].begin() + columns.begin, whole[k].begin() + columns.end);
  }
  return part;
}

void BatchLoader::work() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || ready_.size() < ahead_; });
      if (stop_) return;
    }
    Part part;
    try {
      part = read(to_read_);
    } catch (...) {
      part.error = std::current_exception();
    }
    to_read_ += rows_;
    bool failed = part.error != nullptr;
    {
      std::lock_guard lock(mutex_);
      ready_.push_back(std::move(part));
    }
    changed_.notify_all();
    if (failed) return;
  }
}

TokenBatch BatchLoader::next() {
  Part part;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty(); });
    if (ready_.front().error) std::rethrow_exception(ready_.front().error);  // and again, if it is asked again
    part = std::move(ready_.front());
    ready_.pop_front();
  }
  changed_.notify_all();
  samples_ += rows_;
  Rank& rank = mesh_.rank_state();
  bool cuda = rank.device() == Device::cuda;
  auto tensor = [&](const std::vector<int64_t>& values) {
    Tensor t(cuda ? std::make_shared<Allocator>() : rank.allocator(), DType::i64, spec_->local_shape);
    std::copy(values.begin(), values.end(), t.data<int64_t>());
    return DistributedTensor::empty(mesh_, spec_, cuda ? t.to(rank.allocator()) : t);
  };
  return {tensor(part.values[0]), tensor(part.values[1]), tensor(part.values[2]), tensor(part.values[3])};
}

}  // namespace dtensor::nn
