#!/usr/bin/env python3
"""Hugging Face folders between transformers and the programs, of each family. Needs torch, transformers 5 and safetensors.

    python3 tests/parity/transformers_folders.py build/bin TEXT

Of a small model of each family, which transformers saves:
- llama_convert makes a checkpoint of it, and a folder of that: transformers loads it as it is, and its logits are those of
  the model, to the bit;
- llama_pretrain trains it for ten steps, and the trained model goes to a folder again, in float32 and bfloat16. The loss
  that llama_pretrain --init-from has of the folder is transformers' to 1e-5, and llama_generate's tokens are its greedy
  ones; bfloat16 weights are the float32 ones, rounded.

Ends with 1 where something is not so.
"""
import json
import logging
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers as T

logging.disable(logging.WARNING)
programs, text = pathlib.Path(sys.argv[1]), sys.argv[2]
batch, length = 4, 32
sizes = dict(vocab_size=272, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=256, eos_token_id=257)
families = {
    "llama": T.LlamaConfig(**sizes),
    "llama, tied": T.LlamaConfig(**sizes, tie_word_embeddings=True),
    "mistral": T.MistralConfig(**sizes, sliding_window=8),
    "qwen2": T.Qwen2Config(**sizes),
    "qwen3, tied": T.Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=True),
    "phi3": T.Phi3Config(**sizes, pad_token_id=258),
    # Without dropout, which a training step's loss has and transformers' evaluation has not.
    "gpt2": T.GPT2Config(vocab_size=272, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=257,
                         resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "bert": T.BertConfig(**{k: v for k, v in sizes.items() if k not in ("num_key_value_heads", "bos_token_id", "eos_token_id")}),
}
wrong = 0


def check(ok, what):
    global wrong
    wrong += not ok
    print("  ", "ok   " if ok else "WRONG", what)


def run(program, *arguments):
    result = subprocess.run([programs / program, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{program} {' '.join(map(str, arguments))}: {result.stderr}")
    return result.stdout


def load(folder, kind, dtype):
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype="auto", attn_implementation="eager")
    check(not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{folder.name} loads as it is")
    check(all(p.dtype == dtype for p in model.parameters()), f"{folder.name} is {dtype}")
    return model.eval()


def first_batch():
    tokens = [256, *open(text, "rb").read(batch * length + 8), 257]  # [BOT] bytes
    return torch.tensor([tokens[length * i:length * (i + 1) + 1] for i in range(batch)])


def train(folder, steps, *more):
    metrics = pathlib.Path(str(folder) + ".jsonl")
    run("llama_pretrain", "--init-from", folder, "--data", text, "--batch-size", batch, "--seq-len", length, "--steps", steps,
        "--metrics", metrics, *more)
    return [line["loss"] for line in map(json.loads, metrics.open()) if "loss" in line]


def same_loss(model, folder):
    b = first_batch()
    theirs = torch.nn.functional.cross_entropy(model(b[:, :-1]).logits.double().flatten(0, 1), b[:, 1:].flatten()).item()
    ours = train(folder, 1)[0]
    check(abs(theirs - ours) <= 1e-5 * theirs, f"{folder.name}: loss {ours:.7f}, in transformers {theirs:.7f}")


def same_tokens(model, folder):
    prompt = "The mesh "
    ours = json.loads(run("llama_generate", "--from", folder, "--prompt", prompt, "--max-new-tokens", 12, "--temperature", 0, "--tokenizer", "bytes",
                          "--json"))
    ids = torch.tensor([ours["prompt_ids"]])
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=258,
                            use_cache=False)[0, ids.shape[1]:].tolist()
    check(ours["ids"] == theirs, f"{folder.name}: greedy tokens")


def go(name, config, folder):
    print(name)
    torch.manual_seed(1)
    kind = T.BertForMaskedLM if name == "bert" else T.AutoModelForCausalLM
    config._attn_implementation = "eager"
    model = kind._from_config(config).eval() if name == "bert" else kind.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / "theirs")
    run("llama_convert", "--from", folder / "theirs", "--to", folder / "checkpoint")
    run("llama_convert", "--from", folder / "checkpoint", "--to", folder / "exported")
    ids = torch.randint(0, 256, (2, 24))
    check(torch.equal(model(ids).logits, load(folder / "exported", kind, torch.float32)(ids).logits), "logits, to the bit")
    if name == "bert":
        return
    same_loss(model, folder / "exported")
    train(folder / "exported", 10, "--checkpoint-dir", folder / "trained")
    run("llama_convert", "--from", folder / "trained", "--to", folder / "again")
    run("llama_convert", "--from", folder / "trained", "--to", folder / "again16", "--dtype", "bf16")
    again = load(folder / "again", kind, torch.float32)
    check(not torch.equal(model(ids).logits, again(ids).logits), "ten steps change the model")
    same_loss(again, folder / "again")
    same_tokens(again, folder / "again")
    half = load(folder / "again16", kind, torch.bfloat16)
    check(all(torch.equal(p.bfloat16(), q) for p, q in zip(again.parameters(), half.parameters())), "bfloat16 is rounded")
    same_loss(half.float(), folder / "again16")


for name, config in families.items():
    with tempfile.TemporaryDirectory() as folder:
        go(name, config, pathlib.Path(folder))
print(f"{wrong} of all that was checked is not as it should be" if wrong else "all is as it should be")
sys.exit(wrong > 0)
