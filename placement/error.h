// One error type and the one function that throws it.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>

namespace dtensor {

// What every function of the library throws on bad input. Messages begin with the public function's name in brackets,
// show the values and say what to do: "[matmul] sizes of k differ: 7 in f32[5,7] and 6 in f32[6,3]".
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Memory of the host or of a device is exhausted. Who reports it adds where that was (cause_of()).
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// Formatting is compiled once, in error.cpp: what stands here costs every file that includes it.
[[noreturn]] void throw_error(fmt::string_view text, fmt::format_args args);

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw_error(text, fmt::make_format_args(args...));
}

// Throws Error with the formatted message unless `ok`. Arguments are evaluated always, formatted only on failure: give
// a shape, a mesh or a tensor itself, not its to_string(). Where an argument costs something, write
// if (!ok) fail(...).
template <class... Args>
void check(bool ok, fmt::format_string<Args...> text, Args&&... args) {
  if (!ok) [[unlikely]]
    throw_error(text, fmt::make_format_args(args...));
}

// What {fmt} prints of a type of ours, its to_string():
// template <> struct fmt::formatter<dtensor::Shape> : dtensor::Formatter<dtensor::Shape> {};
fmt::format_context::iterator write_text(fmt::string_view text, fmt::format_context& context);
template <class T>
struct Formatter {
  constexpr auto parse(fmt::format_parse_context& context) { return context.begin(); }
  auto format(const T& value, fmt::format_context& context) const { return write_text(to_string(value), context); }
};

}  // namespace dtensor
