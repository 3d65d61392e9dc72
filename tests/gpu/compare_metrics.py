#!/usr/bin/env python3
"""Compares the losses of two metrics files (JSON lines with "loss" at 17 digits) step by step.

    tests/gpu/compare_metrics.py A.jsonl B.jsonl --tolerance 1e-4   # largest relative difference
    tests/gpu/compare_metrics.py A.jsonl B.jsonl --bits             # the same bits, of losses and of gradient norms

Exit codes: 0 they agree, 1 they differ, 2 bad input (other steps, no steps, a number that is not finite).
"""
import argparse
import math
import sys

import metrics


def steps_of(path):
    try:
        steps = metrics.read(path)
    except (OSError, ValueError) as e:
        sys.exit(fail(f"{path}: {e}"))
    if not steps:
        sys.exit(fail(f"{path} has no steps"))
    for s in steps:
        if not (math.isfinite(s["loss"]) and math.isfinite(s["grad_norm"])):
            sys.exit(fail(f"{path}: step {s['step']} is not finite: loss {s['loss']}, grad_norm {s['grad_norm']}"))
    return steps


def fail(why):
    print(f"compare_metrics: {why}", file=sys.stderr)
    return 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs=2, metavar="FILE")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--tolerance", type=float, help="largest relative difference of a loss")
    how.add_argument("--bits", action="store_true")
    o = parser.parse_args()
    a, b = (steps_of(f) for f in o.files)
    if [s["step"] for s in a] != [s["step"] for s in b]:
        return fail(f"{o.files[0]} has {len(a)} steps to {a[-1]['step']}, {o.files[1]} {len(b)} to {b[-1]['step']}")
    if o.bits:
        for x, y in zip(a, b):
            for key in ("loss", "grad_norm"):
                if x[key] != y[key]:
                    print(f"step {x['step']}: {key} {x[key]!r} and {y[key]!r}")
                    return 1
        print(f"{len(a)} steps: the same bits")
        return 0
    worst = max(zip(a, b), key=lambda p: difference(*p))
    d = difference(*worst)
    print(f"{len(a)} steps: losses differ by up to {d:.3g}, at step {worst[0]['step']} ({worst[0]['loss']!r} and "
          f"{worst[1]['loss']!r}); allowed {o.tolerance:g}")
    return int(d > o.tolerance)


def difference(x, y):
    return abs(x["loss"] - y["loss"]) / max(abs(x["loss"]), abs(y["loss"]), 1e-30)


if __name__ == "__main__":
    sys.exit(main())
