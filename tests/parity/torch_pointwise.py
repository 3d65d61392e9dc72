#!/usr/bin/env python3
"""Reference values of element-wise functions, by PyTorch, for pointwise_test.cpp.

Needs what torch_ops.py needs, and writes ops_pointwise.json beside itself, the same way:

    venv/bin/python tests/parity/torch_pointwise.py

A case is a function and its attributes; inputs, exact in float32; the output; and, where it is floating, the gradient of each
floating input, given numbers(..., seed=11) as the output's, by a float64 run. Infinities and NaN are text.
"""
import json
import math
import pathlib

import torch
import torch.nn.functional as F

from torch_ops import exactly, ids, numbers

nan, inf = math.nan, math.inf
SPECIAL = exactly(nan, inf, -inf, -0.0, 0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-6, -1e-6)
EMPTY = torch.zeros(0, 3, dtype=torch.float64)


def scalar(f):
    return lambda x, *y, value=None: f(x, *y) if value is None else f(x, value)


OPS = {name: getattr(torch, name) for name in """neg abs sign square exp expm1 log log1p sqrt rsqrt reciprocal sin cos erf
    floor ceil round tanh sigmoid relu clamp isfinite isnan isinf logical_not logical_and logical_or logical_xor where lerp
    masked_fill""".split()}
OPS |= {name: scalar(getattr(torch, name)) for name in "add sub mul div eq ne lt le gt ge remainder fmod".split()}
OPS |= {
    "maximum": lambda x, y=None, value=None: torch.maximum(x, torch.tensor(value, dtype=x.dtype) if y is None else y),
    "minimum": lambda x, y=None, value=None: torch.minimum(x, torch.tensor(value, dtype=x.dtype) if y is None else y),
    "rsub": lambda x, value: value - x,
    "pow": lambda x, y=None, exponent=None, base=None: torch.pow(x if base is None else base, x if base is not None else y if exponent is None else exponent),
    "silu": F.silu, "gelu": F.gelu, "softplus": F.softplus,
    "addcmul": lambda x, a, b, value=1: torch.addcmul(x, a, b, value=value),
}


