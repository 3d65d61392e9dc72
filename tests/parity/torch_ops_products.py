#!/usr/bin/env python3
"""Reference values of products, attention with masks, and losses, by PyTorch, for products_test.cpp.

As torch_ops.py (see there for what a case is); writes ops_products.json beside itself. Names and attributes are those of
ops/core/function.cpp; inputs may be bool.
"""
import json
import pathlib

import torch
import torch.nn.functional as F

import torch_ops
from torch_ops import ids, numbers


def cross_entropy(logits, target, class_dim=-1, **options):
    return F.cross_entropy(logits.movedim(class_dim, 1) if logits.dim() > 1 else logits, target, **options)


def naive_recurrence(q, k, v, g, state=None, scale=None):
    """Gated linear attention, one token after another: q, k, g [batch, sequence, heads, d], v [.., e], state [b, h, d, e]."""
    batch, length, heads, d = q.shape
    state = q.new_zeros(batch, heads, d, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(length):
        state = g[:, t].exp()[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhd,bhde->bhe", q[:, t] * (scale or d**-0.5), state))
    return torch.stack(outputs, 1)


def causal_convolution(x, weight):
    channels, width = weight.shape
    return F.conv1d(x.mT, weight[:, None], padding=width - 1, groups=channels)[..., : x.shape[1]].mT


torch_ops.OPS.update({
    "einsum": lambda *operands, equation: torch.einsum(equation, *operands),
    "bmm": torch.bmm,
    "linear_gelu": lambda x, weight, bias=None: F.gelu(F.linear(x, weight, bias), approximate="tanh"),
    "cross_entropy": cross_entropy,
    "mse_loss": F.mse_loss,
    "gated_linear_attention": naive_recurrence,
    "causal_convolution": causal_convolution,
    "scaled_dot_product_attention": lambda q, k, v, mask=None, **options: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, **options),
})


def cases():
    a, b = numbers(2, 3, 4), numbers(2, 4, 2, seed=1)
    yield "bmm", (a, b), {}
    yield "bmm", (numbers(2, 0, 4), b), {}
    yield "linear_gelu", (numbers(2, 2, 5, seed=1), numbers(3, 5, seed=2, scale=2), numbers(3, seed=3)), {}
    yield "linear_gelu", (numbers(2, 0), numbers(3, 0)), {}
    for x, y in ((5,), (5,)), ((5,), (5, 2)), ((3, 5), (5,)), ((3,), (2, 3, 2)), ((2, 3, 4), (4,)), ((2, 1, 2, 3), (2, 3, 2)), ((1,), (1,)), ((3, 0), (0,)):
        yield "matmul", (numbers(*x), numbers(*y, seed=1)), {}
    for equation, shapes in (
        ("ij,jk->ik", ((3, 5), (5, 4))), ("ij,jk", ((3, 5), (5, 4))), ("bij,bkj->bki", ((2, 3, 2), (2, 4, 2))),
        ("bshd,bthd->bhst", ((2, 3, 2, 2), (2, 2, 2, 2))), ("bhst,bthd->bshd", ((2, 2, 2, 3), (2, 3, 2, 2))),
        ("...ij,...jk->...ik", ((2, 1, 2, 3), (3, 3, 2))), ("i...,j...->...", ((2, 3), (4, 3))), ("ij...,jk", ((2, 3, 2), (3, 4))),
        ("ab,bc,cd->ad", ((2, 3), (3, 4), (4, 2))), ("ab,ac,ad->bcd", ((3, 2), (3, 3), (3, 2))), ("a,b,c", ((2,), (3,), (2,))),
        ("ij->ji", ((3, 4),)), ("ijk->j", ((2, 3, 4),)), ("ij,kl->l", ((3, 2), (2, 4))), ("i,i->", ((5,), (5,))), ("Ab,bC", ((2, 3), (3, 2))),
        ("ij,ij->ij", ((3, 1), (3, 4))), ("ij,jk->ik", ((2, 0), (0, 3))), ("ij,j->i", ((1, 1), (1,))),
    ):
        yield "einsum", tuple(numbers(*s, seed=i) for i, s in enumerate(shapes)), {"equation": equation}

    q, k, v = numbers(2, 2, 2, 2, seed=1, scale=2), numbers(2, 1, 3, 2, seed=2, scale=2), numbers(2, 1, 3, 2, seed=3)
    for shape in ((2, 2, 2, 3), (2, 3), (3,), (2, 1, 1, 3), (1, 2, 1, 3)):
        yield "scaled_dot_product_attention", (q, k, v, numbers(*shape, seed=4, scale=2)), {}
    yield "scaled_dot_product_attention", (q, k, v, numbers(2, 3, seed=4, scale=2)), {"scale": 0.75}
    hidden = numbers(2, 1, 2, 3) > -0.4
    hidden[1, 0, 1] = False  # a row that sees nothing
    yield "scaled_dot_product_attention", (q, k, v, hidden), {}
    yield "scaled_dot_product_attention", (q, k, v, numbers(2, 3) > 0), {"scale": 0.25}
    yield "scaled_dot_product_attention", (q, k, v), {"is_causal": True, "scale": 0.75}

    logits, target = numbers(2, 5, 2, scale=3), ids((2, 2), 0, 4, -100, 3)
    for reduction in ("none", "sum", "mean"):
        yield "cross_entropy", (logits, target), {"class_dim": 1, "reduction": reduction}
        yield "cross_entropy", (logits.movedim(1, -1), target), {"reduction": reduction, "label_smoothing": 0.1}
        yield "mse_loss", (numbers(2, 3), numbers(2, 3, seed=1)), {"reduction": reduction}
    yield "cross_entropy", (logits, ids((2, 2), 0, 4, 4, 3)), {"class_dim": 1, "label_smoothing": 0.3, "ignore_index": 4}
    yield "cross_entropy", (numbers(2, 3, 2, 2), ids((2, 2, 2), 0, 1, 2, 2, 1, 0, 0, 1)), {"class_dim": 1}
    yield "cross_entropy", (numbers(2, 7), ids((2,), 6, 0)), {"label_smoothing": 1.0}
    yield "cross_entropy", (numbers(5, scale=90), ids((), 2)), {"label_smoothing": 0.5}
    yield "mse_loss", (numbers(0, 3), numbers(0, 3)), {"reduction": "sum"}

    keys, values = [2, 5, 2, 3], [2, 5, 2, 4]
    gated = numbers(*keys, seed=1), numbers(*keys, seed=2), numbers(*values, seed=3), -numbers(*keys, seed=4, scale=2).abs()
    yield "gated_linear_attention", gated, {}
    yield "gated_linear_attention", (*gated, numbers(2, 2, 3, 4, seed=5)), {"scale": 0.75}
    over_a_chunk = [numbers(1, 67, 1, 2, seed=i) for i in range(4)]
    yield "gated_linear_attention", (*over_a_chunk[:3], -over_a_chunk[3].abs()), {}
    for shape, width in ((2, 6, 3), 4), ((1, 2, 2), 4), ((2, 3, 1), 1):  # longer and shorter than the sequence
        yield "causal_convolution", (numbers(*shape), numbers(shape[-1], width, seed=1)), {}


def case(op, inputs, attributes):
    c = torch_ops.case(op, inputs, attributes)
    for t, written in zip(inputs, c["inputs"]):
        if t.dtype == torch.bool:
            written["dtype"] = "bool"
    return c


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = pathlib.Path(__file__).resolve().parent / "ops_products.json"
    table = [case(*c) for c in cases()]
    file.write_text("[\n" + ",\n".join(json.dumps(c) for c in table) + "\n]\n")
    print(f"{len(table)} cases")
