// tokenizer_train: a byte-level BPE tokenizer from text.
//
//     tokenizer_train --data text.txt --vocab-size 8000 --special [BOT] [EOT] [PAD] --output tokenizer.json
//
// Exit codes: 0 done, 1 writing failed, 2 bad input.
#include <fmt/format.h>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "examples/program/program.h"
#include "nn/data/documents.h"
#include "nn/tokenizer/train.h"
#include "placement/error.h"

using namespace dtensor;

int main(int argc, char** argv) {
  std::vector<std::string> data;
  nn::TrainOptions options{.special = {"[BOT]", "[EOT]", "[PAD]"}};
  std::string pattern = "gpt2", output;
  bool lines = false;
  CLI::App app("A byte-level BPE tokenizer from text, as a Hugging Face tokenizer.json.", "tokenizer_train");
  app.option_defaults()->always_capture_default();
  app.add_option("--data", data, "text files, or JSON lines (.jsonl), also .gz and .zst")->required();
  app.add_option("--vocab-size", options.vocab_size, "tokens, with the 256 of bytes and the special ones")->required();
  app.add_option("--special", options.special, "special tokens: the first ids")
      ->expected(0, 4096)
      ->allow_extra_args(false);  // which would take brackets around a value for a list of values
  app.add_option("--pattern", pattern, "how text is cut before merges: gpt2, llama3 or qwen")
      ->check(CLI::IsMember({"gpt2", "llama3", "qwen"}));
  app.add_flag("--lines", lines,
               "each line, with its end, is a text of its own, as in the tokenizers package's train(files)");
  app.add_option("--output", output, "tokenizer.json to write")->required();
  std::string text;
  int64_t tokens = 0;
  auto learn = [&] {
    options.pattern = nn::pattern_by_name(pattern);
    nn::TokenizerTrainer trainer(options);
    for (const std::string& file : data)
      nn::for_documents(file, [&](std::string_view document) {
        for (size_t at = 0; at < document.size();) {
          size_t end = lines ? std::min(document.find('\n', at), document.size() - 1) + 1 : document.size();
          trainer.add(document.substr(at, end - at));
          at = end;
        }
      });
    nlohmann::ordered_json json = trainer.finish();
    tokens = int64_t(json["model"]["vocab"].size());
    text = json.dump(1) + "\n";
  };
  return run_program(app, argc, argv, learn, [&] {  // replaced as a whole: no half file stays behind
    std::string partial = output + ".partial";
    std::ofstream out(partial, std::ios::binary);
    out << text << std::flush;
    check(out.good(), "[tokenizer_train] cannot write {}: does the folder exist, is the disk full?", output);
    std::filesystem::rename(partial, output);
    fmt::print("{} tokens, written to {}\n", tokens, output);
    if (tokens < options.vocab_size)
      fmt::print("no pair of symbols is left: fewer tokens than the {} asked for\n", options.vocab_size);
  });
}