def cases():
    for op in "neg abs sign square exp sqrt rsqrt log reciprocal floor ceil round tanh sigmoid relu erf expm1 log1p sin cos isfinite isnan isinf".split():
        yield op, (SPECIAL,), {}
    for op in ("neg", "exp", "floor", "isnan"):
        yield op, (EMPTY,), {}
    for op in ("neg", "abs", "sign", "square"):
        yield op, (ids((4,), -3, 0, 7, 2**40),), {}
    for x in (exactly(0.25, 3, -8192.5, 31.4159271717071533203125, 1e10, -3e5),):
        yield "sin", (x,), {}
        yield "cos", (x,), {}
    smooth = exactly(nan, -0.0, 0.5, -3, 3, 19, -19, 21, 30, 100, -100, 0.03125)
    yield "silu", (smooth,), {}
    for how in ("none", "tanh"):
        yield "gelu", (smooth,), {"approximate": how}
    for how in ({}, {"beta": 2.0}, {"beta": 0.5, "threshold": 5.0}, {"beta": -1.0}):
        yield "softplus", (smooth,), how
    for bounds in ({"min": -1.0, "max": 1.0}, {"min": 0.5}, {"max": -0.5}, {"min": 2.0, "max": 1.0}, {"min": inf}, {"min": nan}):
        yield "clamp", (SPECIAL,), bounds
    yield "clamp", (ids((5,), -3, 0, 7, 2, 9),), {"min": 0, "max": 7}

    left, right = numbers(2, 1, 3, seed=1, scale=4), numbers(2, 1, seed=2, scale=4)
    a = exactly(1, nan, 2, nan, inf, -inf, 3, -2, 0.5)
    b = exactly(1, 1, nan, nan, inf, 1, -1, -2, 0.75)
    for op in "add sub mul div maximum minimum eq ne lt le gt ge remainder fmod".split():
        yield op, (left, right), {}
        yield op, (a, b), {}
        yield op, (left, torch.zeros(0, 3, dtype=torch.float64)), {}
        yield op, (a,), {"value": -1.5}
        if op != "div":
            yield op, (ids((6,), -7, 7, -7, 7, 6, 0), ids((6,), 3, 3, -3, -3, 3, 5)), {}
            yield op, (ids((4,), -7, 7, 0, 2**40),), {"value": -3}
    yield "remainder", (exactly(1, -1, 1, -1, 0, 2, -2), exactly(inf, inf, -inf, -inf, -inf, 0, 0)), {}
    yield "rsub", (a,), {"value": 1.0}
    yield "pow", (exactly(0, 0, -2, 2, 0, -1, -2, 1, nan, 2), exactly(0, 2, 2, 0, -1, 0.5, 3, nan, 0, -1.5)), {}
    yield "pow", (numbers(3, 1, seed=3).abs() + 0.25, right.flatten()), {}
    for exponent in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 1.75, -3):
        yield "pow", (exactly(0, 0.25, 2, 3, 100, inf, nan),), {"exponent": exponent}
    for exponent in (0, 1, 2, 3, -1, -2, 4):
        yield "pow", (exactly(-2, -0.5, -3),), {"exponent": exponent}
    for base in (2.0, 0.0, 1.0, 0.5):
        yield "pow", (exactly(0, 1, -2, 3.5, nan),), {"base": base}

    mask, other = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    for op in ("logical_and", "logical_or", "logical_xor"):
        yield op, (mask, other), {}
    yield "logical_not", (mask,), {}
    yield "where", (mask, exactly(1, nan, 3, 4), exactly(nan, 6, 7, inf)), {}
    yield "where", (mask, numbers(3, 1), numbers(4, seed=1)), {}
    yield "where", (mask, ids((4,), 1, 2, 3, 4), ids((1,), 9)), {}
    for value in (0.0, -inf, 2.5):
        yield "masked_fill", (exactly([1, 2, nan, 4], [-1, inf, 3, 0]), mask), {"value": value}
    for weight in (0.0, 0.25, 0.5, 1.0, 1.5):
        yield "lerp", (exactly(1, 3, -2), exactly(4, 0.1, 7)), {"weight": weight}
    yield "lerp", (numbers(2, 3), numbers(3, seed=1), numbers(2, 1, seed=2)), {}
    yield "addcmul", (numbers(2, 3), numbers(3, seed=1), numbers(2, 1, seed=2)), {"value": -1.5}
    yield "addcmul", (ids((2,), 1, 2), ids((2,), 3, 4), ids((1,), 5)), {}


def number(v):
    return str(v) if isinstance(v, float) and not math.isfinite(v) else v


def tensor(t):
    kind = "float" if t.is_floating_point() else "bool" if t.dtype == torch.bool else "int"
    values = [number(float(f"{v:.12g}")) if kind == "float" else int(v) for v in t.flatten().tolist()]
    return {"dtype": kind, "shape": list(t.shape), "values": [int(v) if isinstance(v, float) and v == int(v) and abs(v) < 1e6 and math.copysign(1, v) > 0 else v for v in values]}


def case(op, inputs, attributes):
    inputs = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    for t in inputs:  # the same in float32
        if t.is_floating_point():
            t.data = t.data.float().double()
    given = [tensor(t) | {"values": [number(v) if t.is_floating_point() else int(v) for v in t.flatten().tolist()]} for t in inputs]
    out = OPS[op](*inputs, **attributes)
    result = {"function": op, "attributes": {k: number(v) for k, v in attributes.items()}, "inputs": given, "output": tensor(out.detach())}
    if out.requires_grad:
        out.backward(numbers(*out.shape, seed=11))
        result |= {"gradients": [tensor(t.grad) if t.grad is not None else None for t in inputs]}
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = [case(*c) for c in cases()]
    file = pathlib.Path(__file__).resolve().parent / "ops_pointwise.json"
    file.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in table) + "\n]\n")
    print(f"{len(table)} cases, {file.stat().st_size} bytes")
