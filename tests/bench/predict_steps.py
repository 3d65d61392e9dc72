#!/usr/bin/env python3
"""predict_steps.py CSV [DTENSOR_PLAN]: predicted against measured steps of vTrain's ground truth (single node, A100).

The CSV is that of VIA-Research/vTrain: GPUs, global batch, micro batch, hidden size, attention heads, layers, sequence
length, tensor, data and pipeline parallelism, milliseconds. Rows with pipelines are left out. The measured program is
Megatron-DeepSpeed with full recompute; a GPT is predicted as a Llama of the same width, depth and number of parameters.
What is known of that program and is not so here is said in the hardware file that a row is predicted with:
- its attention writes the scores (attention_of); ours does not,
- its host waits for the device before each micro-batch, where broadcast_data reads the sizes back.
One constant is fitted, host_seconds of a100, to the rows of 2 GPUs, hidden size 1024 and 12 layers, which are then left out.
Also the rows of Megatron (Korthikanti et al., 2022, arXiv 2205.05198, table 5) without pipelines, with no constant fitted.
"""
import csv
import json
import math
import pathlib
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]
rows = [[int(x) for x in r[:10]] + [float(r[10]) / 1e3] for r in list(csv.reader(open(sys.argv[1])))[1:]]
rows = [r for r in rows if r[9] == 1]
program = sys.argv[2] if len(sys.argv) > 2 else str(root / "build/bin/dtensor_plan")
hardware = json.loads((root / "examples/hardware/a100.json").read_text())
plan = json.loads((root / "examples/plans/tp.json").read_text())
plan["activation_checkpoint"] = {"mode": "full"}
plan["reduce_dtype"] = "bf16"


def share_of(size):
    """Of the peak that products reach, as nn/foresight/hardware.cpp has it."""
    shares = sorted((int(n), share) for n, share in hardware["product_shares"].items())
    for (n, low), (m, high) in zip(shares, shares[1:]):
        if n <= size <= m:
            return low + (high - low) * math.log(size / n) / math.log(m / n)
    raise ValueError(f"no share of a product of size {size}")


def attention_of(d, again=False):
    """What hardware says of attention by products, softmax and dropout, each a kernel, from what they move of each score.

    Forward: a product writes it (2 bytes), causal softmax reads a half and writes all (1 + 2), dropout reads, writes it
    and a mask (2 + 2 + 1), a product reads it (2). Backward: a product writes and one reads (2 + 2), dropout reads it and
    the mask and writes (2 + 1 + 2), softmax reads a half of two and writes (1 + 1 + 2), two products read (4); a forward
    pass more where scores are computed `again`. Products do all scores, 4 d operations of each forward and 8 d backward;
    the forecast counts 2 d and 5 d of flash attention, and half of the scores, since it skips the causal half.
    """
    kinds = {"attention": (4, 12, 4, 2), "attention_backward": (6, 17 + 12 * again, 8 + 4 * again, 5)}
    told = {"ops": {}}
    for op, (kernels, moved, done, counted) in kinds.items():
        told[f"{op}_share"] = share_of(d) * counted / done
        told["ops"][op] = {"seconds": kernels * hardware["call_seconds"], "per_second": hardware["bytes_per_second"] / (2 * moved)}
    return told


def cost(folder, llama, plan, hardware, mesh, batch, micro):
    """Seconds of a step of a Llama, a dictionary of what its config has beyond what is the same for all."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 51200, **llama}
    files = {"config": config, "hardware": hardware, "plan": plan}
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    out = subprocess.run([program, "cost", "--json", "--model", folder / "config.json", "--plan", folder / "plan.json",
                          "--mesh", mesh, "--hardware", folder / "hardware.json", "--seq-len",
                          str(llama["max_position_embeddings"]), "--batch-size", str(batch), "--micro-batch-size", str(micro)],
                         capture_output=True, text=True, check=True)
    return json.loads(out.stdout)["time"]["step_seconds"]


def predict(row, host_seconds, folder):
    _, batch, micro, hidden, heads, layers, seq, tp, dp, _, _ = row
    llama = {"hidden_size": hidden, "intermediate_size": hidden * 8 // 3 // 64 * 64, "num_hidden_layers": layers,
             "num_attention_heads": heads, "max_position_embeddings": seq}
    here = hardware | attention_of(hidden // heads) | {"host_seconds": host_seconds, "host_waits": True}
    return cost(folder, llama, plan, here, f"dp={dp},tp={tp}", batch, micro * dp)


def megatron(folder):
    """22B on 8 A100, tp 8, batch 4: with all recomputed, and with sequence parallelism and attention alone recomputed."""
    llama = {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48, "num_attention_heads": 64,
             "max_position_embeddings": 2048}
    sequence = dict(json.loads((root / "examples/plans/tp_sp_loss.json").read_text()), reduce_dtype="bf16")
    for what, p, again, measured in (("full recompute", plan, False, 1.42), ("sequence, selective", sequence, True, 1.10)):
        seconds = cost(folder, llama, p, hardware | attention_of(96, again), "tp=8", 4, 4)
        print(f"Megatron 22B, {what}: measured {measured:.2f} predicted {seconds:.3f} error {seconds / measured - 1:+.1%}")


def mean(values):
    return sum(values) / len(values)


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    named = [r for r in rows if r[:4] == [2, 8, r[2], 1024] and r[5] == 12]
    rest = [r for r in rows if r not in named]
    assert 0 < len(named) * 10 <= len(rows) + 9, f"{len(named)} of {len(rows)} rows are too many to fit"
    low, high = 0.0, 1e-3  # the predicted time grows with the constant
    for _ in range(9):
        middle = (low + high) / 2
        if mean([predict(r, middle, folder) / r[10] for r in named]) < 1:
            low = middle
        else:
            high = middle
    print(f"host_seconds {middle:.2e}, from {len(named)} rows")
    predicted = [predict(r, middle, folder) for r in rest]
    errors = [abs(p / r[10] - 1) for p, r in zip(predicted, rest)]
    groups = {}
    for p, r in zip(predicted, rest):
        groups.setdefault(tuple(r[i] for i in (0, 1, 3, 4, 5, 6)), []).append((p, r[10]))
    regrets = [min(g)[1] / min(m for _, m in g) - 1 for g in groups.values() if len(g) > 1]
    print(f"{len(rest)} rows: mean error {mean(errors):.1%}, worst {max(errors):.1%}, "
          f"bias {mean([p / r[10] - 1 for p, r in zip(predicted, rest)]):+.1%}")
    print(f"{len(regrets)} groups: mean regret {mean(regrets):.1%}, worst {max(regrets):.1%}")
    for (p, r) in zip(predicted, rest):
        print("GPUs {} batch {} micro {} h {} heads {} L {} S {} tp {} dp {}".format(*r[:9]),
              f"measured {r[10]:.3f} predicted {p:.3f} error {p / r[10] - 1:+.1%}")
    megatron(folder)
