// One error type and the one function that throws it.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace dtensor {

// What every function of the library throws on bad input. Messages begin with the public function's name in brackets,
// show the values and say what to do: "[matmul] sizes of k differ: 7 in f32[5,7] and 6 in f32[6,3]".
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(fmt::format(text, std::forward<Args>(args)...));
}

// Throws Error with the formatted message unless `ok`. Arguments are evaluated always, formatted only on failure: where
// they cost something and the code is hot, write if (!ok) fail(...).
template <class... Args>
void check(bool ok, fmt::format_string<Args...> text, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(text, std::forward<Args>(args)...);
}

}  // namespace dtensor
