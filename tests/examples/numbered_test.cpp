// The numbered examples, and quickstart.sh as far as it can be run without installing and building.
#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

// examples/01_hello_mesh.cpp and so on, in their order.
std::vector<std::filesystem::path> numbered() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(source("examples"))) {
    std::string name = entry.path().filename().string();
    if (std::isdigit(uint8_t(name[0])) && entry.path().extension() == ".cpp") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// What the first comment says is printed: its last indented block.
std::string promised(const std::string& code) {
  std::string block;
  const std::string indent = "//     ";
  for (const std::string& line : lines_of(code)) {
    if (!line.starts_with("//")) break;
    if (line.starts_with(indent))
      block += line.substr(indent.size()) + "\n";
    else if (line != "//")
      block.clear();
  }
  return block;
}

}  // namespace

TEST_CASE("every numbered example prints exactly what its first comment says") {
  auto files = numbered();
  REQUIRE(files.size() >= 5);
  for (const auto& file : files) {
    CAPTURE(file);
    std::string code = read(file), name = file.stem().string();
    CHECK(lines_of(code).size() < 80);
    CHECK_THAT(code, Contains("Run build/bin/" + name));
    std::string expected = promised(code);
    REQUIRE(!expected.empty());
    for (int again = 0; again < 5; ++again) {  // ranks are threads: the order must not depend on their luck
      Result r = run(name, {});
      REQUIRE(r.code == 0);
      REQUIRE(r.err.empty());
      REQUIRE(r.out == expected);
    }
  }
}

TEST_CASE("quickstart.sh explains itself from any folder and refuses what it does not know") {
  Result help = run(source("examples/quickstart.sh"), {"--help"});
  CHECK(help.code == 0);
  CHECK(help.err.empty());
  CHECK_THAT(help.out, StartsWith("examples/quickstart.sh: from a bare Debian or Ubuntu machine"));
  CHECK_THAT(help.out, EndsWith("The exit code is that of the step that failed.\n"));
  Result bad = run(source("examples/quickstart.sh"), {"--stpes", "3"});
  CHECK(bad.code == 2);
  CHECK(bad.out.empty());
  CHECK_THAT(bad.err, Contains("it takes no options; see --help"));
}
