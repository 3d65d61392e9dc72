"""tokenizers_encode.py TOKENIZER.json TEXT...: megabytes per second of the tokenizers package, as build/bench/tokenizer
measures ours: the same documents, ids alone, one thread and two.

    pip install tokenizers
    TOKENIZERS_PARALLELISM=false python tests/bench/peers/tokenizers_encode.py ...    # one thread
    RAYON_NUM_THREADS=2 python tests/bench/peers/tokenizers_encode.py ...             # two
"""
import os
import statistics
import sys
import time

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
texts = []
for name in sys.argv[2:]:
    text = open(name, encoding="utf-8", newline="").read()
    at = 0
    while at < len(text):
        end = text.find("\n", min(at + 10_000, len(text))) + 1 or len(text)
        texts.append(text[at:end])
        at = end
megabytes = sum(len(t.encode()) for t in texts) / 1e6
wall, cpu = [], []
for _ in range(3):
    begin, used = time.perf_counter(), time.process_time()
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    wall.append(time.perf_counter() - begin)
    cpu.append(time.process_time() - used)
threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.environ.get("RAYON_NUM_THREADS", "all")
print(f"tokenizers, {threads} thread(s): {megabytes / statistics.median(wall):.2f} MB/s, {megabytes / statistics.median(cpu):.2f} of the "
      f"processor's time ({tokens} tokens of {megabytes:.1f} MB)")
