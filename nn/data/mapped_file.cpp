#include "nn/data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "placement/error.h"

namespace dtensor::nn {

MappedFile::MappedFile(const std::string& file) {
  int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, "[data] cannot read {}: no such file, or no permission", file);
  struct stat status {};
  void* at = MAP_FAILED;
  bool is_file = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  size_ = is_file ? size_t(status.st_size) : 0;
  if (size_ > 0) at = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  int error = errno;
  close(fd);
  check(is_file, "[data] cannot read {}: it is no file", file);
  check(size_ == 0 || at != MAP_FAILED, "[data] cannot read {}: {}", file, std::strerror(error));
  if (size_ > 0) data_ = static_cast<const std::byte*>(at);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace dtensor::nn
