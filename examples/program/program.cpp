#include "examples/program/program.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <string_view>

#include "placement/nearest.h"

namespace dtensor {
namespace {

// What is wrong with a command line.
std::string mistake(const CLI::App& app, const CLI::Error& e) {
  if (!dynamic_cast<const CLI::ExtrasError*>(&e)) return e.what();
  std::vector<std::string> names;
  auto add = [&](const CLI::App& a) {
    for (const CLI::Option* o : a.get_options())
      if (o->get_name().starts_with("--")) names.push_back(o->get_name());
  };
  add(app);
  for (const CLI::App* command : app.get_subcommands()) add(*command);
  for (const std::string& word : app.remaining(true))
    if (std::string name = word.substr(0, word.find('=')); name.starts_with("--"))
      return fmt::format("there is no option {}{}", name, nearest_hint(name, names));
  return e.what();
}

int failed(const CLI::App& app, const std::string& why, int exit_code) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), why.c_str());
  return exit_code;
}

}  // namespace

std::string command_line(int argc, char** argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) {
    std::string word = argv[i];
    bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
      return std::isalnum(c) || std::string_view("%+,-./:=@_").find(char(c)) != std::string_view::npos;
    });
    if (!plain) {
      for (size_t at = 0; (at = word.find('\'', at)) != std::string::npos; at += 4) word.replace(at, 1, "'\\''");
      word = "'" + word + "'";
    }
    line += (i ? " " : "") + word;
  }
  return line;
}

int run_program(CLI::App& app, int argc, char** argv, const std::function<void()>& prepare,
                const std::function<void()>& work) {
  try {
    app.parse(argc, argv);
    prepare();
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help
  } catch (const CLI::Error& e) {
    return failed(app, mistake(app, e) + "; see --help", 2);
  } catch (const std::exception& e) {
    return failed(app, e.what(), 2);
  }
  try {
    work();
  } catch (const std::exception& e) {
    return failed(app, e.what(), 1);
  }
  return 0;
}

}  // namespace dtensor
