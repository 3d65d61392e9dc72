#!/usr/bin/env python3
"""Writes models.json: configurations of tiny models as transformers saves them, and of each the logits, the loss and
what stands for the gradients of a small batch, in float64; of those that generate, the tokens that follow parts of its
rows. Needs torch and transformers 5.

    python3 tests/parity/transformers_models.py > tests/parity/models.json

Weights are made by a formula, so that none are in the file: see value().
"""
import json
import logging
import sys

import numpy as np
import torch
import transformers

logging.disable(logging.WARNING)
torch.set_default_dtype(torch.float64)


def value(name, count):
    """Numbers in [-0.5, 0.5) for the elements of a tensor: the same in models_test.cpp."""
    seed = sum((i + 1) * b for i, b in enumerate(name.encode())) % 65521
    h = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed) * np.uint64(40503)) & np.uint64(0xFFFFFFFF)
    for _ in range(2):
        h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x45D9F3B)) & np.uint64(0xFFFFFFFF)
    h = h ^ (h >> np.uint64(16))
    return h.astype(np.float64) / 2.0**32 - 0.5


def fill(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            v = torch.from_numpy(value(name, p.numel())).reshape(p.shape)
            norm = p.dim() == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * v if norm else 0.3 * v)


def rounded(values):
    return [float(f"{v:.10g}") for v in values]


def greedy(model, rows, count=12):
    """The new tokens after each row, of which the second is shorter. Without a cache: with one, transformers turns keys
    by other angles than queries where angles depend on the length."""
    options = transformers.GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0, use_cache=False)
    prompts = [row[: len(row) - 3 * i] for i, row in enumerate(rows)]
    new = []
    for p in prompts:
        p = torch.tensor([p])
        new.append(model.generate(p, attention_mask=torch.ones_like(p), generation_config=options)[0, p.shape[1]:].tolist())
    return new


def run(name, config, cls, batch, seq, extra=None):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = cls(config).eval()
    fill(model)
    ids = torch.from_numpy(((value(name + " ids", batch * seq) + 0.5) * config.vocab_size).astype(np.int64)).reshape(batch, seq)
    labels = torch.from_numpy(((value(name + " labels", batch * seq) + 0.5) * config.vocab_size).astype(np.int64)).reshape(batch, seq)
    labels[0, 1] = -100
    inputs = {"input_ids": ids, **(extra or {})}
    logits = model(**inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)
    loss.backward()
    gradients = {}
    for n, p in model.named_parameters():
        g = p.grad.reshape(-1)
        gradients[n] = rounded([g.norm().item(), torch.dot(g, torch.from_numpy(value(n, g.numel()))).item()])
    c = json.loads(config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "id2label", "label2id", "_attn_implementation_internal"):
        c.pop(key, None)
    c["architectures"] = [cls.__name__]
    c = {k: v for k, v in c.items() if not k.startswith("_")}
    return {
        "name": name,
        "config": c,
        "ids": ids.tolist(),
        "labels": labels.tolist(),
        **{k: v.tolist() for k, v in (extra or {}).items()},
        "logits": rounded(logits.reshape(-1).tolist()),
        "loss": loss.item(),
        "gradients": gradients,
        **({"greedy": greedy(model, ids.tolist())} if model.can_generate() and not extra else {}),
    }


if __name__ == "__main__":
    T = transformers
    sizes = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64)
    rope = lambda **k: {"rope_theta": 10000.0, **k}
    models = [
        run("llama3", T.LlamaConfig(**sizes, tie_word_embeddings=True, rope_parameters=rope(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16)), T.LlamaForCausalLM, 2, 10),
        run("smollm2", T.LlamaConfig(**{**sizes, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3},
                                     tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters=rope(rope_type="default")),
            T.LlamaForCausalLM, 1, 9),
        run("llama with biases", T.LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, head_dim=12),
            T.LlamaForCausalLM, 1, 7),
        run("linear", T.LlamaConfig(**sizes, rope_parameters=rope(rope_type="linear", factor=4.0)), T.LlamaForCausalLM, 1, 12),
        run("dynamic", T.LlamaConfig(**{**sizes, "max_position_embeddings": 8},
                                     rope_parameters=rope(rope_type="dynamic", factor=2.0)), T.LlamaForCausalLM, 1, 12),
        run("yarn", T.LlamaConfig(**sizes, head_dim=16, rope_parameters=rope(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16)), T.LlamaForCausalLM, 1, 12),
        run("qwen2", T.Qwen2Config(**sizes), T.Qwen2ForCausalLM, 2, 8),
        run("qwen2 with windows", T.Qwen2Config(**sizes, use_sliding_window=True, sliding_window=3, max_window_layers=1),
            T.Qwen2ForCausalLM, 1, 9),
        run("qwen3", T.Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=True), T.Qwen3ForCausalLM, 2, 8),
        run("mistral", T.MistralConfig(**sizes, sliding_window=4), T.MistralForCausalLM, 2, 11),
        run("phi3", T.Phi3Config(**sizes, pad_token_id=39, sliding_window=5), T.Phi3ForCausalLM, 2, 8),
        run("phi3 with longrope", T.Phi3Config(**sizes, pad_token_id=None, original_max_position_embeddings=8,
            rope_parameters=rope(rope_type="longrope", short_factor=[1.0, 1.5, 2.0], long_factor=[1.0, 3.0, 5.0],
                                 original_max_position_embeddings=8, partial_rotary_factor=0.75)), T.Phi3ForCausalLM, 1, 12),
        run("gpt2", T.GPT2Config(vocab_size=40, n_positions=32, n_embd=32, n_layer=2, n_head=4), T.GPT2LMHeadModel, 2, 9),
        run("bert", T.BertConfig(**{k: v for k, v in sizes.items() if k != "num_key_value_heads"}), T.BertForMaskedLM, 2, 9,
            {"attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
             "token_type_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 9])}),
    ]
    json.dump({"transformers": transformers.__version__, "torch": torch.__version__, "models": models}, sys.stdout,
              separators=(",", ":"))
