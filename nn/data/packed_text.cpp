#include "nn/data/packed_text.h"

#include <filesystem>
#include <fstream>
#include <iterator>

namespace dtensor::nn {

PackedText::PackedText(const std::vector<std::string>& files, int64_t seq_len) : seq_len_(seq_len) {
  check(seq_len >= 1, "[data] a sequence length of {}", seq_len);
  for (const std::string& file : files) {
    check(!std::filesystem::is_directory(file), "[data] cannot read {}: it is a folder", file);
    std::ifstream in(file, std::ios::binary);
    check(in.good(), "[data] cannot read {}: no such file, or no permission", file);
    tokens_.push_back(ByteTokenizer::bot);
    for (std::istreambuf_iterator<char> c(in), end; c != end; ++c) tokens_.push_back(uint8_t(*c));
    tokens_.push_back(ByteTokenizer::eot);
  }
  windows_ = tokens_.empty() ? 0 : int64_t(tokens_.size() - 1) / seq_len;
  check(windows_ >= 1,
        "[data] {} tokens are less than one sequence of {} and its target: give more text, or a smaller --seq-len",
        tokens_.size(), seq_len);
}

PackedText::Batch PackedText::batch(const DeviceMesh& mesh, const Layout& layout, int64_t step,
                                    int64_t batch_size) const {
  SpecHandle spec = mesh.intern({DType::i64, {batch_size, seq_len_}, layout});
  Rank& rank = mesh.rank_state();
  Tensor parts[2];
  for (int64_t shift : {0, 1}) {
    auto host = rank.device() == Device::cuda ? std::make_shared<Allocator>() : rank.allocator();
    Tensor& t = parts[shift] = Tensor(host, DType::i64, spec->local_shape);
    int64_t* to = t.data<int64_t>();
    for (int64_t row = spec->box[0].begin; row < spec->box[0].end; ++row) {
      int64_t window = (step * batch_size + row) % windows_;
      const int64_t* from = tokens_.data() + window * seq_len_ + shift;
      to = std::copy(from + spec->box[1].begin, from + spec->box[1].end, to);
    }
    if (rank.device() == Device::cuda) t = t.to(rank.allocator());
  }
  return {DistributedTensor::empty(mesh, spec, parts[0]), DistributedTensor::empty(mesh, spec, parts[1])};
}

PackedText::Batch meta_batch(const DeviceMesh& mesh, const Layout& layout, int64_t batch_size, int64_t seq_len) {
  SpecHandle spec = mesh.intern({DType::i64, {batch_size, seq_len}, layout});
  auto part = [&] {
    Tensor meta(mesh.rank_state().allocator(), DType::i64, spec->local_shape, Device::meta);
    return DistributedTensor::empty(mesh, spec, meta);
  };
  return {part(), part()};
}

}  // namespace dtensor::nn
