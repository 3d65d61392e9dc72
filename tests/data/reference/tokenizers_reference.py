"""Makes what tests/data/tokenizer_test.cpp compares with: tokenizer files of four families, trained here by the tokenizers
package on the texts below, and its ids, offsets and decoded texts (reference.json).

    pip install tokenizers==0.23.3
    python tests/data/reference/tokenizers_reference.py                     # writes beside itself
    python tests/data/reference/tokenizers_reference.py --check build/bin   # compares the programs with the package on 50 MB

The check takes half of its text from files (--texts: Python's own sources, Debian's documentation and translations), the
rest is generated; a megabyte of each kind without a space is in it.
"""
import argparse
import array
import gettext
import gzip
import json
import pathlib
import random
import subprocess
import sysconfig
import tempfile
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TEXTS = [
    "", " ", "a", "  \n", "Hello, world!", "I'll say it's what they've DONE: we'D, 'S, can't'T.", "x  y   z\t\tw \n\n v",
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't. 1234567890 and 3.14159, 0x7fff.",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # squares\n\n\n\nclass A:\n\tpass\r\n\r\nif __name__ == '__main__':\n    main()\n",
    "#include <vector>\nint main() { std::vector<int> v{1, 2, 3}; return v.size() != 3u; }\n",
    "今天天气很好，我们去公园散步吧。机器学习模型需要大量的数据。", "東京は日本の首都です。カタカナとひらがな、漢字。", "안녕하세요 세계. 한국어 문장입니다.",
    "مرحبا بالعالم، هذا نص عربي ٠١٢٣٤٥٦٧٨٩.", "שלום עולם", "Привет, мир! Ещё раз.", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈 emoji 👍🏽 and text❤️", "café cafe\u0301 ñ n\u0303 Å A\u030a ﬁ ² Ⅷ ½ \uac00 \u1100\u1161\u11a8",
    "odd\u00a0space\u2003em\u3000ideographic\u200bzero\u2028line\u0085next\u180emongol", "'\u017f I'\u017f it'LL\u017f",
    "tab\there\vvertical\fform\x00nul\x7fdel", "trailing   ", "   leading", "\n\n\nlines\n\n\n", "...!!!???---===", "a\u0300\u0301\u0302\u0303",
    "▁already▁marked ▁ here", "<|endoftext|>start<|endoftext|> middle <s>x</s>[BOT] y [EOT]<|begin_of_text|>", "<mask> <mask><mask>\t<mask>!",
    "wordinside subwordinside wordy word", "100% of $5,000.00 + €3 = ¥7", "MixedCASE camelCase snake_case kebab-case", "\U0001F1E9\U0001F1EA\U0010FFFD\uFFFD",
]


def corpus(seed, size):
    """Mixed text: words of all texts above, in random order, between whatever white space."""
    rng = random.Random(seed)
    words = [w for t in TEXTS for w in t.split()] * 3 + ["the", "of", "and", "in", "to", "model", "data", "tensor"] * 40
    gaps = [" "] * 30 + ["\n", "\n\n", "  ", "\t", "\n    ", "", ", ", ". "]
    parts, n = [], 0
    while n < size:
        piece = rng.choice(words) + rng.choice(gaps)
        if rng.random() < 0.02:
            piece += "".join(chr(rng.choice([rng.randrange(32, 0x250), rng.randrange(0x370, 0x1400), rng.randrange(0x4E00, 0x9FFF),
                                             rng.randrange(0x1F300, 0x1F6FF)])) for _ in range(rng.randrange(1, 9)))
        parts.append(piece)
        n += len(piece.encode())
    return "".join(parts)


def trainer(vocab_size, special):
    return trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                               initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def split_then_bytes(pattern, trim):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim, use_regex=False)])


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator([corpus(1, 200_000)], trainer(700, ["<|endoftext|>"]))
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    t.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("wordinside", single_word=True)])
    return t


def llama3():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = split_then_bytes(LLAMA3, True)
    t.train_from_iterator([corpus(2, 200_000)], trainer(700, []))
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    t.decoder = decoders.ByteLevel()
    bos = t.token_to_id("<|begin_of_text|>")
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", bos)])])
    return t


