"""Loads a folder that llama_convert wrote in transformers and compares the loss with a metrics file's.

    python3 -m venv venv && venv/bin/pip install torch transformers
    build/bin/llama_pretrain --model examples/configs/llama_tiny.json --data README.md --batch-size 8 --seq-len 16 --steps 5 --checkpoint-dir run --metrics m.jsonl
    build/bin/llama_convert --from run --to exported
    build/bin/llama_pretrain --init-from exported --data README.md --batch-size 8 --seq-len 16 --steps 1 --metrics again.jsonl
    venv/bin/python tests/parity/transformers_checkpoint.py exported README.md again.jsonl

Prints both losses of the first 8 windows of 16 bytes, and ends with 1 where they differ by more than 1e-5, or a weight
is missing or unexpected.
"""
import json
import sys

import torch
import transformers

folder, text, metrics = sys.argv[1:]
with open(text, "rb") as file:
    tokens = [256, *file.read(), 257]  # [BOT] bytes [EOT]
windows = torch.tensor([tokens[16 * i:16 * i + 17] for i in range(8)])
model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
logits = model(windows[:, :-1]).logits.double()
theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
with open(metrics) as file:
    ours = next(line["loss"] for line in map(json.loads, file) if "loss" in line)
print("transformers", theirs, "ours", ours, "missing", info["missing_keys"], "unexpected", info["unexpected_keys"])
sys.exit(abs(theirs - ours) > 1e-5 * ours or bool(info["missing_keys"]) or bool(info["unexpected_keys"]))
