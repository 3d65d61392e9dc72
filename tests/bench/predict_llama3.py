#!/usr/bin/env python3
"""predict_llama3.py [DTENSOR_PLAN]: predicted against published steps of Llama-3 8B on H100, sequence 8192, bf16.

NVIDIA's dgxc-benchmarking v25.02 as it is, and torchtitan's runs of eager PyTorch with what is known of them and is not so
here said in their hardware file, none of it fitted to a row:
- the cards have 2.4 TB/s and 500 W; their peak is taken on the line between those of NVIDIA's datasheet for 350 W (PCIe,
  756 TFLOP/s) and 700 W (SXM, 989),
- attention is FlashAttention-2, 35 % of the peak on H100 and less backward (Shah et al., 2024, arXiv 2407.08608),
- norms, rotary embeddings, SwiGLU and the loss are several kernels each, many in float32 (moved),
- the loss holds the logits, their log-softmax and its gradient in float32, 12 bytes of each logit.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]
program = sys.argv[1] if len(sys.argv) > 1 else str(root / "build/bin/dtensor_plan")
h100 = json.loads((root / "examples/hardware/h100.json").read_text())

# Bytes that eager PyTorch moves of each element of bf16, by those that the forecast counts of the fused op. As an example
# a norm forward: to float32 (2 + 4), square (4 + 4), mean (4), times the root (4 + 4), to bf16 (4 + 2), times weights (2 + 2).
moved = {"rms_norm": 36 / 4, "rms_norm_backward": 76 / 6, "add_rms_norm": 42 / 8, "add_rms_norm_backward": 82 / 8,
         "rotary_pair": 20 / 4, "swiglu": 10 / 6, "swiglu_backward": 18 / 10,
         "cross_entropy_forward": 14 / 2, "cross_entropy_backward": 22 / 4}


def cost(hardware, plan, mesh, batch, micro):
    with tempfile.TemporaryDirectory() as name:
        files = {"hardware": hardware, "plan": plan}
        for key, value in files.items():
            (pathlib.Path(name) / f"{key}.json").write_text(json.dumps(value))
        out = subprocess.run([program, "cost", "--json", "--model", root / "examples/configs/llama3_8b.json", "--plan",
                              f"{name}/plan.json", "--mesh", mesh, "--hardware", f"{name}/hardware.json", "--seq-len", "8192",
                              "--batch-size", str(batch), "--micro-batch-size", str(micro)],
                             capture_output=True, text=True, check=True)
        return json.loads(out.stdout)


def nvidia():
    plan = {"fully_shard": {"axis": ["dp", "cp"], "stage": 2, "modules": ["model.layers.*", ""], "param_dtype": "bf16"},
            "context_parallel": {"axis": "cp"}, "reduce_dtype": "bf16"}
    print("| GPUs | measured, s | predicted, s | error |\n|---|---|---|---|")
    for gpus, measured in ((8, 12.78), (32, 13.00), (128, 13.16)):
        seconds = cost(h100, plan, f"dp={gpus // 2},cp=2", 16 * gpus, gpus // 2)["time"]["step_seconds"]
        print(f"| {gpus} | {measured:.2f} | {seconds:.2f} | {seconds / measured - 1:+.1%} |")


def torchtitan():
    plan = {"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "reshard_after_forward": "default",
                            "param_dtype": "bf16", "reduce_dtype": "fp32"},
            "activation_checkpoint": {"mode": "selective", "option": "op"}}
    peak = 756e12 + (989e12 - 756e12) * (500 - 350) / (700 - 350)
    card = dict(h100, memory_bytes=96e9, bytes_per_second=h100["bytes_per_second"] * 2.4 / 3.35, attention_share=0.35,
                attention_backward_share=0.32, flops_per_second=dict(h100["flops_per_second"], bf16=peak))
    card["ops"] = {op: {"seconds": card["call_seconds"], "per_second": card["bytes_per_second"] / times}
                   for op, times in moved.items()}
    print("\n| GPUs, batch of each | measured tokens/s per GPU | predicted | error | measured GiB | predicted | error |\n"
          "|---|---|---|---|---|---|---|")
    for gpus, batch, measured, held in ((8, 2, 5762, 82.4), (8, 1, 5850, 49.66), (128, 2, 5605, 67.0)):
        j = cost(card, plan, f"dp={gpus}", batch * gpus, batch * gpus)
        rate = j["tokens_per_second"] / gpus
        # torchtitan logs what its allocator has reserved, max_reserved_gib.
        gib = (j["memory"]["reserved_bytes"] + 12 * batch * 8192 * 128256) / 2**30
        print(f"| {gpus}, {batch} | {measured:,} | {rate:,.0f} | {rate / measured - 1:+.1%} | {held:.1f} | {gib:.1f} | "
              f"{gib / held - 1:+.0%} |")


nvidia()
torchtitan()
