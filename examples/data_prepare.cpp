// data_prepare: text to shards of token ids, once, for training runs that then only map them.
//
//     data_prepare --tokenizer tokenizer.json --data text.txt more.jsonl.zst --output shards
//
// One shard per file of text. A shard that is there already, whole and newer than its text and the tokenizer, stays: a
// run that was cut off goes on where it was. Exit codes: 0 done, 1 writing failed, 2 bad input.
#include <fmt/format.h>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "examples/program/program.h"
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
  bool writing = false;  // else what goes wrong is the text's fault
  std::optional<nn::Tokenizer> tokenizer;
  auto look = [&] {
    tokenizer = nn::Tokenizer::load(file);
    for (const std::string& text : data)
      check(fs::is_regular_file(text), "[data_prepare] cannot read {}: it is no file", text);
  };
  int code = run_program(app, argc, argv, look, [&] {
    writing = true;
    fs::create_directories(output);
    for (size_t i = 0; i < data.size(); ++i) {
      fs::path shard = shard_of(output, i, data[i]);
      if (is_done(shard, data[i], file)) {
        fmt::print("{} is there\n", shard.string());
        continue;
      }
      nn::ShardWriter writer(shard.string(), tokenizer->vocab_size());
      writing = false;
      nn::tokenize_documents({data[i]}, *tokenizer, threads, [&](auto ids, bool last) { writer.add(ids, last); });
      writing = true;
      writer.finish();
      fmt::print("{}: {} documents, {} tokens\n", shard.string(), writer.documents(), writer.tokens());
    }
  });
  return code == 1 && !writing ? 2 : code;
}
