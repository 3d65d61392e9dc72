#!/usr/bin/env python3
"""One report of all that tests/gpu/bench.sh measured: tables, ratios, and what bounds each figure.

    tests/gpu/report.py DIR      # the folder of its JSON files, of one call or of several on the same machine

Kernels are compared with the copy rate that was measured in the same process. Products, attention and training are
compared with the ceilings of the section `ceilings`. The floor of a training step is the least time that its parts
need at these ceilings, one after the other: matrix products at the rate of the large product, attention at its own
measured rate for that sequence and head size, everything else at the copy rate by the fewest bytes it must move.
"""
import json
import pathlib
import sys

import metrics

GOALS = {"124m": 0.42, "1b": 0.52, "3b": 0.60}  # MFU by torchtitan's formula
OVER_COMPILE = {"124m": 1.15, "1b": 1.15}  # tokens/s over torch.compile's
OURS = ("dtensor", "dtensor_tuned")  # goals are for the better one
KERNEL_SHARE = 0.85  # of the copy rate


def load(folder):
    """{kind: rows} of all files."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        data = json.loads(path.read_text())
        if "rows" in data:
            found.setdefault(data["kind"], []).extend(data["rows"])
        elif "products" in data:
            found.setdefault("gemm", []).extend(product_rows(data["products"], "tuned" in path.stem))
    return found


def product_rows(products, tuned):
    return [{"name": " ".join(str(p[key]) for key in ("model", "weight", "product") if p[key])
             + f"  {p['M']} x {p['N']} x {p['K']}", ("tuned_" if tuned else "") + "tflops": p["tflops"]} for p in products]


def by_name(rows, name, key):
    return next((r[key] for r in rows if r["name"] == name), None)


def percent(x):
    return "" if x is None else f"{x:.1%}"


def report_ceilings(rows):
    print("Ceilings")
    for r in rows:
        figure = f"{r['gb_per_s']:.0f} GB/s" if "gb_per_s" in r else f"{r['tflops']:.0f} TFLOP/s"
        print(f"  {r['name']:<36} {figure:>14}")


def report_linear_attention(rows):
    columns = ("linear_forward_ns", "linear_backward_ns", "causal_forward_ns", "causal_backward_ns")
    print(f"{'Attention, ns per token':<26}" + "".join(f"{c.removesuffix('_ns').replace('_', ' '):>18}" for c in columns))
    for r in rows:
        print(f"  {r['name']:<24}" + "".join(f"{r[c]:>18.1f}" for c in columns))


def report_kernels(rows):
    print(f"{'Kernel':<40} {'us':>9} {'GB/s':>7} {'of copy':>8}")
    for r in rows:
        if "error" in r:
            print(f"{r['name']:<40} failed: {r['error']}")
            continue
        note = "" if r["share"] >= KERNEL_SHARE else f"  below {KERNEL_SHARE:.0%}"
        print(f"{r['name']:<40} {r['us']:>9.1f} {r['gb_per_s']:>7.0f} {r['share']:>8.1%}{note}")


def report_rates(title, rows, product):
    """Rows of any figures in TFLOP/s, each with its share of the large product's rate."""
    print(f"{title}, TFLOP/s (share of the large product)")
    merged = {}  # rows of one name are one
    for r in rows:
        merged.setdefault(r["name"], {}).update(r)
    for r in merged.values():
        figures = [f"{key.removesuffix('tflops').strip('_').replace('_', ' ')} {value:.0f}".strip()
                   + (f" ({value / product:.0%})" if product else "")
                   for key, value in r.items() if key.endswith("tflops")]
        print(f"  {r['name']:<44} {'   '.join(figures)}")


