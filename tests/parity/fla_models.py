#!/usr/bin/env python3
"""Writes fla_models.json: tiny gated linear attention models, as transformers_models.py does for the models it has.

    python3 tests/parity/fla_models.py > tests/parity/fla_models.json

flash-linear-attention's own layers need Triton and a GPU. Here they are in plain PyTorch, with its names of parameters
and fields of config.json, around the recurrence as its naive reference has it (naive_recurrence of torch_ops_products.py).
"""
import json
import sys
import types

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch_ops_products import naive_recurrence
from transformers_models import fill, run


class Config(transformers.PretrainedConfig):
    model_type = "gla"


def linear(inputs, outputs, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class ShortConvolution(nn.Conv1d):
    def __init__(self, channels, width):
        super().__init__(channels, channels, width, groups=channels, padding=width - 1, bias=False)

    def forward(self, x):
        return F.silu(super().forward(x.mT)[..., : x.shape[1]].mT)


class GatedLinearAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        keys, values = int(c.hidden_size * c.expand_k), int(c.hidden_size * c.expand_v)
        self.config, self.groups = c, c.num_heads // (c.num_kv_heads or c.num_heads)
        self.d, self.e = keys // c.num_heads, values // c.num_heads
        self.q_proj = linear(c.hidden_size, keys)
        self.k_proj = linear(c.hidden_size, keys // self.groups)
        self.v_proj = linear(c.hidden_size, values // self.groups)
        if c.use_output_gate:
            self.g_proj = linear(c.hidden_size, values)
        if c.use_short_conv:
            self.q_conv1d = ShortConvolution(keys, c.conv_size)
            self.k_conv1d = ShortConvolution(keys // self.groups, c.conv_size)
            self.v_conv1d = ShortConvolution(values // self.groups, c.conv_size)
        self.gk_proj = nn.Sequential(linear(c.hidden_size, c.gate_low_rank_dim), linear(c.gate_low_rank_dim, keys // self.groups, True))
        self.o_proj = linear(values, c.hidden_size)
        self.norm_name = "g_norm_swish_gate" if c.fuse_norm and c.use_output_gate else "g_norm"
        setattr(self, self.norm_name, RMSNorm(self.e, c.norm_eps))

    def forward(self, x):
        c = self.config
        q, k, v, g = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.gk_proj(x)
        if c.use_short_conv:
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        g = F.logsigmoid(g) / c.gate_logit_normalizer
        if c.clamp_min is not None:
            g = g.clamp_min(c.clamp_min)
        heads = lambda t, size: t.unflatten(-1, (-1, size))
        shared = lambda t, size: heads(t, size).repeat_interleave(self.groups, 2)
        out = naive_recurrence(heads(q, self.d), shared(k, self.d), shared(v, self.e), shared(g, self.d))
        out = getattr(self, self.norm_name)(out).flatten(2)
        return self.o_proj(out * F.silu(self.g_proj(x)) if c.use_output_gate else out)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        size = c.intermediate_size or (int(c.hidden_size * c.hidden_ratio * 2 / 3) + 255) // 256 * 256
        self.gate_proj, self.up_proj = linear(c.hidden_size, size), linear(c.hidden_size, size)
        self.down_proj = linear(size, c.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(c.hidden_size, c.norm_eps), GatedLinearAttention(c)
        self.mlp_norm, self.mlp = RMSNorm(c.hidden_size, c.norm_eps), MLP(c)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.norm_eps)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class GLAForCausalLM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model, self.lm_head = Model(c), linear(c.hidden_size, c.vocab_size)
        if c.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight

    def can_generate(self):  # as transformers generates
        return False

    def forward(self, input_ids):
        return types.SimpleNamespace(logits=self.lm_head(self.model(input_ids)))


def config(**fields):
    defaults = dict(vocab_size=40, hidden_size=32, expand_k=0.5, expand_v=1, hidden_ratio=4, intermediate_size=48,
                    num_hidden_layers=2, num_heads=4, num_kv_heads=None, feature_map=None, use_short_conv=False, conv_size=4,
                    use_output_gate=True, clamp_min=None, hidden_act="swish", norm_eps=1e-6, use_gk=True, use_gv=False,
                    gate_logit_normalizer=16, gate_low_rank_dim=16, elementwise_affine=True, fuse_norm=True,
                    max_position_embeddings=64, tie_word_embeddings=False)
    return Config(**{**defaults, **fields})


def case(name, batch, seq, **fields):
    """As run()'s, and how far the logits of PyTorch's own float32 are: a head's small output makes its norm's large error."""
    c = config(**fields)
    result = run(name, c, GLAForCausalLM, batch, seq)
    model = GLAForCausalLM(c)
    fill(model)
    logits = model.float()(torch.tensor(result["ids"])).logits.double().reshape(-1)
    error = (logits - torch.tensor(result["logits"], dtype=torch.float64)).abs().max().item()
    return {**result, "float32_error": float(f"{error:.3g}")}


if __name__ == "__main__":
    models = [
        case("gla", 2, 9, fuse_norm=False),
        case("gla, a fused norm", 1, 67, gate_low_rank_dim=5, intermediate_size=None),
        case("gla, shared key heads", 2, 9, num_kv_heads=2, fuse_norm=False),
        case("gla, short convolutions", 2, 9, use_short_conv=True, conv_size=3, num_kv_heads=2, fuse_norm=False, expand_k=1),
        case("gla, clamped gates", 1, 9, clamp_min=-0.087, gate_logit_normalizer=8),
        case("gla, no output gate", 1, 9, use_output_gate=False, tie_word_embeddings=True, expand_v=2),
    ]
    json.dump({"transformers": transformers.__version__, "torch": torch.__version__, "models": models}, sys.stdout, separators=(",", ":"))
