#!/usr/bin/env python3
"""Reference values of the ops that move elements, by PyTorch, for shape_test.cpp: run as torch_ops.py, beside it.

ops_shape.json is a list of cases: the function and its named values; the inputs; the outputs; for floating outputs the
gradients that were given (null: that output is not used); and the gradient of each floating input. All in float64, exact; "nan", "inf", "-inf" and "-0" are text.
"""
import json
import math
import pathlib

import torch
import torch.nn.functional as F

import torch_ops
from torch_ops import exactly, ids


def numbers(*shape, seed=0):
    return 64 * torch_ops.numbers(*shape, seed=seed)  # integers, so that sums are exact

OPS = {
    "view": lambda x, shape: x.view(shape), "reshape": lambda x, shape: x.reshape(shape),
    "flatten": torch.flatten, "unflatten": lambda x, dim, sizes: x.unflatten(dim, sizes),
    "squeeze": lambda x, dim=None: x.squeeze() if dim is None else x.squeeze(tuple(dim) if isinstance(dim, list) else dim),
    "unsqueeze": torch.unsqueeze, "permute": torch.permute, "transpose": torch.transpose,
    "expand": lambda x, shape: x.expand(shape), "repeat": lambda x, repeats: x.repeat(repeats),
    "slice": torch.ops.aten.slice, "narrow": torch.narrow, "select": torch.select,
    "cat": lambda *x, dim=0: torch.cat(x, dim), "stack": lambda *x, dim=0: torch.stack(x, dim),
    "split": lambda x, split_size=None, split_sizes=None, dim=0: torch.split(x, split_size if split_sizes is None else split_sizes, dim),
    "chunk": torch.chunk, "flip": torch.flip, "roll": torch.roll, "tril": torch.tril, "triu": torch.triu,
    "index_select": lambda x, index, dim: x.index_select(dim, index),
    "index_add": lambda x, index, source, dim: x.index_add(dim, index, source),
    "gather": lambda x, index, dim: x.gather(dim, index),
    "scatter_add": lambda x, index, source, dim: x.scatter_add(dim, index, source),
    "one_hot": F.one_hot,
}


