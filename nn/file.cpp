#include "nn/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "placement/error.h"

namespace dtensor::nn {
namespace fs = std::filesystem;
namespace {

// Closes what open() gave.
struct Descriptor {
  int file;
  ~Descriptor() {
    if (file >= 0) ::close(file);
  }
};

std::string reason() { return std::strerror(errno); }

}  // namespace

MappedFile::MappedFile(const fs::path& path, std::string_view who) : path_(path) {
  Descriptor d{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat status {};
  if (d.file < 0 || fstat(d.file, &status) != 0) fail("[{}] cannot read {}: {}", who, path.string(), reason());
  check(S_ISREG(status.st_mode), "[{}] cannot read {}: it is no file", who, path.string());
  if (status.st_size == 0) return;
  void* at = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, d.file, 0);
  if (at == MAP_FAILED) fail("[{}] cannot read {}: {}", who, path.string(), reason());
  bytes_ = {static_cast<const std::byte*>(at), size_t(status.st_size)};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

NewFile::NewFile(const fs::path& path, std::string_view who)
    : path_(path), who_(who), file_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (file_ < 0) fail("[{}] cannot write {}: {}", who_, path_.string(), reason());
}

NewFile::~NewFile() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(path_.c_str());
}

void NewFile::fail_to(const char* what) {
  int error = errno;
  fail("[{}] cannot {} {}: {}{}", who_, what, path_.string(), std::strerror(error),
       error == ENOSPC || error == EDQUOT ? "; make room, or keep fewer checkpoints" : "");
}

void NewFile::write(std::span<const std::byte> bytes) {
  constexpr size_t most = size_t(64) << 20;  // of one call: Linux takes at most 2 GiB
  while (!bytes.empty()) {
    ssize_t n = ::write(file_, bytes.data(), std::min(bytes.size(), most));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail_to("write");
    bytes = bytes.subspan(size_t(n));
  }
}

void NewFile::close() {
  if (fsync(file_) != 0) fail_to("sync");
  if (::close(std::exchange(file_, -1)) != 0) fail_to("close");
}

void sync_folder(const fs::path& path, std::string_view who) {
  Descriptor d{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (d.file < 0 || fsync(d.file) != 0) fail("[{}] cannot sync the folder {}: {}", who, path.string(), reason());
}

void publish(const fs::path& from, const fs::path& to, std::string_view who) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    fail("[{}] cannot rename {} to {}: {}", who, from.string(), to.string(), reason());
  sync_folder(to.has_parent_path() ? to.parent_path() : fs::path("."), who);
}

void publish_folder(const fs::path& from, const fs::path& to, std::string_view who) {
  if (!fs::exists(to)) return publish(from, to, who);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    sync_folder(from.has_parent_path() ? from.parent_path() : fs::path("."), who);
    fs::remove_all(from);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS)
    fail("[{}] cannot exchange {} and {}: {}", who, from.string(), to.string(), reason());
  fs::path old = to;  // a file system that exchanges no names: NFS, for example
  old += ".old";
  fs::remove_all(old);
  publish(to, old, who);
  publish(from, to, who);
  fs::remove_all(old);
}

}  // namespace dtensor::nn
