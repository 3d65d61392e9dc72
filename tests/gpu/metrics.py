"""Metrics files of training runs (JSON lines, as llama_pretrain --metrics writes them), and what they say of a machine.

MFU by two formulas, of the H200's dense bf16 peak, 989e12 FLOP/s:
  torchtitan's  6 N_matmul + 6 L S A   per token: parameters of matrix products only, and causal attention counted once
  PaLM's        6 P + 12 L S A         per token: all parameters, and all of attention's square (Chowdhery et al., 2022)
with L layers, S tokens per sequence, and A = heads * head_dim.
"""
import json
import statistics
import sys

PEAK_FLOPS = 989e12


def read(path):
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.strip()]
    return [line for line in lines if "loss" in line]  # those of other kinds are no steps


def load_config(path):
    with open(path) as file:
        c = json.load(file)
    c.setdefault("num_key_value_heads", c["num_attention_heads"])
    c.setdefault("head_dim", c["hidden_size"] // c["num_attention_heads"])
    return c


def parameters(c):
    """(all, those of matrix products) of a Llama with an untied head."""
    d, q, kv = c["hidden_size"], c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    layer = d * (q + 2 * kv) + q * d + 3 * d * c["intermediate_size"]
    matmul = c["num_hidden_layers"] * layer + d * c["vocab_size"]
    return matmul + d * c["vocab_size"] + d * (2 * c["num_hidden_layers"] + 1), matmul


def flops_per_token(c, seq_len):
    """(torchtitan's, PaLM's)"""
    total, matmul = parameters(c)
    attention = c["num_hidden_layers"] * seq_len * c["num_attention_heads"] * c["head_dim"]
    return 6 * matmul + 6 * attention, 6 * total + 12 * attention


def summary(program, config_path, batch_size, seq_len, steps, untimed):
    """One run as a record: medians over the steps after the first `untimed`."""
    c = load_config(config_path)
    timed = steps[untimed:]
    if not timed:
        raise ValueError(f"{len(steps)} steps, of which {untimed} are not timed: none is left")
    seconds = statistics.median(s["step_seconds"] for s in timed)
    rate = batch_size * seq_len / seconds
    titan, palm = flops_per_token(c, seq_len)
    host = [s["host_seconds"] / s["step_seconds"] for s in timed if "host_seconds" in s]
    return {
        "program": program, "model": config_path, "parameters": parameters(c)[0],
        "batch_size": batch_size, "seq_len": seq_len, "timed_steps": len(timed), "step_ms": 1e3 * seconds,
        "tokens_per_second": rate, "mfu_torchtitan": rate * titan / PEAK_FLOPS, "mfu_palm": rate * palm / PEAK_FLOPS,
        "host_share": statistics.median(host) if host else None,  # of a step's time, until all was given to the device
        "peak_memory_bytes": max((s.get("peak_memory_bytes") or 0 for s in steps), default=0),
        "first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"],
    }


TRAIN_HEAD = (f"{'model':<12} {'program':<26} {'batch':>10} {'ms/step':>9} {'tokens/s':>10} {'MFU titan':>10} {'MFU PaLM':>9} "
              f"{'GiB':>7} {'host':>6}")


def train_row(r):
    name = r["model"].rsplit("/", 1)[-1].removesuffix(".json").removeprefix("llama_")
    return (f"{name:<12} {r['program']:<26} {r['batch_size']:>5} x{r['seq_len']:>4} {r['step_ms']:>9.2f} "
            f"{r['tokens_per_second']:>10.0f} {r['mfu_torchtitan']:>10.1%} {r['mfu_palm']:>9.1%} "
            f"{r['peak_memory_bytes'] / 2**30:>7.1f} "
            + (f"{r['host_share']:>6.1%}" if r.get("host_share") is not None else f"{'':>6}"))


def main():
    """MODEL BATCH SEQ UNTIMED OUT.json PROGRAM=METRICS...: the runs that are there, as one file for report.py."""
    model, batch, seq, untimed, out, *runs = sys.argv[1:]
    rows = []
    for run in runs:
        program, path = run.split("=", 1)
        try:
            rows.append(summary(program, model, int(batch), int(seq), read(path), int(untimed)))
        except (OSError, ValueError, KeyError) as e:
            rows.append({"program": program, "model": model, "error": str(e)})
    with open(out, "w") as file:
        json.dump({"kind": "train", "rows": rows}, file, indent=1)
    print(TRAIN_HEAD)
    for r in rows:
        print(f"{r['program']}: {r['error']}" if "error" in r else train_row(r))
    return int(any("error" in r for r in rows))


if __name__ == "__main__":
    sys.exit(main())
