#!/usr/bin/env python3
"""The same training run as llama_pretrain's in PyTorch, as a good user writes it, to be measured beside it.

    python3 tests/bench/peers/torch_llama.py --model examples/configs/llama_124m.json --data docs/*.md --batch-size 32 \\
        --seq-len 1024 --steps 30 --compile --metrics FILE

Same model (RMSNorm, rotary embedding, SwiGLU, grouped heads, an untied head), same tokens, batch and sequence length, same
optimizer, gradient clipping and learning rates. Parameters and AdamW's states are float32; computing is bfloat16 by
autocast, norms and the loss in float32, activations stay bfloat16. On CUDA: cuDNN's attention, fused AdamW,
and with --compile one torch.compile of model and loss together. The loss is not cut into chunks: that saves memory and
costs time. Steps are timed by events without waiting for the device in between, which is PyTorch's best case.

Needs PyTorch 2.7 or newer and its driver. --device cpu --dtype fp32 runs anywhere, for small models. Prints a row; --metrics
gets JSON lines as llama_pretrain writes them (gpu/metrics.py makes a record of either).
"""
import argparse
import json
import math
import pathlib
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "gpu"))
import metrics  # noqa: E402

BOT, EOT, PAD = 256, 257, 258


# --- the model -----------------------------------------------------------------------------------------------------

class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):  # sums in float32, the result in x's type
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps).to(x.dtype)


def rotary_table(c, seq_len):
    d = c["head_dim"]
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float64),
                         c["rope_theta"] ** (-2.0 * torch.arange(d // 2, dtype=torch.float64) / d))
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def rotate(x, cos, sin):  # [batch, heads, sequence, d]: Hugging Face's rotate_half order
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    repeat_kv = False  # where the backend does not take grouped heads

    def __init__(self, c):
        super().__init__()
        self.d = c["head_dim"]
        self.q_proj = linear(c["hidden_size"], c["num_attention_heads"] * self.d)
        self.k_proj = linear(c["hidden_size"], c["num_key_value_heads"] * self.d)
        self.v_proj = linear(c["hidden_size"], c["num_key_value_heads"] * self.d)
        self.o_proj = linear(c["num_attention_heads"] * self.d, c["hidden_size"])

    def forward(self, x, cos, sin):
        q, k, v = (p(x).unflatten(-1, (-1, self.d)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = q.shape[1] != k.shape[1]
        if grouped and self.repeat_kv:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped and not self.repeat_kv)
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

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c, seq_len, dtype):
        super().__init__()
        self.dtype = dtype
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = linear(c["hidden_size"], c["vocab_size"])
        for name, table in zip(("cos", "sin"), rotary_table(c, seq_len)):
            self.register_buffer(name, table.to(dtype), persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=c.get("initializer_range", 0.02))

    def forward(self, ids, targets):
        x = self.embed_tokens(ids).to(self.dtype)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.cross_entropy(self.lm_head(self.norm(x)).float().flatten(0, 1), targets.flatten(), ignore_index=PAD)


# --- the run -------------------------------------------------------------------------------------------------------

class PackedText:
    """nn::PackedText: documents wrapped in [BOT] ... [EOT], windows of seq_len + 1 tokens that overlap by one."""

    def __init__(self, files, seq_len):
        tokens = []
        for file in files:
            tokens += [BOT, *pathlib.Path(file).read_bytes(), EOT]
        self.tokens, self.seq_len, self.windows = torch.tensor(tokens), seq_len, (len(tokens) - 1) // seq_len
        if self.windows < 1:
            raise SystemExit(f"torch_llama: the text has {len(tokens)} tokens, less than one window of {seq_len + 1}")

    def batch(self, step, batch_size):
        starts = [(step * batch_size + row) % self.windows * self.seq_len for row in range(batch_size)]
        rows = torch.stack([self.tokens[s:s + self.seq_len + 1] for s in starts])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def learning_rate(step, o):  # nn::warmup_cosine
    if step < o.warmup_steps:
        return o.lr * (0.1 + 0.9 * step / o.warmup_steps)
    if o.steps <= o.warmup_steps:
        return o.lr
    return o.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - o.warmup_steps) / (o.steps - o.warmup_steps))))


