#include "nn/checkpoint/hugging_face.h"

#include <set>

#include "dtensor/agree.h"

namespace dtensor::nn {
namespace fs = std::filesystem;

namespace {

// What files have besides parameters: tables that models compute, and a head that is the embedding again.
bool is_no_parameter(const std::string& name) {
  return name.ends_with(".inv_freq") || name.ends_with(".masked_bias") || name.ends_with(".attn.bias") ||
         name == "lm_head.weight";
}

// The name of a parameter in a file: its path, or, in files that were written from a model without its head, what
// follows the name of that model in it.
std::string name_in(const Safetensors& file, const std::string& path) {
  for (std::string_view model : {"model.", "transformer."})
    if (!file.contains(path) && path.starts_with(model) && file.contains(path.substr(model.size())))
      return path.substr(model.size());
  return path;
}

Tensor converted(const Tensor& from, DType dtype) {
  if (from.dtype() == dtype) return from;
  Tensor to(std::make_shared<Allocator>(), dtype, from.shape());
  for (int64_t i = 0; i < from.numel(); ++i) {
    if (dtype == DType::bf16)
      to.data<BFloat16>()[i] = BFloat16(float(element(from, i)));
    else
      to.data<float>()[i] = float(element(from, i));
  }
  return to;
}

}  // namespace

void load_weights(const fs::path& folder, Module& model) {
  agree_on_error(model.mesh(), [&] {
    Safetensors file(folder);
    std::set<std::string> used;
    for (Parameter* p : model.parameters()) {
      std::string name = name_in(file, p->path());
      file.read(name, p->stored());
      used.insert(name);
    }
    for (const std::string& name : file.names())
      check(used.contains(name) || is_no_parameter(name), "[load_weights] {} has {}, which the model has not",
            folder.string(), name);
  });
  for (Parameter* p : model.parameters()) p->renew();
}

void export_weights(const Checkpoint& from, const std::string& key, nlohmann::ordered_json config,
                    const fs::path& folder, DType dtype) {
  check(dtype == DType::f32 || dtype == DType::bf16, "[export_weights] weights are written in f32 or bf16, not {}",
        name(dtype));
  std::string prefix = key + ".";
  std::vector<NamedSpec> specs;
  for (const auto& [name, tensor] : from.tensors())
    if (name.starts_with(prefix)) specs.push_back({name.substr(prefix.size()), dtype, tensor.shape});
  check(!specs.empty(), "[export_weights] {} has no tensors under \"{}\"", from.folder().string(), key);
  std::error_code error;
  fs::create_directories(folder, error);
  check(!error, "[export_weights] cannot make the folder {}: {}", folder.string(), error.message());
  save_safetensors_folder(folder, specs, [&](size_t i) { return converted(from.read(prefix + specs[i].name), dtype); });
  config.erase("dtype");
  config["torch_dtype"] = dtype == DType::f32 ? "float32" : "bfloat16";
  fs::path beside = folder / "config.json.tmp";
  NewFile out(beside, "export_weights");
  out.write(config.dump(2) + "\n");
  out.close();
  publish(beside, folder / "config.json", "export_weights");
}

}  // namespace dtensor::nn
