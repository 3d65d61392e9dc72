#!/usr/bin/env python3
"""Reference values of single ops, by PyTorch, for parity_test.cpp.

Needs Python 3.9 and PyTorch 2.5 or newer; the CPU is enough:

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/parity/torch_ops.py     # writes ops.json beside itself

ops.json is a list of cases: the op and its attributes; inputs (multiples of 1/64, so the same in float32 and float64;
integers are ids); the output; the gradient `of_output` that was given; and the gradient of each floating input. Results are
a float64 run's, to 12 digits; `float32_error` is how far PyTorch's own float32 run is from it, norm over norm, the largest of all results.
"""
import json
import math
import pathlib

import torch
import torch.nn.functional as F


def numbers(*shape, seed=0, scale=1.0):
    n = math.prod(shape)
    return torch.tensor([round(64 * scale * math.sin(1 + 2.3 * i + 0.37 * seed)) / 64 for i in range(n)], dtype=torch.float64).reshape(shape)


def exactly(*values):
    return torch.tensor(values, dtype=torch.float64)


def ids(shape, *values):
    return torch.tensor(values, dtype=torch.int64).reshape(shape)


def cross_entropy(logits, target, ignore_index, reduction):  # classes last
    rows = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=ignore_index, reduction=reduction)
    return rows.reshape(target.shape) if reduction == "none" else rows


def attention(q, k, v, causal=False, scale=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)


OPS = {
    "cross_entropy": cross_entropy,
    "scaled_dot_product_attention": attention,
    "embedding": F.embedding,
    "rms_norm": lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps),
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "linear": F.linear, "matmul": torch.matmul,
    "gelu": F.gelu, "silu": F.silu, "relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "abs": torch.abs, "reciprocal": torch.reciprocal,
    "add": torch.add, "mul": torch.mul, "div": torch.div,
}


def cases():
    logits, target = numbers(2, 3, 5, scale=3), ids((2, 3), 0, 4, 2, 1, 2, 3)
    for reduction in ("none", "sum", "mean"):
        yield "cross_entropy", (logits, target), {"ignore_index": -100, "reduction": reduction}
        yield "cross_entropy", (logits, target), {"ignore_index": 2, "reduction": reduction}  # a class, here
    padded = ids((2, 3), 0, -100, 2, -100, -100, 3)
    yield "cross_entropy", (logits, padded), {"ignore_index": -100, "reduction": "mean"}
    yield "cross_entropy", (logits, ids((2, 3), *[-100] * 6)), {"ignore_index": -100, "reduction": "sum"}
    yield "cross_entropy", (numbers(3, 40, seed=2, scale=90), ids((3,), 0, 39, 17)), {"ignore_index": -100, "reduction": "none"}  # large
    sure = exactly(100, 90, 87, 20, 10, 7).reshape(2, 3)  # a small loss of large logits; a gradient of 0, as it is mostly rounding
    yield "cross_entropy", (sure, ids((2,), 0, 0)), {"ignore_index": -100, "reduction": "none"}, 0.0

    grouped = numbers(2, 4, 5, 4, seed=1, scale=2), numbers(2, 2, 5, 4, seed=2, scale=2), numbers(2, 2, 5, 4, seed=3)
    yield "scaled_dot_product_attention", grouped, {"causal": True}
    yield "scaled_dot_product_attention", grouped, {"causal": False}
    yield "scaled_dot_product_attention", grouped, {"causal": True, "scale": 0.75}
    alone = numbers(1, 3, 1, 2), numbers(1, 3, 1, 2, seed=1), numbers(1, 3, 1, 2, seed=2)
    yield "scaled_dot_product_attention", alone, {"causal": True}
    one_kv = numbers(1, 6, 3, 4, seed=4, scale=12), numbers(1, 1, 7, 4, seed=5), numbers(1, 1, 7, 4, seed=6)  # multi-query, more keys
    yield "scaled_dot_product_attention", one_kv, {"causal": False}
    yield "scaled_dot_product_attention", one_kv, {"causal": True}  # from the top left
    long = numbers(1, 2, 67, 2, seed=7, scale=3), numbers(1, 1, 67, 2, seed=8, scale=3), numbers(1, 1, 67, 2, seed=9)  # over one block
    yield "scaled_dot_product_attention", long, {"causal": True}

    yield "embedding", (ids((2, 4), 3, 0, 3, 6, 3, 1, 0, 3), numbers(7, 3, seed=1)), {}
    yield "rms_norm", (numbers(2, 3, 10, seed=1, scale=2), numbers(10, seed=2)), {"eps": 1e-5}
    yield "rms_norm", (numbers(4, 7, seed=3, scale=0.1), numbers(7, seed=4)), {"eps": 0.01}
    yield "rms_norm", (torch.zeros(1, 4, dtype=torch.float64), numbers(4)), {"eps": 1e-6}
    yield "swiglu", (numbers(3, 7, seed=1, scale=5), numbers(3, 7, seed=2)), {}
    yield "linear", (numbers(2, 3, 5, seed=1), numbers(4, 5, seed=2), numbers(4, seed=3)), {}
    yield "linear", (numbers(3, 33, seed=1), numbers(2, 33, seed=2)), {}
    yield "matmul", (numbers(2, 3, 5, seed=1), numbers(5, 4, seed=2)), {}
    yield "matmul", (numbers(2, 1, 3, 5, seed=1), numbers(4, 5, 2, seed=2)), {}

    near, left, right = exactly(-3, -2, -1, -0.5, -1 / 64, 0, 1 / 64, 0.5, 1, 2, 3), exactly(-5.5, -8, -12, -30, -120), exactly(5.5, 8, 12, 30, 120)
    for op in ("gelu", "silu", "relu", "sigmoid", "tanh", "abs"):
        for x in (near, left, right):
            yield op, (x,), {}
    for x in (exactly(-3, -1 / 64, 0, 0.5, 3), exactly(-80), exactly(80)):
        yield "exp", (x,), {}
    for op in ("log", "sqrt", "rsqrt", "reciprocal"):
        yield op, (exactly(1 / 64, 0.5, 1, 1.25, 3, 100),), {}
    for op in ("add", "mul", "div"):
        yield op, (numbers(2, 1, 3, seed=1), exactly([1, -0.5], [2, 4], [-1, 3])[:, :1]), {}


