// What the programs do alike.
#pragma once

#include <CLI/CLI.hpp>
#include <exception>
#include <functional>
#include <string>

namespace dtensor {

// What main returns: parses the options, then runs the two. Exit codes: 0, also of --help; 2 for a mistake in the
// options or in what they name, which is what `prepare` throws; 1 for what goes wrong in `work`. The error is on
// standard error, after the program's name; of an unknown option it names the nearest one.
int run_program(
    CLI::App& app, int argc, char** argv, const std::function<void()>& prepare,
    const std::function<void()>& work = [] {});

// The command line, to be given to a shell again: what it would change is quoted.
std::string command_line(int argc, char** argv);

}  // namespace dtensor
