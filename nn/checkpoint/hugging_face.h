// Weights from and to folders as Hugging Face's transformers reads them: config.json and safetensors.
#pragma once

#include "nn/checkpoint/checkpoint.h"

namespace dtensor::nn {

// Fills a model's parameters, in place, from a folder's tensors of their names, each rank its part, converted to f32.
// A folder of a model without its head, as that of GPT-2 on the hub, has names without "model." or "transformer.".
// The ranks call it together. Errors, on all ranks: a parameter that the folder has not; another shape; a tensor that
// the model has not, but for those that are computed (inv_freq) or tied (lm_head.weight where the model has none).
void load_weights(const std::filesystem::path& folder, Module& model);

// Writes a checkpoint's tensors under `key`, "model.PATH" as PATH, with `config` as config.json, whose dtype becomes
// `dtype`: model.safetensors, or shards and their index. The folder is made. Errors: no tensors; a type other than f32
// and bf16.
void export_weights(const Checkpoint& from, const std::string& key, nlohmann::ordered_json config,
                    const std::filesystem::path& folder, DType dtype);

}  // namespace dtensor::nn
