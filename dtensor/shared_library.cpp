#include "dtensor/shared_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "placement/error.h"

namespace dtensor {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ':');)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

// What is in the folder, sorted; nothing where it cannot be read.
std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> list;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) list.push_back(*at);
  std::sort(list.begin(), list.end());
  return list;
}

// A file of the loader's configuration: a folder per line, and files that it includes, which /etc/ld.so.conf.d has.
void add_configured(const fs::path& file, std::vector<fs::path>& to) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with('/')) to.emplace_back(line.substr(0, line.find_first_of(" \t\r#")));
}

// PREFIX/lib/python3.11/site-packages/nvidia/cudnn/lib and their like.
void add_packages(const fs::path& prefix, std::vector<fs::path>& to) {
  for (const fs::path& python : entries(prefix / "lib"))
    if (python.filename().string().starts_with("python3"))
      for (const char* packages : {"site-packages", "dist-packages"})
        for (const fs::path& package : entries(python / packages / "nvidia")) to.push_back(package / "lib");
}

}  // namespace

std::vector<std::string> library_folders() {
  std::vector<fs::path> list;
  for (const std::string& folder : split(environment("LD_LIBRARY_PATH"))) list.emplace_back(folder);
  add_configured("/etc/ld.so.conf", list);
  for (const fs::path& file : entries("/etc/ld.so.conf.d")) add_configured(file, list);
  for (const char* folder :
       {"/usr/local/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"})
    list.emplace_back(folder);
  for (const std::string& toolkit : {environment("CUDA_HOME"), std::string("/usr/local/cuda")})
    if (!toolkit.empty()) list.push_back(fs::path(toolkit) / "lib64"), list.push_back(fs::path(toolkit) / "lib");
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (std::string prefix = environment(name); !prefix.empty()) add_packages(prefix, list);
  for (const std::string& folder : split(environment("PATH"))) add_packages(fs::path(folder).parent_path(), list);
  if (std::string home = environment("HOME"); !home.empty()) add_packages(fs::path(home) / ".local", list);

  std::vector<std::string> folders;
  std::error_code error;
  for (const fs::path& folder : list)
    if (fs::is_directory(folder, error) && std::ranges::find(folders, folder.string()) == folders.end())
      folders.push_back(folder.string());
  return folders;
}

std::vector<std::string> find_libraries(const std::string& name, const std::vector<std::string>& folders) {
  std::vector<std::string> files;
  std::error_code error;
  for (const std::string& folder : folders)
    if (fs::path file = fs::path(folder) / name; fs::exists(file, error)) files.push_back(file.string());
  return files;
}

SharedLibrary::SharedLibrary(std::string_view who, const std::string& name, std::string_view advice)
    : who_(who), name_(name), advice_(advice) {
  auto open = [](const std::string& file) { return dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL); };
  handle_ = open(name);
  if (handle_) return;
  const char* said = dlerror();
  std::string why = said ? said : name;
  if (name.find('/') == std::string::npos)
    for (const std::string& file : find_libraries(name, library_folders()))
      if ((handle_ = open(file))) return;
  fail("[{}] {}: {}", who, why, advice);
}

void* SharedLibrary::symbol(const char* name) const {
  void* symbol = dlsym(handle_, name);
  check(symbol, "[{}] {} has no {}: {}", who_, name_, name, advice_);
  return symbol;
}

}  // namespace dtensor
