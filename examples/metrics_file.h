// The metrics of llama_pretrain: JSON lines, and who is told of them.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "examples/pretrain_checkpoints.h"
#include "nn/report/metrics.h"

namespace dtensor {

// The metrics of the rank that writes them: a file, if one is opened, and whoever listens. The file goes on where a run
// is resumed, without the lines of later steps, which are trained again.
class MetricsFile {
 public:
  void add(std::unique_ptr<nn::MetricsListener> listener) { listeners_.push_back(std::move(listener)); }
  // Errors: it cannot be written.
  void open(const std::string& path) {
    path_ = path;
    check(!std::filesystem::is_directory(path),
          "[llama_pretrain] cannot write --metrics {}: it is a folder; name a file in it", path);
    file_.open(path, std::ios::app);
    check(file_.good(), "[llama_pretrain] cannot write --metrics {}: does the folder exist?", path);
  }
  // Keeps the lines of the first `steps` steps.
  void begin(int64_t steps, const RunRecord& record) {
    std::vector<nlohmann::ordered_json> kept;
    if (file_.is_open()) kept = keep(steps);
    for (auto& listener : listeners_) listener->begin(steps, kept);
    nlohmann::ordered_json run{{"kind", "run"}};
    run.update(record.command);
    write(run.dump() + "\n");
  }
  void write(const std::string& line) {
    if (file_.is_open()) {
      file_ << line << std::flush;
      check(file_.good(), "[llama_pretrain] cannot write to --metrics {}: is the disk full?", path_);
    }
    if (listeners_.empty()) return;
    auto json = nlohmann::ordered_json::parse(line);
    for (auto& listener : listeners_) listener->line(json);
  }
  void write(const std::optional<nn::CheckpointFolder::Written>& w) {
    if (!w) return;
    write(
        fmt::format("{{\"kind\": \"checkpoint\", \"step\": {}, \"stalled_seconds\": {:.17g}, "
                    "\"written_seconds\": {:.17g}, \"bytes\": {}}}\n",
                    w->step, w->stalled_seconds, w->written_seconds, w->bytes));
  }

  // The run has ended: "done", or why not.
  void end(const std::string& how) {
    for (auto& listener : listeners_) listener->end(how);
  }

 private:
  // The file's lines of the first `steps` steps, which alone it has now.
  std::vector<nlohmann::ordered_json> keep(int64_t steps) {
    std::vector<nlohmann::ordered_json> kept;
    std::ifstream in(path_);
    std::string text;
    for (std::string line; steps > 0 && std::getline(in, line);)
      if (auto j = nlohmann::ordered_json::parse(line, nullptr, false);
          j.is_object() && j.value("step", int64_t(0)) <= steps) {
        kept.push_back(std::move(j));
        text += line + '\n';
      }
    file_.close();
    // A run that is killed meanwhile keeps its lines, in the old file or the new one. A device has no lines.
    bool replace = std::filesystem::is_regular_file(std::filesystem::symlink_status(path_));
    std::string to = replace ? path_ + ".tmp" : path_;
    file_.open(to, std::ios::trunc);
    file_ << text << std::flush;
    check(file_.good(), "[llama_pretrain] cannot write --metrics {}: is the disk full?", to);
    std::error_code error;
    if (replace) std::filesystem::rename(to, path_, error);
    check(!error, "[llama_pretrain] cannot write --metrics {}: {}", path_, error.message());
    return kept;
  }

  std::string path_;
  std::ofstream file_;
  std::vector<std::unique_ptr<nn::MetricsListener>> listeners_;
};

}  // namespace dtensor
