"""Writes nn/tokenizer/unicode_classes.inc: the code points that the tokenizers package takes for letters, numbers and
characters of words, asked of its own regular expressions, so that our splitters take the same.

    pip install tokenizers==0.23.3
    python tests/data/reference/unicode_classes.py > nn/tokenizer/unicode_classes.inc
"""
import tokenizers
from tokenizers import Regex, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern):
    text = "".join(chr(c) + "\x01" for c in CODE_POINTS)  # \x01 is in no class
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return sorted({ord(c) for piece, _ in split.pre_tokenize_str(text) for c in piece})


def ranges(points):
    found = []
    for c in points:
        if found and found[-1][1] == c:
            found[-1][1] = c + 1
        else:
            found.append([c, c + 1])
    return found


print(f"// Made by tests/data/reference/unicode_classes.py with tokenizers {tokenizers.__version__}: begin and end of each range.")
print("// clang-format off")
for name, pattern in [("letters", r"\p{L}"), ("numbers", r"\p{N}"), ("spaces", r"\s"), ("words", r"\w")]:
    print(f"constexpr CodeRange {name}[] = {{")
    line = ""
    for begin, end in ranges(members(pattern)):
        item = f"{{{begin:#x},{end:#x}}},"
        if len(line) + len(item) > 118:
            print(line)
            line = ""
        line += item
    print(line + "\n};")
print("// clang-format on")
