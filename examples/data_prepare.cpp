// data_prepare: text to shards of token ids, once, for training runs that then only map them.
//
//     data_prepare --tokenizer tokenizer.json --data text.txt more.jsonl.zst --output shards
//
// One shard per file of text. A shard that is there already, whole and newer than its text and the tokenizer, stays: a
// run that was cut off goes on where it was. Exit codes: 0 done, 1 writing failed, 2 bad input.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "nn/data/token_source.h"
#include "placement/error.h"

using namespace dtensor;
namespace fs = std::filesystem;

namespace {

// The shard of the text file that is number `i`: in their order, named after it.
fs::path shard_of(const fs::path& folder, size_t i, const std::string& text) {
  return folder / fmt::format("{:05}_{}.bin", i, fs::path(text).filename().string());
}

bool is_done(const fs::path& shard, const std::string& text, const std::string& tokenizer) {
  if (!fs::exists(shard)) return false;
  auto made = fs::last_write_time(shard);
  return made >= fs::last_write_time(text) && made >= fs::last_write_time(tokenizer);
}

}  // namespace

int main(int argc, char** argv) {
  std::string file, output;
  std::vector<std::string> data;
  int threads = 0;
  CLI::App app("Text to shards of token ids.", "data_prepare");
  app.option_defaults()->always_capture_default();
  app.add_option("--tokenizer", file, "Hugging Face tokenizer.json")->required();
  app.add_option("--data", data, "text files, or JSON lines (.jsonl), also .gz and .zst")->required();
  app.add_option("--output", output, "folder for the shards; what is there and newer than its text stays")->required();
  app.add_option("--threads", threads, "that encode; 0: all cores")->check(CLI::Range(0, 1024));
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const CLI::Error& e) {
    std::fprintf(stderr, "data_prepare: %s; see --help\n", e.what());
    return 2;
  }
  bool writing = false;
  try {
    nn::Tokenizer tokenizer = nn::Tokenizer::load(file);
    for (const std::string& text : data)
      check(fs::is_regular_file(text), "[data_prepare] cannot read {}: it is no file", text);
    writing = true;
    fs::create_directories(output);
    for (size_t i = 0; i < data.size(); ++i) {
      fs::path shard = shard_of(output, i, data[i]);
      if (is_done(shard, data[i], file)) {
        fmt::print("{} is there\n", shard.string());
        continue;
      }
      nn::ShardWriter writer(shard.string(), tokenizer.vocab_size());
      writing = false;  // what goes wrong now is the text's fault
      nn::tokenize_documents({data[i]}, tokenizer, threads, [&](auto ids, bool last) { writer.add(ids, last); });
      writing = true;
      writer.finish();
      fmt::print("{}: {} documents, {} tokens\n", shard.string(), writer.documents(), writer.tokens());
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "data_prepare: %s\n", e.what());
    return writing ? 1 : 2;
  }
  return 0;
}