def floor(r, copy, product, attention):
    """Seconds of a step at the ceilings, by part."""
    c, s = metrics.load_config(r["model"]), r["seq_len"]
    tokens = r["batch_size"] * s
    d, f, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    total, matmul = metrics.parameters(c)
    same = next((a for a in attention if a["head_dim"] == c["head_dim"] and a["sequence"] == s), {})
    forward = 2 * layers * s * q * tokens  # FLOP of causal attention
    activations = layers * (32 * d + 8 * (q + kv) + 16 * f + 10 * q) + 10 * d  # bytes per token, bf16
    return {
        "products": 6 * matmul * tokens / (1e12 * product),
        "attention": forward / (1e12 * same.get("forward_tflops", product))
                     + 2.5 * forward / (1e12 * same.get("backward_tflops", product)),
        "memory": (activations + 4 * c["vocab_size"]) * tokens / (1e9 * copy),
        "optimizer": 34 * total / (1e9 * copy),  # AdamW's 30 bytes and the norm's 4
    }


def report_training(rows, copy, product, attention):
    print(metrics.TRAIN_HEAD + "  step's floor: of which")
    for r in rows:
        if "error" in r:
            print(f"{r['program']}, {r['model']}: {r['error']}")
            continue
        line = metrics.train_row(r)
        if copy and product:
            parts = floor(r, copy, product, attention)
            least = sum(parts.values())
            line += f"  {1e3 * least:.1f} ms ({least / (r['step_ms'] / 1e3):.0%} of the step): "
            line += ", ".join(f"{name} {t / least:.0%}" for name, t in parts.items())
        print(line)
    print()
    for model in dict.fromkeys(r["model"] for r in rows):
        rates = {r["program"]: r["tokens_per_second"] for r in rows if r["model"] == model and "error" not in r}
        for ours in OURS:
            against = [f"{rates[ours] / rates[p]:.2f} times {p}" for p in ("eager", "compiled") if ours in rates and p in rates]
            if against:
                print(f"{pathlib.Path(model).stem}: tokens/s of {ours} are {' and '.join(against)}")


def report_goals(found):
    print("Goals")
    good = [r for r in found.get("train", []) if "error" not in r]
    for size, least in GOALS.items():
        mfu = max((r["mfu_torchtitan"] for r in good if r["program"] in OURS and r["model"].endswith(f"_{size}.json")), default=None)
        print(f"  MFU (torchtitan) at {size:<5} at least {least:.0%}: {verdict(mfu, least, percent)}")
    for size, least in OVER_COMPILE.items():
        rates = {r["program"]: r["tokens_per_second"] for r in good if r["model"].endswith(f"_{size}.json")}
        best = max((rates[p] for p in OURS if p in rates), default=None)
        ratio = best / rates["compiled"] if best and "compiled" in rates else None
        print(f"  tokens/s at {size:<5} at least {least} times torch.compile's: {verdict(ratio, least, lambda x: f'{x:.2f}')}")
    shares = [r["share"] for r in found.get("kernels", []) if "share" in r]
    worst = min(shares, default=None)
    print(f"  every own kernel at least {KERNEL_SHARE:.0%} of the copy rate: {verdict(worst, KERNEL_SHARE, percent)}")


def verdict(value, least, show):
    return "not measured" if value is None else f"{'met' if value >= least else 'not met'}, {show(value)}"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: tests/gpu/report.py DIR")
    found = load(sys.argv[1])
    if not found:
        print(f"report: no results in {sys.argv[1]}", file=sys.stderr)
        return 1
    ceilings = found.get("ceilings", [])
    copy, product = by_name(ceilings, "device copy", "gb_per_s"), by_name(ceilings, "bf16 product 8192^3", "tflops")
    reports = {
        "ceilings": report_ceilings,
        "kernels": report_kernels,
        "gemm": lambda rows: report_rates("Products", rows, product),
        "attention": lambda rows: report_rates("Causal attention", rows, product),
        "linear_attention": report_linear_attention,
        "train": lambda rows: report_training(rows, copy, product, found.get("attention", [])),
    }
    for kind, report in reports.items():
        if kind in found:
            report(found[kind])
            print()
    report_goals(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
