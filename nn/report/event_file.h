// TensorBoard's event files, which `tensorboard --logdir FOLDER` shows: records of TensorFlow's format, each a protobuf
// message Event (tensorflow/core/util/event.proto) between its length and checksums.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "nn/report/metrics.h"

namespace dtensor::nn {

// One record, as a file has it. Times are seconds since 1970. Numbers are rounded to float32, which is all that
// TensorBoard draws.
namespace event {
std::string version(double time);  // what a file begins with
// From `step` on, the numbers of older files of the folder are forgotten: a run that is resumed trains these again.
std::string start(double time, int64_t step);
std::string scalars(double time, int64_t step, std::span<const std::pair<std::string, double>> values);
std::string text(double time, int64_t step, std::string_view tag, std::string_view markdown);
}  // namespace event

// The numbers of a run as scalars, by their names in the metrics; its command and samples as texts.
class TensorBoard : public MetricsListener {
 public:
  // A file of its own in the folder, which is made. Errors: it cannot be.
  explicit TensorBoard(const std::filesystem::path& folder);
  void begin(int64_t done, const std::vector<nlohmann::ordered_json>& before) override;
  void line(const nlohmann::ordered_json& line) override;

  const std::filesystem::path& file() const { return file_; }

 private:
  void write(const std::string& record);
  std::filesystem::path file_;
};

}  // namespace dtensor::nn
