// Libraries that are looked for at run time, so that a program starts where they are missing.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace dtensor {

// Folders in which NVIDIA's libraries may be, the first the best: those of LD_LIBRARY_PATH, of the loader's
// configuration, of the CUDA toolkit ($CUDA_HOME, /usr/local/cuda), and of the packages nvidia/*/lib of the Pythons
// that PATH, VIRTUAL_ENV and CONDA_PREFIX name. Only folders that are there, each once.
std::vector<std::string> library_folders();

// The files of that name in the folders, in their order.
std::vector<std::string> find_libraries(const std::string& name, const std::vector<std::string>& folders);

// A library that is open, for as long as the process lives.
class SharedLibrary {
 public:
  // A path, or a name that the loader knows or library_folders() have. Errors: it cannot be loaded. The message begins
  // with [who] and ends with the advice.
  SharedLibrary(std::string_view who, const std::string& name, std::string_view advice);

  // The function of that name. Errors: there is none.
  template <class F>
  void get(const char* name, F*& function) const {
    function = reinterpret_cast<F*>(symbol(name));
  }
  template <class R, class... Args>
  void get(const char* name, std::function<R(Args...)>& function) const {
    function = reinterpret_cast<R (*)(Args...)>(symbol(name));
  }

 private:
  void* symbol(const char* name) const;

  std::string who_, name_, advice_;
  void* handle_;
};

}  // namespace dtensor
