// Files that are read by mapping them and written so that they are either whole or not there. `who` is the public
// function for errors, which name the file and the system's reason.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace dtensor::nn {

// A file's bytes, read-only, brought from disk where they are looked at. Errors: a file that cannot be read.
class MappedFile {
 public:
  MappedFile(const std::filesystem::path& path, std::string_view who);
  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, std::span<const std::byte>())) {}
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::byte* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

// A file that is written from its beginning to its end. One that is not closed is removed.
class NewFile {
 public:
  // Replaces what is there. Errors: it cannot be made.
  NewFile(const std::filesystem::path& path, std::string_view who);
  NewFile(const NewFile&) = delete;
  ~NewFile();

  // Errors: the disk is full, or another reason of the system's.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  // Brings all of it to the disk, and closes it.
  void close();

 private:
  [[noreturn]] void fail_to(const char* what);
  std::filesystem::path path_;
  std::string who_;
  int file_ = -1;
};

// What a folder contains is on the disk: after files were made or renamed in it.
void sync_folder(const std::filesystem::path& path, std::string_view who);
// Gives a synced file or folder its last name and syncs the folder that it is in.
void publish(const std::filesystem::path& from, const std::filesystem::path& to, std::string_view who);
// The same for a folder, also over one that is there, which goes: at any time `to` is one or the other, but on a file
// system that cannot exchange names, where the old one is `to` + ".old" for a moment.
void publish_folder(const std::filesystem::path& from, const std::filesystem::path& to, std::string_view who);

}  // namespace dtensor::nn
