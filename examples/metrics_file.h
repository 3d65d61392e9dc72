// The metrics of llama_pretrain: JSON lines.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "examples/pretrain_checkpoints.h"

namespace dtensor {

// The metrics file, of the rank that writes it. It goes on where a run is resumed, without the lines of later steps,
// which are trained again.
class MetricsFile {
 public:
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
    if (!file_.is_open()) return;
    std::vector<std::string> kept;
    std::ifstream in(path_);
    for (std::string line; steps > 0 && std::getline(in, line);)
      if (nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
          j.is_object() && j.value("step", int64_t(0)) <= steps)
        kept.push_back(line);
    file_.close();
    file_.open(path_, std::ios::trunc);
    for (const std::string& line : kept) file_ << line << '\n';
    nlohmann::ordered_json run{{"kind", "run"}};
    run.update(record.command);
    write(run.dump() + "\n");
  }
  void write(const std::string& line) {
    if (!file_.is_open()) return;
    file_ << line << std::flush;
    check(file_.good(), "[llama_pretrain] cannot write to --metrics {}: is the disk full?", path_);
  }
  void write(const std::optional<nn::CheckpointFolder::Written>& w) {
    if (!w) return;
    write(
        fmt::format("{{\"kind\": \"checkpoint\", \"step\": {}, \"stalled_seconds\": {:.17g}, "
                    "\"written_seconds\": {:.17g}, \"bytes\": {}}}\n",
                    w->step, w->stalled_seconds, w->written_seconds, w->bytes));
  }

 private:
  std::string path_;
  std::ofstream file_;
};

}  // namespace dtensor