def run(op, inputs, attributes, scale, dtype):
    """The output, then the gradients of the floating inputs; and what was given as the output's gradient."""
    inputs = [t.detach().to(dtype, copy=True).requires_grad_() if t.is_floating_point() else t for t in inputs]
    out = OPS[op](*inputs, **attributes)
    of_output = (numbers(*out.shape, seed=11) if out.dim() else torch.tensor(1.0, dtype=torch.float64)) * scale
    out.backward(of_output.to(dtype))
    return [out.detach()] + [t.grad for t in inputs if t.is_floating_point()], of_output


def tensor(t):
    values = [float(f"{v:.12g}") for v in t.flatten().tolist()]
    return {"shape": list(t.shape), "values": [int(v) if v == int(v) and abs(v) < 1e6 else v for v in values]}


def case(op, inputs, attributes, scale=1.0):
    results, of_output = run(op, inputs, attributes, scale, torch.float64)
    rounded, _ = run(op, inputs, attributes, scale, torch.float32)
    errors = [((a.double() - b).norm() / b.norm()).item() if b.norm() > 0 else a.double().norm().item() for a, b in zip(rounded, results)]
    gradients = iter(results[1:])
    return {
        "op": op, "attributes": attributes,
        "inputs": [{"dtype": "float" if t.is_floating_point() else "int", **tensor(t)} for t in inputs],
        "output": tensor(results[0]), "of_output": tensor(of_output),
        "gradients": [tensor(next(gradients)) if t.is_floating_point() else None for t in inputs],
        "float32_error": float(f"{max(errors):.3g}"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = [case(*c) for c in cases()]
    file = pathlib.Path(__file__).resolve().parent / "ops.json"
    file.write_text("[\n" + ",\n".join(json.dumps(c) for c in table) + "\n]\n")
    worst = max(table, key=lambda c: c["float32_error"])
    print(f"{len(table)} cases; PyTorch's float32 run differs by up to {worst['float32_error']:.1e} ({worst['op']})")
