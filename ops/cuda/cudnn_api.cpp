#include "ops/cuda/cudnn_api.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "placement/error.h"

namespace dtensor::cuda::cudnn {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view advice = "install cuDNN 9.16 or newer, or add its folder to LD_LIBRARY_PATH";

std::string text_of(size_t version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

// "#define CUDNN_MAJOR 9" and so on.
size_t version_of_header(const fs::path& file) {
  std::ifstream stream(file);
  std::array<size_t, 3> numbers{};
  for (std::string line; std::getline(stream, line);) {
    char name[16];
    size_t number;
    if (std::sscanf(line.c_str(), "#define CUDNN_%15s %zu", name, &number) != 2) continue;
    constexpr std::string_view names[] = {"MAJOR", "MINOR", "PATCHLEVEL"};
    for (size_t i = 0; i < 3; ++i)
      if (names[i] == name) numbers[i] = number;
  }
  return numbers[0] * 10000 + numbers[1] * 100 + numbers[2];
}

// libcudnn.so.9 opens these by name only, and would take an older one that the loader finds first.
void open_parts(const std::string& path) {
  for (const char* part :
       {"graph", "ops", "adv", "cnn", "heuristic", "engines_precompiled", "engines_runtime_compiled"})
    if (fs::path file = fs::path(path).parent_path() / fmt::format("libcudnn_{}.so.9", part); fs::exists(file))
      SharedLibrary("cudnn", file.string(), advice);
}

}  // namespace

size_t version_of(const std::string& path) {
  std::error_code error;
  fs::path real = fs::canonical(path, error);
  size_t major, minor, patch;
  if (std::sscanf(real.filename().c_str(), "libcudnn.so.%zu.%zu.%zu", &major, &minor, &patch) == 3)
    return major * 10000 + minor * 100 + patch;
  return version_of_header(fs::path(path).parent_path().parent_path() / "include" / "cudnn_version.h");
}

Api load(const std::vector<std::string>& folders) {
  std::vector<std::string> files = find_libraries("libcudnn.so.9", folders);
  check(!files.empty(), "[cudnn] libcudnn.so.9 was not found: {}", advice);
  Api api;
  for (const std::string& file : files)
    if (size_t version = version_of(file); api.path.empty() || version > api.version)
      api.path = file, api.version = version;
  auto check_version = [&] {
    check(api.version >= oldest_version, "[cudnn] the newest that was found, {}, is {}: {}", api.path,
          api.version ? text_of(api.version) : "of no known version", advice);
  };
  check_version();
  if (files.size() > 1) open_parts(api.path);
  SharedLibrary library("cudnn", api.path, advice);
#define FIND(function) library.get("cudnn" #function, api.function)
  FIND(GetVersion), FIND(GetErrorString), FIND(GetLastErrorString), FIND(Create), FIND(Destroy), FIND(SetStream);
  FIND(BackendCreateDescriptor), FIND(BackendDestroyDescriptor), FIND(BackendSetAttribute), FIND(BackendGetAttribute);
  FIND(BackendFinalize), FIND(BackendExecute);
#undef FIND
  api.version = api.GetVersion();
  check_version();
  return api;
}

}  // namespace dtensor::cuda::cudnn
