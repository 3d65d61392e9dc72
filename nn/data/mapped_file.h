// A file as memory.
#pragma once

#include <cstddef>
#include <string>

namespace dtensor::nn {

class MappedFile {
 public:
  // Errors: a file that cannot be read.
  explicit MappedFile(const std::string& file);
  MappedFile(const MappedFile&) = delete;
  ~MappedFile();
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;  // null of an empty file
  size_t size_ = 0;
};

}  // namespace dtensor::nn
