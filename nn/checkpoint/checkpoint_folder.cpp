#include "nn/checkpoint/checkpoint_folder.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "dtensor/agree.h"
#include "nn/json.h"

namespace dtensor::nn {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view prefix = "step-";
constexpr const char* score_key = "score";

// The step that "step-00000100" names; nothing of other names, as of those that are being written.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(prefix)) return {};
  int64_t step = -1;
  const char *begin = name.data() + prefix.size(), *end = name.data() + name.size();
  auto [at, error] = std::from_chars(begin, end, step);
  return error == std::errc() && at == end && step >= 0 ? std::optional(step) : std::nullopt;
}

// The score of one that is there; those without, or that cannot be read, are the worst.
double score_of(const fs::path& folder) {
  try {
    nlohmann::ordered_json values = load_json((folder / "checkpoint.json").string(), "checkpoint").at("values");
    return values.at(score_key).get<double>();
  } catch (const std::exception&) {
    return std::numeric_limits<double>::infinity();
  }
}

// Removes what is neither among the last `keep` nor the best.
void prune(const fs::path& folder, int64_t keep) {
  std::vector<int64_t> steps = checkpoint_steps(folder);
  if (keep == 0 || int64_t(steps.size()) <= keep) return;
  int64_t best = -1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t step : steps)
    if (double score = score_of(checkpoint_of_step(folder, step)); score < least) best = step, least = score;
  steps.resize(steps.size() - size_t(keep));
  for (int64_t step : steps) {
    if (step == best) continue;
    fs::path gone = checkpoint_of_step(folder, step), aside = gone;
    fs::rename(gone, aside += ".old");  // while files go, it has no checkpoint's name
    fs::remove_all(aside);
  }
}

}  // namespace

std::vector<int64_t> checkpoint_steps(const fs::path& folder) {
  std::vector<int64_t> steps;
  if (!fs::is_directory(folder)) return steps;
  for (const auto& entry : fs::directory_iterator(folder))
    if (auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

fs::path checkpoint_of_step(const fs::path& folder, int64_t step) {
  return folder / fmt::format("{}{:08}", prefix, step);
}

CheckpointFolder::CheckpointFolder(const DeviceMesh& mesh, fs::path folder, int64_t keep)
    : mesh_(mesh), folder_(std::move(folder)), writer_(mesh) {
  check(keep >= 0, "[CheckpointFolder] {} checkpoints cannot be kept", keep);
  writer_.after = [f = folder_, keep] { prune(f, keep); };
}

std::optional<Checkpoint> CheckpointFolder::newest_sound(const std::function<void(const std::string&)>& damaged) const {
  std::vector<int64_t> steps = checkpoint_steps(folder_);
  for (size_t i = steps.size(); i-- > 0;) {
    std::optional<Checkpoint> found;
    try {
      agree_on_error(mesh_, [&] { found.emplace(checkpoint_of_step(folder_, steps[i])); });
      found->verify(mesh_);
      return found;
    } catch (const Error& e) {
      if (mesh_.rank() == 0) damaged(e.what());
    }
  }
  check(steps.empty(), "[CheckpointFolder] {}: none of the {} checkpoints is sound", folder_.string(), steps.size());
  return {};
}

void CheckpointFolder::begin(int64_t step, CheckpointItems items, std::optional<double> score) {
  items.emplace_back("step", nlohmann::ordered_json(step));
  if (score) items.emplace_back(score_key, nlohmann::ordered_json(*score));
  writer_.begin(checkpoint_of_step(folder_, step), items);
  step_ = step;
}

std::optional<CheckpointFolder::Written> CheckpointFolder::wait() {
  auto written = writer_.wait();
  if (!written) return {};
  return Written{*written, step_};
}

}  // namespace dtensor::nn
