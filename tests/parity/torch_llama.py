#!/usr/bin/env python3
"""Reference values of a small Llama, by PyTorch, for parity_test.cpp.

Needs Python 3.9 and PyTorch 2.5 or newer; the CPU is enough:

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/parity/torch_llama.py            # writes, beside itself:

    llama.json           configuration, tokens, checksums of the initial weights, losses, and where each gradient is
    llama_gradients.bin  gradients of the loss of batch 0, little-endian float32: of all parameters as a float64 run has
                         them (the truth), then again as a float32 run has them

    venv/bin/python tests/parity/torch_llama.py --weights FILE   # writes the initial weights, float32, instead

The initial weights are this library's own (dtensor/random.cpp, nn/module.cpp), made again here from their definition: no
weights are exchanged. Nothing is drawn from PyTorch's generators. Run again, it writes the same bytes on the same machine;
other machines may differ in the last digits of the float32 run.
"""
import argparse
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    # Ten times the usual 0.02, so that the attention is far from uniform and every gradient is far from nothing.
    "initializer_range": 0.2,
}
TRAINING = {"seed": 7, "steps": 5, "lr": 0.02, "warmup_steps": 2, "clip": 2.5, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
BATCH, SEQUENCE, IGNORED = 4, 12, 258  # parity_test.cpp makes nn::ignored_target of them


# --- the initial weights -------------------------------------------------------------------------------------------

MASK64 = (1 << 64) - 1


def mix(x):  # the finalizer of splitmix64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK64
    return x ^ x >> 31


def fnv1a(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK64
    return h


def stream_key(seed, purpose, path, step=0, micro_batch=0, call=0):  # RandomStream::key
    golden = 0x9E3779B97F4A7C15
    h = mix(seed + golden & MASK64)
    for part in (fnv1a(purpose), fnv1a(path), step, micro_batch, call):
        h = mix((h ^ part) + golden & MASK64)
    return h


def philox4x32_10(key, counter):  # counter: uint64 array -> the first two words
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    w = [counter & low, counter >> shift, np.zeros_like(counter), np.zeros_like(counter)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * w[0], np.uint64(0xCD9E8D57) * w[2]
        w = [(b >> shift) ^ w[1] ^ np.uint64(k0), b & low, (a >> shift) ^ w[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return w[0], w[1]


def initial_normal(shape, path, std):
    w0, w1 = philox4x32_10(stream_key(TRAINING["seed"], "init", path), np.arange(math.prod(shape), dtype=np.uint64))
    # Python's math is the C library's, as in C++; numpy's own log and cos may differ in the last bit.
    values = [std * math.sqrt(-2 * math.log((int(a) + 1) * 2.0**-32)) * math.cos(2 * math.pi * ((int(b) + 1) * 2.0**-32))
              for a, b in zip(w0, w1)]
    return torch.from_numpy(np.array(values, dtype=np.float64).astype(np.float32).reshape(shape))


# --- the model -----------------------------------------------------------------------------------------------------

class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, theta):  # [batch, heads, sequence, d]: Hugging Face's rotate_half order
    d, positions = x.shape[-1], torch.arange(x.shape[-2], dtype=torch.float64)
    angles = torch.outer(positions, theta ** (-2.0 * torch.arange(d // 2, dtype=torch.float64) / d))
    cos, sin = (torch.cat((t, t), -1).to(x.dtype) for t in (angles.cos(), angles.sin()))
    half = torch.cat((-x[..., d // 2:], x[..., : d // 2]), -1)
    return x * cos + half * sin


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.d, self.theta = c["head_dim"], c["rope_theta"]
        self.q_proj = linear(c["hidden_size"], c["num_attention_heads"] * self.d)
        self.k_proj = linear(c["hidden_size"], c["num_key_value_heads"] * self.d)
        self.v_proj = linear(c["hidden_size"], c["num_key_value_heads"] * self.d)
        self.o_proj = linear(c["num_attention_heads"] * self.d, c["hidden_size"])

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (-1, self.d)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, self.theta), rotate(k, self.theta)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.up_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.down_proj = linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = Model(c)
        self.lm_head = linear(c["hidden_size"], c["vocab_size"])

    def forward(self, ids):
        return self.lm_head(self.model(ids))


def make_model(dtype):  # the same float32 weights, also for a float64 run
    model = LlamaForCausalLM(CONFIG)
    with torch.no_grad():
        for path, p in model.named_parameters():
            p.copy_(torch.ones_like(p) if p.dim() == 1 else initial_normal(tuple(p.shape), path, CONFIG["initializer_range"]))
    return model.to(dtype)


# --- what is measured ----------------------------------------------------------------------------------------------

def batch(step):
    """Tokens by a formula; some targets count nothing, not as many in each row."""
    def token(b, s):
        return (131 * b + 17 * s + 7 * b * s + s * s + 5 * step) % CONFIG["vocab_size"]
    inputs = [[token(b, s) for s in range(SEQUENCE)] for b in range(BATCH)]
    counts = [SEQUENCE, SEQUENCE - 3, SEQUENCE, SEQUENCE - 7 + step]
    targets = [[token(b, s + 1) if s < counts[b] else IGNORED for s in range(SEQUENCE)] for b in range(BATCH)]
    return inputs, targets


def loss_of(model, tokens):
    inputs, targets = (torch.tensor(t) for t in tokens)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def gradients(dtype):
    model = make_model(dtype)
    loss = loss_of(model, batch(0))
    loss.backward()
    return loss.item(), {path: p.grad for path, p in model.named_parameters()}


def train(dtype):  # as nn::Trainer
    model, t = make_model(dtype), TRAINING
    optimizer = torch.optim.AdamW(model.parameters(), lr=t["lr"], betas=(t["beta1"], t["beta2"]), eps=t["eps"], weight_decay=t["weight_decay"])
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=t["warmup_steps"])
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=t["steps"] - t["warmup_steps"])
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[t["warmup_steps"]])
    steps = []
    for step in range(t["steps"]):
        loss = loss_of(model, batch(step))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), t["clip"])
        steps.append({"loss": loss.item(), "grad_norm": norm.item(), "lr": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
    return steps


def checksum(t):  # enough to tell other weights from the same
    t = t.double().flatten()
    return {"first": t[0].item(), "last": t[-1].item(), "sum": t.sum().item(), "sum_squares": t.square().sum().item()}


def write_weights(file):
    parts = [p.detach().numpy().astype("<f4").tobytes() for p in make_model(torch.float32).parameters()]
    pathlib.Path(file).write_bytes(b"".join(parts))


def write_reference(folder):
    loss64, truth = gradients(torch.float64)
    loss32, float32 = gradients(torch.float32)
    weights = dict(make_model(torch.float32).named_parameters())
    parameters, at = [], 0
    for path, g in truth.items():
        error = ((float32[path].double() - g).norm() / g.norm()).item()
        parameters.append({"name": path, "shape": list(g.shape), "offset": at, "norm": g.norm().item(), "float32_error": float(f"{error:.3g}"),
                           "weight": checksum(weights[path].detach())})
        at += g.numel()
    blob = b"".join(g.numpy().astype("<f4").tobytes() for run in (truth, float32) for g in run.values())
    (folder / "llama_gradients.bin").write_bytes(blob)
    reference = {
        "written_by": f"tests/parity/torch_llama.py, PyTorch {torch.__version__.split('+')[0]}",
        "config": CONFIG, "training": TRAINING, "ignore_index": IGNORED,
        "batches": [dict(zip(("inputs", "targets"), batch(step))) for step in range(TRAINING["steps"])],
        "loss": {"float64": loss64, "float32": loss32},
        "gradients": {"file": "llama_gradients.bin", "elements": at, "runs": ["float64", "float32"]},
        "parameters": parameters,
        "steps": {"float64": train(torch.float64), "float32": train(torch.float32)},
    }
    # One line per parameter, batch and step.
    text = json.dumps(reference, indent=1)
    (folder / "llama.json").write_text(compact(text))
    worst = max(parameters, key=lambda p: p["float32_error"])
    print(f"loss {loss64:.9g}, float32 differs by {abs(loss32 / loss64 - 1):.1e}; gradients of {at} elements, float32 differs by up to "
          f"{worst['float32_error']:.1e} ({worst['name']}); norms before clipping {[round(s['grad_norm'], 3) for s in reference['steps']['float64']]}")


def compact(text):
    """Joins what stands more than two levels deep with the line that opens it."""
    lines = []
    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip(" "))
        if depth > 2 or (depth == 2 and line.lstrip(" ")[0] in "]}"):
            lines[-1] += line.strip() if lines[-1][-1] in "[{" or line.strip()[0] in "]}" else " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", metavar="FILE", help="write the initial weights, in the order of parameters, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.weights:
        write_weights(arguments.weights)
    else:
        write_reference(pathlib.Path(__file__).resolve().parent)