def takes_grouped_heads(c, o):
    """Whether the chosen attention has a kernel for them, forward and backward."""
    def make(heads):
        return torch.zeros(1, heads, o.seq_len, c["head_dim"], device=o.device, dtype=torch.bfloat16, requires_grad=True)
    q, k, v = make(c["num_attention_heads"]), make(c["num_key_value_heads"]), make(c["num_key_value_heads"])
    try:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
    except RuntimeError:
        return False
    return True


class Clock:
    """Seconds of each step: by events on CUDA, so that nobody waits."""

    def __init__(self, cuda):
        self.cuda, self.marks = cuda, []

    def mark(self):
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:])]
        return [b - a for a, b in zip(self.marks, self.marks[1:])]


def train(o):
    c = metrics.load_config(o.model)
    cuda = o.device == "cuda"
    dtype = torch.bfloat16 if o.dtype == "bf16" else torch.float32
    torch.manual_seed(42)
    torch.set_float32_matmul_precision("highest" if o.dtype == "fp32" else "high")
    if cuda:
        Attention.repeat_kv = not takes_grouped_heads(c, o)
    with torch.device(o.device):
        model = Llama(c, o.seq_len, dtype)
    count = sum(p.numel() for p in model.parameters())
    assert count == metrics.parameters(c)[0], (count, metrics.parameters(c))
    print(f"{count} parameters, {o.batch_size * o.seq_len} tokens per step; PyTorch {torch.__version__}, "
          f"{'repeated' if Attention.repeat_kv else 'grouped'} heads", flush=True)
    text = PackedText(o.data, o.seq_len)
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, fused=cuda)
    step_loss = torch.compile(model) if o.compile else model
    clock, losses, norms = Clock(cuda), [], []
    clock.mark()
    for step in range(o.steps):
        ids, targets = (t.pin_memory().to(o.device, non_blocking=True) if cuda else t for t in text.batch(step, o.batch_size))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, o)
        with torch.autocast(o.device, dtype=torch.bfloat16, enabled=o.dtype == "bf16"):
            loss = step_loss(ids, targets)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), o.clip))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        clock.mark()
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    tokens = o.batch_size * o.seq_len
    return [{"step": i + 1, "loss": loss.item(), "grad_norm": norm.item(), "lr": learning_rate(i, o), "tokens": tokens,
             "tokens_per_second": tokens / seconds, "step_seconds": seconds, "peak_memory_bytes": peak}
            for i, (loss, norm, seconds) in enumerate(zip(losses, norms, clock.seconds()))]


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", required=True, help="Hugging Face config.json")
    p.add_argument("--data", required=True, nargs="+", help="text files; tokens are bytes")
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--seq-len", type=int, default=128)
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--untimed-steps", type=int, default=10, help="at the beginning: compilation, allocation")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--warmup-steps", type=int, default=0)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--metrics", help="JSON lines, one per step")
    o = p.parse_args()
    if o.device == "cuda" and not torch.cuda.is_available():
        print("torch_llama: PyTorch sees no GPU; --device cpu runs without one", file=sys.stderr)
        raise SystemExit(2)
    if o.untimed_steps >= o.steps:
        p.error(f"--steps {o.steps} leaves none to be timed after --untimed-steps {o.untimed_steps}")
    return o


def main():
    o = arguments()
    if o.device == "cuda" and o.dtype == "bf16":
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            steps = train(o)
    else:
        steps = train(o)
    if o.metrics:
        pathlib.Path(o.metrics).write_text("".join(json.dumps(s) + "\n" for s in steps))
    program = f"PyTorch {'compiled' if o.compile else 'eager'}"
    print(metrics.TRAIN_HEAD)
    print(metrics.train_row(metrics.summary(program, o.model, o.batch_size, o.seq_len, steps, o.untimed_steps)))


if __name__ == "__main__":
    main()
