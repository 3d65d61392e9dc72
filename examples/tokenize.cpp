// tokenize: standard input to the ids of its tokens, or ids back to text.
//
//     tokenize --tokenizer tokenizer.json < text.txt
//     echo 464 3290 | tokenize --tokenizer tokenizer.json --decode
//
// Exit codes: 0 done, 1 writing failed, 2 bad input.
#include <fmt/format.h>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "examples/program/program.h"
#include "nn/tokenizer/tokenizer.h"
#include "placement/error.h"

using namespace dtensor;

namespace {

// Ids between spaces, line breaks, commas and brackets, so that a JSON array is read too.
std::vector<int32_t> read_ids(const std::string& text) {
  std::vector<int32_t> ids;
  constexpr const char* between = " \t\r\n,[]";
  for (size_t at = text.find_first_not_of(between); at != std::string::npos;) {
    size_t end = std::min(text.find_first_of(between, at), text.size());
    std::string word = text.substr(at, end - at);
    char* rest = nullptr;
    errno = 0;
    long long id = std::strtoll(word.c_str(), &rest, 10);
    check(*rest == 0 && errno == 0 && id >= 0 && id <= std::numeric_limits<int32_t>::max(),
          "[tokenize] \"{}\" is no id: --decode reads numbers between spaces or commas", word);
    ids.push_back(int32_t(id));
    at = text.find_first_not_of(between, end);
  }
  return ids;
}

std::string in_text(const std::vector<int32_t>& ids, bool json) {
  return json ? fmt::format("[{}]\n", fmt::join(ids, ", ")) : fmt::format("{}\n", fmt::join(ids, " "));
}

}  // namespace

int main(int argc, char** argv) {
  std::string file;
  bool decode = false, json = false, no_special = false;
  CLI::App app("Standard input to the ids of its tokens, or ids to text.", "tokenize");
  app.add_option("--tokenizer", file, "Hugging Face tokenizer.json")->required();
  app.add_flag("--decode", decode, "ids to text; special tokens are left out of it with --no-special");
  app.add_flag("--json", json, "one JSON array of ids for all of the input; with --decode, one JSON text");
  app.add_flag("--no-special", no_special,
               "do not add what the post-processor of the file adds (--decode leaves special tokens out anyway)");
  std::string out;
  auto convert = [&] {
    nn::Tokenizer tokenizer = nn::Tokenizer::load(file);
    std::string in{std::istreambuf_iterator<char>(std::cin), {}};
    if (decode) {
      std::string text = tokenizer.decode(read_ids(in));
      out = json ? nlohmann::json(text).dump() + "\n" : text;
    } else {
      out = in_text(tokenizer.encode(in, !no_special).ids, json);
    }
  };
  return run_program(app, argc, argv, convert, [&] {
    check(std::fwrite(out.data(), 1, out.size(), stdout) == out.size() && std::fflush(stdout) == 0,
          "[tokenize] cannot write to standard output: is the disk full?");
  });
}
