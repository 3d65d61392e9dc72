// cuDNN and cuBLASLt are found at run time.
#ifdef DTENSOR_HAS_CUDNN_H  // where CMake finds it
#include <cudnn_graph.h>
#endif
#include <dlfcn.h>

#include <catch2/catch.hpp>
#include <filesystem>

#include "ops/cuda/cudnn_api.h"
#include "placement/error.h"
#include "tests/folder.h"

using namespace dtensor;
using namespace dtensor::cuda;
using Catch::Contains;
using dtensor::testing::Folder;

namespace fs = std::filesystem;

namespace {

bool is_open(const char* name) { return dlopen(name, RTLD_NOW | RTLD_NOLOAD) != nullptr; }
const bool open_at_start = is_open("libcudnn.so.9") || is_open("libcublasLt.so.13") || is_open("libcublasLt.so.12");

}  // namespace

TEST_CASE("a program starts without cuDNN and cuBLASLt: nothing of it needs them") { CHECK(!open_at_start); }

#ifdef DTENSOR_HAS_CUDNN_H
TEST_CASE("cuDNN's numbers and calls are those of cudnn_graph.h") {
#define CUDNN(type, name, number) CHECK(int(::name) == int(cudnn::name));
#include "ops/cuda/cudnn_constants.inc"
#undef CUDNN
  CHECK(int(CUDNN_NUMERICAL_NOTE_TYPE_COUNT) <= cudnn::most_numerical_notes);
}
#endif

TEST_CASE("a folder of libraries is taken by the newest cuDNN in it") {
  Folder folder;
  // Of a system: the file's name tells. Of a Python package: its header does.
  folder.write("system/libcudnn.so.9.14.0", "no library");
  fs::create_symlink("libcudnn.so.9.14.0", folder / "system/libcudnn.so.9");
  std::string package = folder.write("nvidia/cudnn/lib/libcudnn.so.9", "no library");
  folder.write("nvidia/cudnn/include/cudnn_version.h",
               "#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 19\n#define CUDNN_PATCHLEVEL 2\n#define CUDNN_VERSION 1\n");
  std::string unknown = folder.write("unknown/lib/libcudnn.so.9", "no library");
  CHECK(cudnn::version_of(folder / "system/libcudnn.so.9") == 91400);
  CHECK(cudnn::version_of(package) == 91902);
  CHECK(cudnn::version_of(unknown) == 0);

  auto error = [&](const std::vector<std::string>& folders) -> std::string {
    std::vector<std::string> paths;
    for (const std::string& f : folders) paths.push_back(folder / f);
    try {
      return cudnn::load(paths).path;
    } catch (const Error& e) {
      return e.what();
    }
  };
  const char* advice = "install cuDNN 9.16 or newer, or add its folder to LD_LIBRARY_PATH";
  CHECK(error({}) == fmt::format("[cudnn] libcudnn.so.9 was not found: {}", advice));
  CHECK(error({"nvidia"}) == fmt::format("[cudnn] libcudnn.so.9 was not found: {}", advice));
  CHECK(error({"system", "unknown/lib"}) ==
        fmt::format("[cudnn] the newest that was found, {}, is 9.14.0: {}", folder / "system/libcudnn.so.9", advice));
  CHECK(error({"unknown/lib"}) ==
        fmt::format("[cudnn] the newest that was found, {}, is of no known version: {}", unknown, advice));
  CHECK_THAT(error({"system", "nvidia/cudnn/lib"}), Contains(package + ": ") && Contains(advice));  // it is no library
}

TEST_CASE("NVIDIA's libraries are looked for where Python packages are") {
  Folder folder;
  std::string lib = folder / "lib/python3.11/site-packages/nvidia/cudnn/lib";
  fs::create_directories(lib);
  const char* before = std::getenv("VIRTUAL_ENV");
  std::string kept = before ? before : "";
  setenv("VIRTUAL_ENV", folder.path.c_str(), 1);
  std::vector<std::string> folders = library_folders();
  before ? setenv("VIRTUAL_ENV", kept.c_str(), 1) : unsetenv("VIRTUAL_ENV");
  CHECK(std::count_if(folders.begin(), folders.end(), [&](const std::string& f) { return fs::equivalent(f, lib); }) ==
        1);
  for (const std::string& f : folders) CHECK(fs::is_directory(f));
}