def qwen():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = split_then_bytes(QWEN, False)
    t.train_from_iterator([corpus(3, 200_000)], trainer(700, []))
    t.add_special_tokens(["<|endoftext|>"])
    t.add_tokens([AddedToken("wordinside", normalized=True)])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def tinyllama():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)  # for training: words are short
    t.train_from_iterator([corpus(4, 60_000)], trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False,
                                                                   limit_alphabet=150))
    data = json.loads(t.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = data["added_tokens"][:3]
    t = Tokenizer.from_str(json.dumps(data))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return t


def variants(base):
    """Files with sections of their own, from one file: name -> JSON."""
    def changed(**sections):
        return {**json.loads(base.to_str()), **sections}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    return {
        "truncation": changed(truncation={"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}),
        "truncation_left": changed(truncation={"direction": "Left", "max_length": 7, "strategy": "LongestFirst", "stride": 0}),
        "padding": changed(padding={"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 2,
                                    "pad_type_id": 0, "pad_token": "</s>"}),
        "padding_left": changed(padding={"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 4, "pad_id": 0,
                                         "pad_type_id": 0, "pad_token": "<unk>"}),
        "metaspace": changed(normalizer=None, pre_tokenizer=metaspace, decoder=metaspace),
        "metaspace_always": changed(normalizer={"type": "NFKC"}, pre_tokenizer={**metaspace, "prepend_scheme": "always", "split": False},
                                    decoder={**metaspace, "prepend_scheme": "always"}),
        "digits": changed(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}]},
                          pre_tokenizer={"type": "Sequence", "pretokenizers": [
                              {"type": "Digits", "individual_digits": True},
                              {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "MergedWithPrevious", "invert": False},
                              {"type": "Split", "pattern": {"String": "t"}, "behavior": "MergedWithNext", "invert": False}]}),
        "template": changed(truncation={"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
                            post_processor={"type": "TemplateProcessing", "single": [
                                {"SpecialToken": {"id": i, "type_id": 0}} for i in ("<unk>", "<s>")] + [
                                {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                                "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]}
                                                   for i, t in enumerate(("<unk>", "<s>", "</s>"))}}),
        "repeated_matches": changed(normalizer=None, pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": "l"}, "behavior": "MergedWithPrevious", "invert": False},
            {"type": "Split", "pattern": {"String": "e"}, "behavior": "MergedWithNext", "invert": False},
            {"type": "Split", "pattern": {"Regex": r"\w"}, "behavior": "Contiguous", "invert": True}]}),
        "no_decoder": changed(decoder=None),
        "nfd": changed(normalizer={"type": "NFD"}),
        "replace": changed(normalizer={"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "▁▁"},
                           pre_tokenizer={"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}"}, "behavior": "Removed", "invert": True}),
    }


def byte_variants(base):
    def changed(**sections):
        return {**json.loads(base.to_str()), **sections}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "prefix_space": changed(pre_tokenizer=level, post_processor=level),
        "roberta": changed(post_processor={"type": "RobertaProcessing", "sep": ["<mask>", 700], "cls": ["<|endoftext|>", 0],
                                           "trim_offsets": True, "add_prefix_space": False}),
        "bert": changed(post_processor={"type": "BertProcessing", "sep": ["<mask>", 700], "cls": ["<|endoftext|>", 0]}),
        "trimmed_by_the_first": changed(post_processor={"type": "Sequence", "processors": [
            level, {**level, "add_prefix_space": False, "trim_offsets": False}]}),
        "contiguous": changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"[^\s]"}, "behavior": "Contiguous", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}),
    }


def values(t, texts):
    cases = []
    for text in texts:
        e = t.encode(text)
        cases.append({"text": text, "ids": e.ids, "offsets": [list(o) for o in e.offsets],
                      "bare": t.encode(text, add_special_tokens=False).ids,
                      "decoded": t.decode(e.ids), "with_special": t.decode(e.ids, skip_special_tokens=False)})
    return cases


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        h = (h ^ i) * 0x100000001B3 % 2**64
    return h


def long_texts():
    """A megabyte each without a space; tests make them alike."""
    return {"one letter": "a" * 1_000_000, "letters": "".join(chr(97 + i * i % 26) for i in range(1_000_000)),
            "digits": "".join(str(i * i % 10) for i in range(1_000_000)), "Chinese": "".join(chr(0x4E00 + i * i % 997) for i in range(333_333)),
            "signs": "!?" * 500_000, "spaces": " " * 1_000_000}


