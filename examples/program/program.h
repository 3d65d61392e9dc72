// What the programs do alike.
#pragma once

#include <CLI/CLI.hpp>
#include <exception>
#include <functional>

namespace dtensor {

// What main returns: parses the options, then runs the two. Exit codes: 0, also of --help; 2 for a mistake in the
// options or in what they name, which is what `prepare` throws; 1 for what goes wrong in `work`. The error is on
// standard error, after the program's name.
int run_program(
    CLI::App& app, int argc, char** argv, const std::function<void()>& prepare,
    const std::function<void()>& work = [] {});

// Prints the error so; the exit code again.
int program_failed(const CLI::App& app, const std::exception& error, int exit_code);

}  // namespace dtensor
