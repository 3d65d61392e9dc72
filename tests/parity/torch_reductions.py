#!/usr/bin/env python3
"""Reference values of reductions, statistics, order, scans and softmax, by PyTorch, for reductions_test.cpp.

    venv/bin/python tests/parity/torch_reductions.py     # writes ops_reductions.json beside itself; see torch_ops.py

A case is a function of ops/cards.h, its named values, its inputs, all outputs, and the gradients of the floating
inputs where the sum of output 0 times `weights` has one. NaN and infinities are text.
"""
import json
import math
import pathlib

import torch
import torch.nn.functional as F

nan, inf = math.nan, math.inf


def numbers(*shape, seed=0, scale=1.0):
    n = math.prod(shape)
    return torch.tensor([round(64 * scale * math.sin(1 + 2.3 * i + 0.37 * seed)) / 64 for i in range(n)], dtype=torch.float64).reshape(shape)


def f(*values):
    return torch.tensor(values, dtype=torch.float64)


def dims(a):
    return a["dim"] if "dim" in a else None


def reduction(function):
    return lambda x, **a: function(x, **({"dim": dims(a)} if "dim" in a else {}), **({"keepdim": a["keepdim"]} if "keepdim" in a else {}))


def over_all(function):  # functions that want a list of dimensions
    return lambda x, **a: function(x, dim=dims(a) if "dim" in a else tuple(range(x.dim())), keepdim=a.get("keepdim", False))


def prod(x, **a):
    for d in sorted((d % max(x.dim(), 1) for d in a.get("dim", range(x.dim()))), reverse=True):
        x = torch.prod(x, d, keepdim=a.get("keepdim", False))
    return torch.prod(x) if x.dtype == torch.bool else x


FUNCTIONS = {
    "sum": reduction(torch.sum), "mean": reduction(torch.mean), "prod": prod, "amax": over_all(torch.amax), "amin": over_all(torch.amin),
    "any": over_all(torch.any), "all": over_all(torch.all), "count_nonzero": lambda x, **a: torch.count_nonzero(x, **a),
    "argmax": lambda x, **a: torch.argmax(x, **a), "argmin": lambda x, **a: torch.argmin(x, **a),
    "var": lambda x, **a: torch.var(x, **{"dim": None, **a}), "std": lambda x, **a: torch.std(x, **{"dim": None, **a}),
    "norm": lambda x, p=2, **a: torch.linalg.vector_norm(x, float(p), **a), "logsumexp": over_all(torch.logsumexp),
    "cumsum": torch.cumsum, "sort": torch.sort, "argsort": torch.argsort, "topk": torch.topk,
    "softmax": torch.softmax, "log_softmax": torch.log_softmax,
    "layer_norm": lambda x, weight=None, bias=None, normalized_shape=(), eps=1e-5: F.layer_norm(x, normalized_shape, weight, bias, eps),
    "rms_norm": lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps),
}