def write():
    made = {"gpt2": gpt2(), "llama3": llama3(), "qwen": qwen(), "tinyllama": tinyllama()}
    reference = {"tokenizers": tokenizers.__version__, "families": {}, "variants": {}, "trained": {}}
    for name, t in made.items():
        (HERE / f"{name}.json").write_text(json.dumps(json.loads(t.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
        reference["families"][name] = {
            "cases": values(t, TEXTS + [corpus(9, 3000)]),
            "long": {k: [len(e.ids), str(fnv(e.ids))] for k, v in long_texts().items() for e in [t.encode(v)]}}
    some = [t for t in TEXTS if len(t) < 90]
    for base, files in (("tinyllama", variants(made["tinyllama"])), ("gpt2", byte_variants(made["gpt2"]))):
        for name, data in files.items():
            t = Tokenizer.from_str(json.dumps(data))
            same = json.loads(made[base].to_str())
            reference["variants"][name] = {"base": base, "sections": {k: v for k, v in data.items() if v != same[k]},
                                           "cases": values(t, some)}
    text = corpus(7, 30_000)
    reference["text_to_train"] = text
    for name, pre in (("gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False)), ("llama3", split_then_bytes(LLAMA3, False)),
                      ("qwen", split_then_bytes(QWEN, False))):
        t = Tokenizer(models.BPE())
        t.normalizer = normalizers.NFC() if name == "qwen" else None
        t.pre_tokenizer = pre
        t.train_from_iterator([text], trainer(600, ["[BOT]", "[EOT]", "[PAD]"]))
        reference["trained"][name] = json.loads(t.to_str())["model"]["merges"]
    (HERE / "reference.json").write_text(json.dumps(reference, ensure_ascii=False, separators=(",", ":")) + "\n")


def text_of(path):
    """What is to be read in a file: a translation's texts, or all of it; None of what is no text."""
    try:
        if path.suffix == ".mo":
            with path.open("rb") as f:
                return "\n".join(v for v in gettext.GNUTranslations(f)._catalog.values() if isinstance(v, str))
        return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    except (OSError, UnicodeError, ValueError):
        return None


def found(folder, size, rng):
    """Some `size` bytes of the texts below a folder, in random order, none of them long."""
    paths, texts, n = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file() and not p.is_symlink()), [], 0
    rng.shuffle(paths)
    for path in paths:
        text = text_of(path)
        if n >= size:
            break
        if text:
            texts.append(text[:100_000])
            n += len(texts[-1].encode())
    return texts


def generated(size, rng):
    """What is rare in files: any character, odd white space, emoji that are joined, scripts without spaces."""
    spaces = " \t\n\r\v\f\x1c\x85\xa0\u1680\u180e\u2000\u2003\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
    def letters(first, last, n):
        return "".join(chr(rng.randrange(first, last)) for _ in range(rng.randrange(1, n)))
    makers = [
        lambda: letters(0x4E00, 0xA000, 40) + rng.choice("，。！？、\n"),
        lambda: letters(0x621, 0x64B, 9) + rng.choice([" ", "، ", "\u064e ", "؟\n"]),
        lambda: "".join(rng.choice(spaces) for _ in range(rng.randrange(1, 6))),
        lambda: "\u200d".join(chr(rng.randrange(0x1F300, 0x1FB00)) for _ in range(rng.randrange(1, 5))) + rng.choice(["", "\ufe0f", "🏽"]),
        lambda: chr(rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000), rng.randrange(0x300, 0x370)])),
        lambda: rng.choice(["'s", "'LL", "I'd", "x'\u017f", "123456789", "3.14", "#include", "    return ", "\r\n", "<|endoftext|>", "[EOT]", "<s>"]),
        lambda: corpus(rng.random(), 200),
    ]
    parts, n = [], 0
    while n < size:
        parts.append(rng.choice(makers)())
        n += len(parts[-1].encode())
    return "".join(parts)


