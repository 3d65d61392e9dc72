#include "nn/models/auto_plan.h"

#include <nlohmann/json.hpp>

namespace dtensor::nn {
namespace {

constexpr const char* llama = R"({
  "tensor_parallel": {"axis": "tp", "plan": {
    "model.embed_tokens": "RowwiseParallel",
    "model.layers.*.self_attn.q_proj": "ColwiseParallel",
    "model.layers.*.self_attn.k_proj": "ColwiseParallel",
    "model.layers.*.self_attn.v_proj": "ColwiseParallel",
    "model.layers.*.self_attn.o_proj": "RowwiseParallel",
    "model.layers.*.mlp.gate_proj": "ColwiseParallel",
    "model.layers.*.mlp.up_proj": "ColwiseParallel",
    "model.layers.*.mlp.down_proj": "RowwiseParallel",
    "lm_head": "ColwiseParallel"}},
  "loss_parallel": false})";

constexpr const char* phi3 = R"({
  "tensor_parallel": {"axis": "tp", "plan": {
    "model.embed_tokens": "embedding_rowwise",
    "model.layers.*.self_attn.qkv_proj": "colwise_gather_output",
    "model.layers.*.self_attn.o_proj": "rowwise_split_input",
    "model.layers.*.mlp.gate_up_proj": "colwise_gather_output",
    "model.layers.*.mlp.down_proj": "rowwise_split_input",
    "lm_head": "colwise_gather_output"}}})";

constexpr const char* gpt2 = R"({
  "tensor_parallel": {"axis": "tp", "plan": {
    "transformer.wte": "RowwiseParallel",
    "transformer.h.*.attn.c_attn": {"style": "ColwiseParallel", "output_layouts": "Replicate"},
    "transformer.h.*.attn.c_proj": {"style": "RowwiseParallel", "input_layouts": "Replicate"},
    "transformer.h.*.mlp.c_fc": "ColwiseParallel",
    "transformer.h.*.mlp.c_proj": "RowwiseParallel",
    "lm_head": "ColwiseParallel"}},
  "loss_parallel": true})";

constexpr const char* gpt = R"({
  "tensor_parallel": {"axis": "tp", "plan": {
    "token_embedding": "RowwiseParallel",
    "blocks.*.attn.qkv_proj": {"style": "ColwiseParallel", "output_layouts": "Replicate"},
    "blocks.*.attn.out_proj": {"style": "RowwiseParallel", "input_layouts": "Replicate"},
    "blocks.*.ffn.fc1": "ColwiseParallel",
    "blocks.*.ffn.fc2": "RowwiseParallel",
    "lm_head": "ColwiseParallel"}},
  "loss_parallel": true})";

constexpr const char* gla = R"({
  "tensor_parallel": {"axis": "tp", "plan": {
    "model.embeddings": "RowwiseParallel",
    "model.layers.*.attn.q_proj": "ColwiseParallel",
    "model.layers.*.attn.k_proj": "ColwiseParallel",
    "model.layers.*.attn.v_proj": "ColwiseParallel",
    "model.layers.*.attn.g_proj": "ColwiseParallel",
    "model.layers.*.attn.gk_proj.1": "ColwiseParallel",
    "model.layers.*.attn.o_proj": "RowwiseParallel",
    "model.layers.*.mlp.gate_proj": "ColwiseParallel",
    "model.layers.*.mlp.up_proj": "ColwiseParallel",
    "model.layers.*.mlp.down_proj": "RowwiseParallel",
    "lm_head": "ColwiseParallel"}},
  "loss_parallel": true})";

// Keys and values are gathered: each rank reads the heads of its queries.
void gather_keys_and_values(TensorParallelPlan& plan) {
  for (auto& [path, style] : plan.lines)
    if (path.ends_with(".k_proj") || path.ends_with(".v_proj")) style.output_layouts = {Replicate()};
}

}  // namespace

ParallelPlan auto_plan(const ModelConfig& model, const MeshShape& mesh) {
  int axis = mesh.find("tp");
  if (axis < 0 || mesh.size(axis) == 1) return {};
  const std::string& type = model.model_type();
  const char* text = type == "phi3" ? phi3 : type == "gpt2" ? gpt2 : type == "gpt" ? gpt : type == "gla" ? gla : llama;
  ParallelPlan plan = ParallelPlan::from_json(nlohmann::ordered_json::parse(text));
  if (model.kv_heads() % mesh.size(axis) != 0) gather_keys_and_values(plan.tensor_parallel[0]);
  return plan;
}

}  // namespace dtensor::nn
