// Running the built programs.
#pragma once

#include <stdlib.h>
#include <sys/wait.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/folder.h"

namespace dtensor::testing {

using Catch::Contains;
using Catch::EndsWith;
using Catch::StartsWith;
using Json = nlohmann::ordered_json;
using Words = std::vector<std::string>;

inline std::string source(const std::string& path) { return DTENSOR_SOURCE_DIR "/" + path; }

inline std::string read(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline Words lines_of(const std::string& text) {
  Words lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

struct Result {
  int code = -1;
  std::string out, err;
};

// `program` is a path, or the name of one in build/bin.
inline Result run(const std::string& program, const Words& arguments) {
  Folder folder;
  std::string command;
  auto add = [&](const std::string& word) {
    command += '\'';
    for (char c : word) command += c == '\'' ? "'\\''" : std::string(1, c);
    command += "' ";
  };
  bool is_ours = program.find('/') == std::string::npos;
  add(is_ours ? DTENSOR_BIN_DIR "/" + program : program);
  for (const std::string& a : arguments) add(a);
  int status = std::system((command + "</dev/null >" + folder / "out" + " 2>" + folder / "err").c_str());
  REQUIRE(WIFEXITED(status));
  return {WEXITSTATUS(status), read(folder / "out"), read(folder / "err")};
}

inline Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Text with something to learn in it.
inline std::string some_text(size_t bytes) {
  const char* words[] = {"sum ", "shard ", "of ", "the ", "mesh ", "part ", "rank ", "gather.\n"};
  std::string text;
  for (uint32_t i = 1; text.size() < bytes; i = i * 1664525u + 1013904223u) text += words[i >> 29];
  return text;
}

struct Metrics {
  std::vector<double> loss, grad_norm;
};
inline Metrics read_metrics(const std::string& file) {
  Metrics m;
  for (const std::string& line : lines_of(read(file))) {
    Json j = Json::parse(line);
    if (!j.contains("loss")) continue;  // of another kind than a step
    m.loss.push_back(j.at("loss"));
    m.grad_norm.push_back(j.at("grad_norm"));
  }
  return m;
}

// The largest relative difference of the first n numbers.
inline double difference(const std::vector<double>& a, const std::vector<double>& b, size_t n) {
  REQUIRE(a.size() >= n);
  REQUIRE(b.size() >= n);
  double most = 0;
  for (size_t i = 0; i < n; ++i) most = std::max(most, std::abs(a[i] - b[i]) / std::abs(a[i]));
  return most;
}

}  // namespace dtensor::testing
