// Every error message of the library and its programs is reached by a test: some part of its text stands in a literal
// of a test.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "placement/error.h"

namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Literal {
  std::string value;
  size_t end;  // behind the closing quote
};

// The string literal that begins at `at`, escapes resolved.
Literal literal_at(const std::string& text, size_t at) {
  if (text[at] == 'R') {
    size_t open = text.find('(', at);
    std::string close = ")" + text.substr(at + 2, open - at - 2) + "\"";
    size_t end = text.find(close, open);
    return {text.substr(open + 1, end - open - 1), end + close.size()};
  }
  std::string value;
  size_t i = at + 1;
  for (; i < text.size() && text[i] != '"'; ++i) {
    if (text[i] == '\\') ++i;
    value += text[i];
  }
  return {value, i + 1};
}

bool literal_begins(const std::string& text, size_t at) {
  return text[at] == '"' ||
         (text[at] == 'R' && text.compare(at, 2, "R\"") == 0 && !std::isalnum(uint8_t(text[at - 1])));
}

// Comments become spaces, and so do character literals, whose quotes would confuse.
std::string without_comments(std::string text) {
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (literal_begins(text, i)) {
      i = literal_at(text, i).end - 1;
    } else if (text[i] == '/' && text[i + 1] == '/') {
      for (; i < text.size() && text[i] != '\n'; ++i) text[i] = ' ';
    } else if (text[i] == '\'' && !std::isalnum(uint8_t(text[i - 1]))) {
      size_t end = text.find('\'', text[i + 1] == '\\' ? i + 3 : i + 2);
      std::fill(text.begin() + long(i), text.begin() + long(end) + 1, ' ');
      i = end;
    }
  }
  return text;
}

// Neighbouring literals are one.
Literal joined_at(const std::string& text, size_t at) {
  Literal all = literal_at(text, at);
  for (;;) {
    size_t next = text.find_first_not_of(" \n", all.end);
    if (next == std::string::npos || !literal_begins(text, next)) return all;
    Literal more = literal_at(text, next);
    all = {all.value + more.value, more.end};
  }
}

// The message of a call of check() or fail() whose arguments begin at `at`: the first literal that begins an argument.
std::string message_at(const std::string& text, size_t at) {
  int depth = 1;
  bool begins = true;
  for (size_t i = at; i < text.size() && depth > 0; ++i) {
    char c = text[i];
    if (c == ' ' || c == '\n') continue;
    if (literal_begins(text, i)) {
      Literal l = joined_at(text, i);
      if (begins && depth == 1) return l.value;
      i = l.end - 1, begins = false;
      continue;
    }
    depth += c == '(' || c == '{' || c == '[';
    depth -= c == ')' || c == '}' || c == ']';
    begins = c == ',';
  }
  return "";
}

std::vector<std::string> messages(const std::string& text) {
  std::vector<std::string> list;
  for (const char* call : {"check(", "fail("})
    for (size_t at = text.find(call); at != std::string::npos; at = text.find(call, at + 1)) {
      if (at > 0 && (std::isalnum(uint8_t(text[at - 1])) || text[at - 1] == '_')) continue;
      std::string m = message_at(text, at + std::string_view(call).size());
      if (!m.empty()) list.push_back(m);
    }
  return list;
}

// What stands between the values of a message, the longest first.
std::vector<std::string> fragments(const std::string& message) {
  std::vector<std::string> list;
  for (size_t at = 0; at <= message.size();) {
    size_t open = std::min(message.find('{', at), message.size());
    list.push_back(message.substr(at, open - at));
    at = open == message.size() ? open + 1 : std::min(message.find('}', open), message.size() - 1) + 1;
  }
  std::sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
  return list;
}

template <class F>
void for_files(const std::string& folder, F f) {
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(DTENSOR_SOURCE_DIR) / folder))
    if (entry.path().extension() == ".cpp" || entry.path().extension() == ".h") f(entry.path());
}

}  // namespace

TEST_CASE("law 9: every error message is reached by a test") {
  std::string asserted;
  for_files("tests", [&](const fs::path& path) {
    if (path.filename() == "errors_test.cpp" && path.parent_path().filename() == "conventions") return;
    std::string text = without_comments(read(path));
    for (size_t i = 0; i < text.size(); ++i)
      if (literal_begins(text, i)) {
        Literal l = joined_at(text, i);
        asserted += l.value + "\n";
        i = l.end - 1;
      }
  });
  int count = 0, missing = 0;
  for (const char* folder : {"placement", "dtensor", "ops", "nn", "examples"})
    for_files(folder, [&](const fs::path& path) {
      for (const std::string& m : messages(without_comments(read(path)))) {
        ++count;
        bool found = false;
        std::vector<std::string> parts = fragments(m);
        for (size_t i = 0; i < parts.size(); ++i)
          found |= (i == 0 || parts[i].size() >= 10) && asserted.find(parts[i]) != std::string::npos;
        if (found) continue;
        ++missing;
        std::cout << fs::relative(path, DTENSOR_SOURCE_DIR).string() << ": " << m << "\n";
      }
    });
  CHECK(count > 150);
  CHECK(missing == 0);
}

TEST_CASE("ctest can run every test by its name: none has a semicolon or begins as an option does") {
  int count = 0;
  for_files("tests", [&](const fs::path& path) {
    std::string text = without_comments(read(path));
    constexpr std::string_view macro = "\nTEST_CASE(";
    for (size_t at = text.find(macro); at != std::string::npos; at = text.find(macro, at + 1), ++count) {
      std::string name = joined_at(text, at + macro.size()).value;
      INFO(path.string() << ": " << name);
      CHECK(name.find(';') == std::string::npos);
      CHECK_FALSE(name.starts_with('-'));
    }
  });
  CHECK(count > 500);
}