def mixed(folders, size):
    """Texts of some 100 kB, `size` bytes in all."""
    rng = random.Random(11)
    texts = [t for f in folders for t in found(f, size // 2 // len(folders), rng)]
    left = size - sum(len(t.encode()) for t in texts)
    texts += [generated(100_000, rng) for _ in range(left // 100_000 + 1)]
    rng.shuffle(texts)
    return texts


def output(program, *args, **more):
    return subprocess.run([str(program), *map(str, args)], capture_output=True, check=True, **more).stdout


def prepared(programs, tokenizer, texts, folder):
    """The ids of each text in a shard of data_prepare."""
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    output(f"{programs}/data_prepare", "--tokenizer", tokenizer, "--data", folder / "t.jsonl", "--output", folder / tokenizer.stem)
    shard = (folder / tokenizer.stem / "00000_t.jsonl.bin").read_bytes()
    header = array.array("Q", shard[8:40])
    width, tokens, documents = header[0] >> 32, header[1], header[2]
    ids = array.array({2: "H", 4: "I"}[width], shard[40:40 + tokens * width])
    ends = array.array("Q", shard[len(shard) - documents * 8:])
    return [ids[b:e].tolist() for b, e in zip([0, *ends], ends)]


def check_ids(programs, tokenizer, texts, folder):
    t = Tokenizer.from_file(str(tokenizer))
    ids = prepared(programs, tokenizer, texts, folder)
    assert len(ids) == len(texts)
    n = 0
    for at in range(0, len(texts), 100):
        batch = texts[at:at + 100]
        for text, e, ours in zip(batch, t.encode_batch(batch, add_special_tokens=False), ids[at:at + 100]):
            bare = [i for i in range(len(ours) - len(e.ids) + 1) if i <= 1 and ours[i:i + len(e.ids)] == e.ids]
            assert bare and len(ours) - len(e.ids) <= 2, f"{tokenizer.stem}: data_prepare on {text[:200]!r}"
            n += len(e.ids)
    # The program `tokenize` adds what the post-processor adds, and reads bytes that are no UTF-8.
    rng = random.Random(12)
    for text in rng.sample(texts, 4):
        bytes_ = bytearray(text.encode())
        for _ in range(len(bytes_) // 50):
            bytes_[rng.randrange(len(bytes_))] = rng.randrange(128, 256)
        for given in (text.encode(), bytes(bytes_)):
            ours = json.loads(output(f"{programs}/tokenize", "--json", "--tokenizer", tokenizer, input=given))
            assert ours == t.encode(given.decode(errors="replace")).ids, f"{tokenizer.stem}: tokenize on {given[:200]!r}"
            decoded = output(f"{programs}/tokenize", "--json", "--decode", "--tokenizer", tokenizer, input=json.dumps(ours).encode())
            assert json.loads(decoded) == t.decode(ours), f"{tokenizer.stem}: --decode on {given[:200]!r}"
    print(f"{tokenizer.stem}: {n} ids of {sum(len(x.encode()) for x in texts) / 1e6:.1f} MB are the same", flush=True)


def check_merges(programs, name, pre, texts, folder, vocab_size):
    """Trains on the texts by both; the file of ours."""
    special = ["[BOT]", "[EOT]", "[PAD]"]
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC() if name == "qwen" else None
    t.pre_tokenizer = pre
    t.train_from_iterator(texts, trainer(vocab_size, special))
    file = folder / f"trained_{name}.json"
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    output(f"{programs}/tokenizer_train", "--data", folder / "train.jsonl", "--vocab-size", vocab_size, "--pattern", name, "--special",
           *special, "--output", file)
    ours, theirs = json.loads(file.read_text())["model"], json.loads(t.to_str())["model"]
    assert ours["merges"] == theirs["merges"] and ours["vocab"] == theirs["vocab"], name
    print(f"{file.stem}: {len(theirs['merges'])} merges are the same", flush=True)
    return file


def newer_marks():
    """Combining marks of Unicode versions that the package's normalizers do not know: it leaves them where they stand."""
    nfc = normalizers.NFC()
    pairs = ((c, "\u05ac" + chr(c)) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    return {c: None for c, pair in pairs if unicodedata.normalize("NFC", pair) != nfc.normalize_str(pair)}


def check(programs, folders, size):
    newer = newer_marks()
    texts = [t.translate(newer) for t in mixed(folders, size)]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pres = {"gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False), "llama3": split_then_bytes(LLAMA3, False),
                "qwen": split_then_bytes(QWEN, False)}
        trained = [check_merges(programs, name, pre, texts, folder, 30_000) for name, pre in pres.items()]
        for tokenizer in [trained[0], *(HERE / f"{name}.json" for name in ("gpt2", "llama3", "qwen", "tinyllama"))]:
            check_ids(programs, tokenizer, texts + list(long_texts().values()), folder)


parser = argparse.ArgumentParser()
parser.add_argument("--check", metavar="PROGRAMS")
parser.add_argument("--megabytes", type=int, default=50)
parser.add_argument("--texts", nargs="+", metavar="FOLDER",
                    default=[sysconfig.get_path("stdlib"), "/usr/share/doc", "/usr/share/locale", "/usr/include"])
args = parser.parse_args()
check(args.check, args.texts, args.megabytes * 1_000_000) if args.check else write()
