// report: runs of llama_pretrain beside each other, from their metrics files.
//
//     report a.jsonl b.jsonl --output page.html
//
// prints what they come to, a column each; --output is a page with their curves. Exit codes: 0 done, 2 bad input.
#include <fmt/format.h>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "dtensor/table.h"
#include "examples/program/program.h"
#include "nn/report/run_page.h"
#include "placement/error.h"

using namespace dtensor;

namespace {

// The names of the files without endings, where these differ, or else their paths.
std::vector<std::string> names_of(const std::vector<std::string>& files) {
  std::vector<std::string> names;
  for (const std::string& f : files) names.push_back(std::filesystem::path(f).stem().string());
  for (size_t i = 0; i < files.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (names[i] == names[j]) return files;
  return names;
}

void report(const std::vector<std::string>& files, const std::string& output) {
  std::vector<nn::RunMetrics> metrics;
  for (const std::string& f : files) metrics.push_back(nn::RunMetrics::load(f));
  std::vector<std::string> names = names_of(files);
  std::vector<nn::NamedRun> runs;
  for (size_t i = 0; i < files.size(); ++i) runs.push_back({names[i], &metrics[i]});
  fmt::print("{}", table("<" + std::string(files.size(), '>'), nn::comparison(runs)));
  if (output.empty()) return;
  std::ofstream page(output, std::ios::binary);
  page << nn::run_page(runs, fmt::format("{}", fmt::join(names, ", ")), "From metrics of llama_pretrain.");
  check(bool(page.flush()), "[report] cannot write --output {}: does the folder exist?", output);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> files;
  std::string output;
  CLI::App app("Puts runs of llama_pretrain beside each other.", "report");
  app.add_option("metrics", files, "files of llama_pretrain --metrics")->required();
  app.add_option("--output", output, "file for one HTML page with their curves");
  return run_program(app, argc, argv, [&] { report(files, output); });
}
