// checkpoint_inspect: what is in a checkpoint, or in the newest one of a folder of them, and whether it is sound.
//
//     checkpoint_inspect runs/one                 # a folder of checkpoints
//     checkpoint_inspect runs/one/step-00000100   # one of them
//
// Every byte is read and compared with its checksum. Exit codes: 0 sound, 1 damaged, 2 bad input.
#include <fmt/format.h>

#include <cstdio>

#include "dtensor/table.h"
#include "examples/program/program.h"
#include "nn/checkpoint/checkpoint_folder.h"

using namespace dtensor;
using Json = nlohmann::ordered_json;

namespace {

Json describe(const nn::Checkpoint& c, const std::vector<int64_t>& steps) {
  Json tensors = Json::object();
  for (const auto& [name, t] : c.tensors())
    tensors[name] = {{"dtype", dtensor::name(t.dtype)},
                     {"shape", std::vector<int64_t>(t.shape.begin(), t.shape.end())},
                     {"pieces", t.pieces.size()}};
  return {{"folder", c.folder().string()}, {"steps", steps},    {"mesh", c.mesh()}, {"bytes", c.bytes()},
          {"values", c.values()},          {"tensors", tensors}};
}

void print(const nn::Checkpoint& c, const std::vector<int64_t>& steps) {
  if (!steps.empty()) fmt::print("steps {}\n", fmt::join(steps, ", "));
  fmt::print("{}: {} tensors, {} bytes, written on mesh {}\n", c.folder().string(), c.tensors().size(), c.bytes(),
             c.mesh());
  for (const auto& [key, value] : c.values().items()) fmt::print("{}: {}\n", key, value.dump());
  std::vector<std::vector<std::string>> lines{{"tensor", "type", "pieces"}};
  for (const auto& [name, t] : c.tensors())
    lines.push_back({name, fmt::format("{}{}", dtensor::name(t.dtype), t.shape), std::to_string(t.pieces.size())});
  fmt::print("\n{}", table("<<>", lines));
}

}  // namespace

int main(int argc, char** argv) {
  std::string folder;
  bool json = false;
  CLI::App app("Prints what is in a checkpoint, and whether it is sound.", "checkpoint_inspect");
  app.add_option("DIR", folder, "a checkpoint, or a folder of them, of which the newest is taken")->required();
  app.add_flag("--json", json, "as JSON");
  auto find = [&] {
    check(std::filesystem::is_directory(folder), "[checkpoint_inspect] {}: there is no such folder", folder);
    std::vector<int64_t> steps = nn::checkpoint_steps(folder);
    bool one = std::filesystem::exists(std::filesystem::path(folder) / "checkpoint.json");
    check(one || !steps.empty(), "[checkpoint_inspect] {} is no checkpoint and has none", folder);
    if (!one) folder = nn::checkpoint_of_step(folder, steps.back()).string();
  };
  return run_program(app, argc, argv, find, [&] {
    std::vector<int64_t> steps = nn::checkpoint_steps(std::filesystem::path(folder).parent_path());
    nn::Checkpoint c(folder);
    c.verify();
    if (json)
      std::printf("%s\n", describe(c, steps).dump(2).c_str());
    else
      print(c, steps);
  });
}
