#!/usr/bin/env python3
"""predict_here.py [BIN] [PASSES] [FILE]: predicted against measured steps of each shipped Llama plan on thread ranks here.

A machine is faster at one time than at another. So each pass takes the plans in another order and calibrates before and after every four
of them: a prediction is the mean by both. Those that are one program by what they compute and send are one row. An error is the median of
the passes', and beside the errors stands how far a plan's own times, measured in one half of the passes, are from those in the other, which
no prediction can better. The peak of memory is what a dry run says, and the metrics. Each pass is a line of FILE, and those that are there
count too: passes may be taken at several times. Prints a table for docs/predictions.md.
"""
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]
programs = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "build/bin")
passes = int(sys.argv[2]) if len(sys.argv) > 2 else 2
kept = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
steps = 32
dp, tp = ["dp=2", "dp=4"], ["tp=2", "tp=4"]
cases = [(p, dp) for p in ("ddp", "fsdp", "zero1", "zero2")]
cases += [(p, tp) for p in ("tp", "tp_sp_loss", "tutorial_tp", "tutorial_1_feed_forward", "tutorial_2_attention",
                            "tutorial_3_sequence", "tutorial_4_loss", "fla_tp", "fla_tp_loss_parallel",
                            "tp_few_kv_heads")]
cases += [("fsdp_tp", ["dp=2,tp=1", "dp=2,tp=2"]), ("hsdp_tp", ["dp_replicate=1,dp_shard=2,tp=1", "dp_replicate=2,dp_shard=2,tp=1"]),
          ("fsdp_cp_tp", ["dp=1,cp=2,tp=1", "dp=1,cp=2,tp=2"])]


def run(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}: {done.stderr}")
    return done.stdout


def measure(folder, common):
    """Seconds of each step but the first two, and the peak of memory."""
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    run(*common, "--data", folder / "text.txt", "--steps", steps, "--metrics", metrics)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line for line in lines if "loss" in line][2:]
    return [l["step_seconds"] for l in lines], max(l["peak_memory_bytes"] for l in lines)


def calibrate(file):
    run(programs / "dtensor_calibrate", "--device", "cpu", "--output", file)
    return file


def dry_run(common, hardware):
    return json.loads(run(*common, "--dry-run", "--json", "--hardware", hardware))


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 4000)
    before, after = calibrate(folder / "before.json"), folder / "after.json"
    rows = {}  # by what is computed and sent
    for plan, meshes in cases:
        for mesh in meshes:
            common = [programs / "llama_pretrain", "--model", root / "examples/configs/llama_tiny.json", "--mesh", mesh,
                      "--plan", root / f"examples/plans/{plan}.json", "--batch-size", 8, "--seq-len", 128]
            said = dry_run(common, before)
            program = json.dumps([said["ranks"], said["flops"], said["time"], said["counts"], said["bytes"], said["memory"]["peak_bytes"]])
            row = rows.setdefault(program, {"plans": [], "common": common, "said": said["memory"]["peak_bytes"]})
            row["plans"].append(f"{plan} {mesh}")
    taken = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    for number in range(len(taken), len(taken) + passes):
        order = list(rows.values())
        random.Random(number).shuffle(order)
        calibrate(before)
        taken.append({})
        for place in range(0, len(order), 4):
            four = [(row, *measure(folder, row["common"])) for row in order[place:place + 4]]
            calibrate(after)
            for row, seconds, peak in four:
                said = [dry_run(row["common"], hardware)["time"]["step_seconds"] for hardware in (before, after)]
                taken[-1][row["plans"][0]] = {"measured": statistics.median(seconds), "predicted": statistics.mean(said), "peak": peak}
            before.write_text(after.read_text())
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps(taken[-1]) + "\n")

print("| plan, mesh | measured, ms | predicted, ms | error | peak, MiB | predicted | error |\n|---|---|---|---|---|---|---|")
errors, again = [], []
for row in rows.values():
    own = [one[row["plans"][0]] for one in taken]
    measured, predicted, peak = (statistics.median(one[key] for one in own) for key in ("measured", "predicted", "peak"))
    errors.append(statistics.median(one["predicted"] / one["measured"] - 1 for one in own))
    if len(own) > 1:
        first, second = (statistics.median(one["measured"] for one in own[half::2]) for half in (0, 1))
        again.append(first / second - 1)
    print(f"| {'; '.join(row['plans'])} | {measured * 1e3:.1f} | {predicted * 1e3:.1f} | {errors[-1]:+.0%} | {peak / 2**20:.2f} | "
          f"{row['said'] / 2**20:.2f} | {row['said'] / peak - 1:+.1%} |")
for what, errors_of in (("predictions", errors), ("a plan's own time in the other half of the passes", again)):
    if errors_of:
        apart = [abs(e) for e in errors_of]
        print(f"\n{what}: {len(apart)} rows, mean error {statistics.mean(apart):.1%}, worst {max(apart):.1%}, "
              f"{sum(e < 0.15 for e in apart)} within 15 %")