def cases():
    a, cube = numbers(4, 6), numbers(2, 3, 4, seed=1)
    special = exactly([math.nan, math.inf, -0.0], [-math.inf, 1, 2])
    scalar, empty = exactly(3).reshape(()), numbers(0, 3)
    integers, flags = ids((2, 3), 4, -1, 0, 7, 7, 2), ids((2, 3), 1, 0, 0, 1, 1, 0).bool()
    yield "view", (a,), {"shape": [2, 2, -1]}
    yield "view", (empty,), {"shape": [3, 0, 2]}
    yield "reshape", (cube,), {"shape": [4, 6]}
    for x, start, end in ((cube, 0, -1), (cube, 1, 2), (cube, -2, -2), (scalar, 0, -1), (empty, 0, 1)):
        yield "flatten", (x,), {"start_dim": start, "end_dim": end}
    yield "unflatten", (a,), {"dim": -1, "sizes": [2, -1]}
    yield "unflatten", (numbers(0, 4),), {"dim": 1, "sizes": [2, 2]}
    ones = numbers(1, 3, 1, 2)
    yield "squeeze", (ones,), {}
    for dim in (0, -2, 1, [0, 1, 2]):
        yield "squeeze", (ones,), {"dim": dim}
    yield "squeeze", (scalar,), {"dim": 0}
    for dim in (0, 2, -1):
        yield "unsqueeze", (a,), {"dim": dim}
    yield "unsqueeze", (scalar,), {"dim": -1}
    yield "permute", (cube,), {"dims": [-1, 0, 1]}
    yield "transpose", (cube,), {"dim0": 0, "dim1": -1}
    yield "transpose", (scalar,), {"dim0": 0, "dim1": -1}
    yield "expand", (numbers(3, 1),), {"shape": [2, -1, 4]}
    yield "expand", (numbers(3, 1),), {"shape": [3, 0]}
    for x, repeats in ((a, [1, 1]), (a, [2, 3]), (numbers(3), [2, 2]), (scalar, [3]), (a, [0, 2]), (empty, [2, 1]), (flags, [1, 2])):
        yield "repeat", (x,), {"repeats": repeats}
    for dim, start, end, step in ((1, 1, 5, 1), (1, -3, None, 1), (-1, None, -2, 2), (0, 3, 1, 1), (1, -99, 99, 4), (0, 99, 100, 1), (1, 0, 6, 1), (1, 5, 6, 9)):
        yield "slice", (a,), {"dim": dim, "start": start, "end": end, "step": step}
    yield "slice", (empty,), {"dim": 0, "start": 0, "end": 2, "step": 1}
    yield "narrow", (a,), {"dim": 1, "start": -2, "length": 2}
    yield "narrow", (a,), {"dim": 0, "start": 4, "length": 0}
    for x, dim, index in ((a, 0, 1), (a, -1, -6), (numbers(3), 0, 2), (flags, 1, 0), (integers, 0, -1)):
        yield "select", (x,), {"dim": dim, "index": index}
    yield "cat", (numbers(2, 3), numbers(1, 3, seed=1), numbers(0, 3)), {}
    yield "cat", (special, special[:, :1]), {"dim": -1}
    yield "cat", (flags, flags), {"dim": 1}
    yield "stack", (numbers(2, 3), numbers(2, 3, seed=1)), {"dim": -1}
    yield "stack", (scalar, scalar), {}
    yield "stack", (integers, integers), {"dim": 1}
    yield "split", (a,), {"split_size": 4, "dim": 1}, [1]
    yield "split", (a,), {"split_size": 3}
    yield "split", (a,), {"split_sizes": [1, 0, 3, 2], "dim": -1}, [0, 2]
    yield "split", (empty,), {"split_size": 2}
    yield "split", (empty,), {"split_size": 0}
    for x, chunks in ((a, 3), (a, 9), (empty, 2), (numbers(5), 4)):
        yield "chunk", (x,), {"chunks": chunks}, [0]
    for x, dims in ((cube, [0, -1]), (cube, []), (special, [1]), (empty, [0]), (scalar, []), (scalar, [-1]), (flags, [0])):
        yield "flip", (x,), {"dims": dims}
    for x, values in ((a, {"shifts": [2]}), (a, {"shifts": [-9, 1], "dims": [0, 1]}), (cube, {"shifts": [1, 1], "dims": [-1, -1]}), (empty, {"shifts": [1], "dims": [0]}), (scalar, {"shifts": [1]})):
        yield "roll", (x,), values
    for op in ("tril", "triu"):
        for x, diagonal in ((a, 0), (cube, 1), (a, -2), (a, 99), (a, -99), (empty, 0), (special, 0), (integers, 0), (flags, -1)):
            yield op, (x,), {"diagonal": diagonal}
    index = ids((5,), 3, 0, 3, 1, 3)
    yield "index_select", (a, index), {"dim": 0}
    yield "index_select", (cube, ids((2,), 2, 2)), {"dim": -2}
    yield "index_select", (a, ids((0,))), {"dim": 1}
    yield "index_select", (special, ids((3,), 1, 0, 0)), {"dim": 0}
    yield "index_select", (flags, ids((3,), 1, 0, 0)), {"dim": 1}
    yield "index_add", (a, index, numbers(5, 6, seed=3)), {"dim": 0}
    yield "index_add", (cube, ids((2,), 2, 2), numbers(2, 2, 4)), {"dim": 1}
    yield "index_add", (integers, ids((2,), 1, 1), integers), {"dim": 0}
    whole, part = ids((4, 2), 5, 0, 1, 1, 3, 5, 0, 0), ids((3, 2), 2, 2, 0, 1, 2, 3)
    yield "gather", (a, whole), {"dim": 1}
    yield "gather", (a, part), {"dim": 0}
    yield "gather", (special, ids((2, 1), 0, 2)), {"dim": -1}
    yield "gather", (a, ids((0, 2))), {"dim": 0}
    yield "gather", (flags, ids((1, 2), 0, 1)), {"dim": 0}
    yield "gather", (scalar, ids((), 0)), {"dim": -1}
    yield "scatter_add", (scalar, ids((), 0), numbers(1, seed=3).reshape(())), {"dim": 0}
    yield "scatter_add", (a, whole, numbers(4, 2, seed=3)), {"dim": 1}
    yield "scatter_add", (a, part, numbers(3, 2, seed=3)), {"dim": 0}
    yield "scatter_add", (numbers(2, 2), ids((1, 3), 0, 0, 1), numbers(1, 3, seed=4)), {"dim": 1}
    yield "scatter_add", (a, ids((0, 2)), numbers(0, 2)), {"dim": 0}
    yield "scatter_add", (integers, ids((2, 2), 1, 0, 1, 1), integers[:, :2]), {"dim": 0}
    for x in (ids((2, 2), 0, 3, 1, 1), ids((0,)), ids((), 4)):
        yield "one_hot", (x,), {"num_classes": 5}


def tensor(t):
    if t is None:
        return None
    def number(v):
        if isinstance(v, float) and (not math.isfinite(v) or (v == 0 and math.copysign(1, v) < 0)):
            return {"-0.0": "-0"}.get(str(v), str(v))
        return int(v) if v == int(v) else v
    kind = {torch.float64: "f64", torch.int64: "i64", torch.bool: "bool"}[t.dtype]
    return {"dtype": kind, "shape": list(t.shape), "values": [number(v) for v in t.flatten().tolist()]}


def case(op, inputs, values, used=None):
    inputs = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
    out = OPS[op](*inputs, **values)
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    given = []
    for i, y in enumerate(outs):
        use = y.is_floating_point() and (used is None or i in used)
        given.append(numbers(*y.shape, seed=11 + i) if use and y.dim() else exactly(1).reshape(()) if use else None)
    pairs = [(y, g) for y, g in zip(outs, given) if g is not None]
    if pairs:
        torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
    return {"op": op, "values": {k: v for k, v in values.items() if v is not None}, "inputs": [tensor(t.detach()) for t in inputs],
            "outputs": [tensor(y.detach()) for y in outs], "given": [tensor(g) for g in given],
            "gradients": [tensor(torch.zeros_like(t) if t.grad is None else t.grad) if t.is_floating_point() else None for t in inputs]}


if __name__ == "__main__":
    table = [case(*c) for c in cases()]
    file = pathlib.Path(__file__).resolve().parent / "ops_shape.json"
    file.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in table) + "\n]\n")
    print(f"{len(table)} cases")