def cases():
    x, ties, number = numbers(2, 3, 2, seed=1, scale=2), f([1, 3, 3, -2], [0, -0.0, 0, 0], [5, 5, 5, 5]), f(1.5).reshape(())
    special = f([1, nan, 3], [inf, 1, 2], [-inf, 1, -2], [-0.0, 0, -0.0], [nan, nan, nan], [-inf, -inf, -inf], [inf, inf, 1])
    zeros = f([2, 3, 4], [0, 3, 4], [0, 0, 4], [0, 0, 0])
    ids, flags = torch.tensor([[3, 0, 3], [-1, 7, 7]]), torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    for name in ("sum", "mean", "prod", "amax", "amin", "logsumexp", "var", "std", "norm"):
        for a in ({}, {"dim": [1]}, {"dim": [-1, 0], "keepdim": True}):
            yield name, (x,), a
        yield name, (ties,), {"dim": [1]}
        if name != "prod":  # with a zero anywhere PyTorch takes another way to the gradient of NaN
            yield name, (special,), {"dim": [1]}
        if name not in ("var", "std"):
            yield name, (number,), {"dim": [0]}
    for name in ("sum", "prod"):
        yield name, (ids,), {"dim": [1]}
        yield name, (flags,), {"dim": [1]}
        yield name, (torch.zeros(2, 0, dtype=torch.float64),), {"dim": [1]}
    yield "prod", (zeros,), {"dim": [1]}
    yield "mean", (torch.zeros(2, 0, dtype=torch.float64),), {"dim": [1]}
    yield "var", (torch.zeros(2, 0, dtype=torch.float64),), {"dim": [1]}
    yield "logsumexp", (torch.zeros(2, 0, dtype=torch.float64),), {"dim": [1]}
    yield "amax", (torch.zeros(0, 3, dtype=torch.float64),), {"dim": [1]}
    for name in ("amax", "amin", "any", "all", "count_nonzero"):
        for t in (ids, flags):
            yield name, (t,), {"dim": [1]}
        yield name, (ids,), {}
    for name in ("any", "all"):
        yield name, (special,), {"dim": [1], "keepdim": True}
        yield name, (torch.zeros(2, 0, dtype=torch.bool),), {"dim": [1]}
    for name in ("argmax", "argmin"):
        for t in (x, ties, special, ids):
            yield name, (t,), {}
            yield name, (t,), {"dim": 0}
            yield name, (t,), {"dim": -1, "keepdim": True}
        yield name, (number,), {"dim": -1}
        yield name, (torch.zeros(0, 3, dtype=torch.float64),), {"dim": 1}
    for correction in (0, 2, 2.5):
        yield "var", (x,), {"dim": [1], "correction": correction}
    yield "var", (numbers(3, 1, seed=2),), {"dim": [1]}
    yield "std", (numbers(3, 5, seed=2) * 1e-3 + 1000,), {"dim": [1]}
    yield "std", (f([3, 3, 3]),), {}
    yield "var", (torch.zeros(2, 0, dtype=torch.float64),), {"dim": [1], "correction": -1}
    for p in (0, 0.5, 1, 1.5, 3, -1, -2.5, inf, -inf):
        for t in (x, ties):
            yield "norm", (t,), {"p": p, "dim": [1]}
    yield "norm", (torch.zeros(2, 0, dtype=torch.float64),), {"dim": [1]}
    for t in (x, special[:3]):
        for d in (0, -1):
            for name in ("cumsum", "softmax", "log_softmax"):
                yield name, (t,), {"dim": d}
            for down in (False, True):
                yield "sort", (t,), {"dim": d, "descending": down, "stable": True}
    yield "softmax", (f([-inf, -inf], [1000, -1000]),), {"dim": 1}
    yield "log_softmax", (f([-inf, -inf], [1000, -1000]),), {"dim": 1}
    for name in ("softmax", "log_softmax", "cumsum"):
        yield name, (number,), {"dim": 0}
        yield name, (torch.zeros(2, 0, dtype=torch.float64),), {"dim": 1}
    yield "argsort", (ties,), {"dim": -1, "descending": True, "stable": True}
    yield "cumsum", (ids,), {"dim": 0}
    yield "cumsum", (flags,), {"dim": 1}
    yield "sort", (ids,), {"dim": 1, "descending": True, "stable": True}
    yield "sort", (flags,), {"dim": 1, "stable": True}
    yield "sort", (number,), {"dim": 0}
    yield "topk", (x,), {"k": 2}
    yield "topk", (x,), {"k": 2, "dim": 1, "largest": False}
    yield "topk", (special[:4],), {"k": 1, "dim": 1}
    yield "topk", (x,), {"k": 0, "dim": 1}
    yield "topk", (number,), {"k": 1}
    w, b = numbers(3, 2, seed=3), numbers(3, 2, seed=4)
    yield "layer_norm", (x, w, b), {"normalized_shape": [3, 2]}
    yield "layer_norm", (x, w[0].clone(), b[0].clone()), {"normalized_shape": [2], "eps": 0.01}
    yield "layer_norm", (x, w[0].clone()), {"normalized_shape": [2]}
    yield "layer_norm", (x,), {"normalized_shape": [2]}
    yield "layer_norm", (f([2, 2]), w[0].clone(), b[0].clone()), {"normalized_shape": [2]}
    yield "layer_norm", (torch.zeros(0, 2, dtype=torch.float64), w[0].clone(), b[0].clone()), {"normalized_shape": [2]}
    yield "rms_norm", (x, w[0].clone()), {"eps": 1e-5}


def text(v, digits=8):
    if isinstance(v, (bool, int)):
        return int(v)
    if math.isnan(v) or math.isinf(v):
        return str(v)
    v = float(f"{v:.{digits}g}")
    return int(v) if v == int(v) and abs(v) < 1e6 else v


def tensor(t, digits=8):
    names = {torch.float64: "float", torch.int64: "i64", torch.bool: "bool"}
    return {"dtype": names[t.dtype], "shape": list(t.shape), "values": [text(v, digits) for v in t.flatten().tolist()]}


def case(name, inputs, attributes):
    inputs = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    outputs = FUNCTIONS[name](*inputs, **attributes)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    c = {"function": name, "attributes": {k: text(v) if isinstance(v, float) else v for k, v in attributes.items()},
         "inputs": [tensor(t.detach(), 17) for t in inputs], "outputs": [tensor(t.detach()) for t in outputs]}
    if outputs[0].requires_grad and not (name == "norm" and attributes.get("p") == 0):
        weights = numbers(*outputs[0].shape, seed=11)
        outputs[0].backward(weights)
        c["weights"] = tensor(weights)
        c["gradients"] = [tensor(t.grad) for t in inputs if t.is_floating_point()]
    return c


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = [case(*c) for c in cases()]
    file = pathlib.Path(__file__).resolve().parent / "ops_reductions.json"
    file.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in table) + "\n]\n")
    print(f"{len(table)} cases, {file.stat().st_size} bytes")
