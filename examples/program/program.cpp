#include "examples/program/program.h"

#include <cstdio>

namespace dtensor {

int program_failed(const CLI::App& app, const std::exception& error, int exit_code) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), error.what());
  return exit_code;
}

int run_program(CLI::App& app, int argc, char** argv, const std::function<void()>& prepare,
                const std::function<void()>& work) {
  try {
    app.parse(argc, argv);
    prepare();
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help
  } catch (const CLI::Error& e) {
    std::fprintf(stderr, "%s: %s; see --help\n", app.get_name().c_str(), e.what());
    return 2;
  } catch (const std::exception& e) {
    return program_failed(app, e, 2);
  }
  try {
    work();
  } catch (const std::exception& e) {
    return program_failed(app, e, 1);
  }
  return 0;
}

}  // namespace dtensor
