"""Writes nn/tokenizer/unicode_classes.inc: the code points that the tokenizers package takes for letters, numbers and
white space, asked of its own regular expressions, and for characters of words, asked of added tokens that are single
words (which it finds by other regular expressions: to these, numbers like 1/2 are of no word).

    pip install tokenizers==0.23.3
    python tests/data/reference/unicode_classes.py > nn/tokenizer/unicode_classes.inc
"""
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern):
    text = "".join(chr(c) + "\x01" for c in CODE_POINTS)  # \x01 is in no class
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return sorted({ord(c) for piece, _ in split.pre_tokenize_str(text) for c in piece})


def of_words():
    t = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    t.add_tokens([AddedToken("w", single_word=True, normalized=False)])
    found = t.encode_batch(["w" + chr(c) for c in CODE_POINTS])
    return [c for c, e in zip(CODE_POINTS, found) if t.token_to_id("w") not in e.ids]


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
for name, points in [("letters", members(r"\p{L}")), ("numbers", members(r"\p{N}")), ("spaces", members(r"\s")), ("words", of_words())]:
    print(f"constexpr CodeRange {name}[] = {{")
    line = ""
    for begin, end in ranges(points):
        item = f"{{{begin:#x},{end:#x}}},"
        if len(line) + len(item) > 118:
            print(line)
            line = ""
        line += item
    print(line + "\n};")
print("// clang-format on")
