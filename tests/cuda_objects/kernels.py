#!/usr/bin/env python3
"""What nvcc made of the kernels: disassembles object files, prints a table and fails for kernels that cannot be fast.

    tests/cuda_objects/kernels.py OBJECT.cu.o...              # says what is wrong, and the totals
    tests/cuda_objects/kernels.py OBJECT.cu.o... --table      # and all kernels, as a Markdown table
    tests/cuda_objects/kernels.py OBJECT.cu.o... --table --match 'norm:.*bf16, 8'

It needs cuobjdump and nvdisasm, of a CUDA toolkit or of PyPI's nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, and no GPU.

A kernel fails where
  - it spills registers: a local store at a fixed place of the stack, in a kernel without an indexed local array;
  - it takes a pack apart: one thread stores neighbouring elements, of together at most 16 bytes, one by one. The object
    code does not say whether a store is of the vector path or of what is left over at a row's ends; but what is left
    over is stored element by element by *different* threads, so neighbours that one thread stores are a pack;
  - it has packs of 16 bytes (its template says so, or it loads 16 bytes at once), writes as much as it reads, and has
    no store of 16 bytes;
  - an element-wise kernel of packs stores anything but whole packs, of 16 bytes or, where the output's elements are
    smaller than an input's, of as many elements: its remainder is another kernel;
  - a kernel of rows has more than 64 registers, with which fewer than 32 warps are on an SM. Float64 is exempt: it is
    there for tests, and its numbers take two registers each.
Excepted from the rules on stores, by name, are kernels that store one number or state for a whole row, and random
numbers, where the thread that has the words of four elements stores those of them that a run has at its ends.

Blocks and warps per SM are those of sm_90 (65,536 registers, 2,048 threads, 227 KiB of shared memory), by registers,
threads and static shared memory, for blocks of 256 threads, which all but a few small kernels have.

Exit codes: 0 all is well, 1 a kernel is not, 2 bad input, 77 the tools are not there.
"""
import argparse
import collections
import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

MOST_REGISTERS = 64
ROW_FAMILIES = ("norm", "softmax", "loss", "rotary", "embedding", "activation")
BLOCK = 256
SIZES = {"bf16": 2, "f32": 4, "f64": 8, "i64": 8, "bool": 1}
ONE_PER_ROW = re.compile(r"\w+: (reduce_rows|reduce_columns|squares|normal)_kernel|loss: forward_kernel")
FOUR_WORDS = re.compile(r"\w+: words_kernel")

FUNCTION = re.compile(r"\.section\s+\.text\.([^,\s]+)")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_.]+)\s*(.*?)\s*;")
GLOBAL_STORE = re.compile(r"(?:desc\[UR\d+\])?\[(R\d+)(?:\.\w+)?(?:\+(-?0x[0-9a-f]+))?\]")
RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def tool(name):
    """The program of the toolkit, of PATH, or of a Python package; None where there is none."""
    packages = sysconfig.get_paths()["purelib"]
    found = [shutil.which(name), *sorted(glob.glob(f"/usr/local/cuda*/bin/{name}")),
             *sorted(glob.glob(f"{packages}/nvidia/*/bin/{name}"))]
    return next((path for path in found if path), None)


def width(opcode):
    """Bytes of a load or store: LDG.E.128, STG.E.U16, STG.E"""
    for suffix, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
        if suffix in opcode:
            return size
    return 4


class Kernel:
    def __init__(self, family, symbol):
        self.family, self.symbol = family, symbol
        self.loads, self.stores = collections.Counter(), collections.Counter()
        self.fixed_local_store = self.indexed_local_store = False
        self.taken_apart = None
        self.registers = self.stack = self.shared = 0
        self.name = ""

    def is_named(self, demangled):
        name = re.sub(r"\(anonymous namespace\)::|dtensor::(\w+::)*", "", demangled).removeprefix("void ")
        for long, short in (("__nv_bfloat16", "bf16"), ("double", "f64"), ("float", "f32"), ("unsigned long", "u64"),
                            ("unsigned int", "u32"), ("unsigned short", "u16"), ("unsigned char", "u8")):
            name = name.replace(long, short)
        name = re.sub(r"\blong\b", "i64", name)
        depth = 0  # up to the parameters
        for i, c in enumerate(name):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                name = name[:i]
                break
        self.name = f"{self.family}: {name.replace(' >', '>')}"

    @property
    def arguments(self):
        """Of the template."""
        arguments, depth = [""], 0
        for c in self.name.partition("<")[2].removesuffix(">"):
            depth += (c == "<") - (c == ">")
            if c == "," and depth == 0:
                arguments.append("")
            else:
                arguments[-1] += c
        return [a.strip() for a in arguments]

    @property
    def type(self):
        types = [a for a in re.findall(r"\w+", self.name.partition("<")[2]) if a in SIZES]
        return types[0] if types else ""

    @property
    def elementwise(self):
        """(bytes of a pack of the outputs, elements of a pack), or None"""
        a = self.arguments
        return (int(a[0]) * SIZES[a[3]], int(a[0])) if ": elementwise_kernel<" in self.name else None

    @property
    def has_pack(self):
        a = self.arguments
        declared = len(a) > 1 and a[0] in SIZES and a[1].isdigit() and int(a[1]) * SIZES[a[0]] == 16 and a[0] != "f64"
        return declared or self.loads[16] > 0

    @property
    def blocks(self):
        """Per SM; each of its four parts has 16,384 registers, given out to warps by 256."""
        warps = 4 * (16384 // (32 * -(-self.registers // 8) * 8)) if self.registers else 64
        by_shared = 227 * 1024 // self.shared if self.shared else 64
        return min(warps * 32 // BLOCK, 2048 // BLOCK, by_shared)

    def faults(self):
        if self.fixed_local_store and not self.indexed_local_store:
            yield "spills registers"
        one_per_row, four_words = ONE_PER_ROW.match(self.name), FOUR_WORDS.match(self.name)
        if self.taken_apart and not one_per_row and not four_words:
            yield f"takes a pack apart: {self.taken_apart}"
        packs = self.elementwise
        if packs and packs[1] > 1:
            if set(self.stores) != {packs[0]}:
                yield f"stores {widths(self.stores)} where packs of its output have {packs[0]} bytes"
        elif not packs and self.has_pack and not self.stores[16] and not one_per_row:
            yield f"has packs of 16 bytes and stores {widths(self.stores)}"
        if four_words and not self.stores[min(16, 4 * SIZES[self.type])]:
            yield f"stores {widths(self.stores)}, and four elements never at once"
        if self.family in ROW_FAMILIES and self.type != "f64" and self.registers > MOST_REGISTERS:
            yield f"has {self.registers} registers, more than {MOST_REGISTERS}: hold less"


def widths(counter):
    return " ".join(f"{bytes_}x{counter[bytes_]}" for bytes_ in sorted(counter, reverse=True)) or "nothing"


def written(opcode, operands):
    """The numbers of the registers that an instruction writes, roughly: as many as its width says."""
    match = re.match(r"R(\d+)", operands)
    if not match or opcode.startswith(("ST", "BRA", "EXIT", "RED")):
        return ()
    wide = 4 if ".128" in opcode else 2 if ".64" in opcode or "WIDE" in opcode or opcode[0] == "D" else 1
    return range(int(match[1]), int(match[1]) + wide)


def read_kernels(family, assembly):
    kernel, seen = None, {}  # seen: of this straight run of instructions, {(base, width): offsets stored}
    for line in assembly:
        if line.startswith((".L", ".text", "\t.section")):
            seen = {}
            match = FUNCTION.search(line)
            if match:
                kernel = Kernel(family, match[1])
                yield kernel
            continue
        match = INSTRUCTION.match(line)
        if not match:
            continue
        opcode, operands = match[1], match[2]
        if opcode.startswith("LDG"):
            kernel.loads[width(opcode)] += 1
        elif opcode.startswith("STG"):
            size = width(opcode)
            kernel.stores[size] += 1
            at = GLOBAL_STORE.match(operands)
            if at and size < 16:
                offset = int(at[2] or "0", 16)
                offsets = seen.setdefault((at[1], size), set())
                if offset - size in offsets or offset + size in offsets:
                    kernel.taken_apart = f"{opcode} {operands}"
                offsets.add(offset)
        elif opcode.startswith("STL"):
            if operands.startswith("[R1+") or operands.startswith("[R1]"):
                kernel.fixed_local_store = True
            else:
                kernel.indexed_local_store = True
        elif opcode.startswith(("BRA", "BRX", "EXIT", "RET", "CALL", "BSYNC")):
            seen = {}
        if seen:
            for register in written(opcode, operands):
                for key in [k for k in seen if k[0] in (f"R{register}", f"R{register - 1}")]:
                    del seen[key]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def kernels_of(cuobjdump, nvdisasm, path):
    family, kernels = os.path.basename(path).split(".")[0], []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([cuobjdump, "-xelf", "all", os.path.abspath(path)], cwd=folder, check=True, capture_output=True)
        for cubin in sorted(glob.glob(f"{folder}/*.cubin")):
            found = {k.symbol: k for k in read_kernels(family, run(nvdisasm, "-c", cubin).splitlines())}
            for symbol, registers, stack, shared in RESOURCES.findall(run(cuobjdump, "-res-usage", cubin)):
                if symbol in found:
                    kernel = found[symbol]
                    kernel.registers, kernel.stack, kernel.shared = int(registers), int(stack), int(shared)
            kernels += found.values()
    return kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", help="object files that nvcc made")
    parser.add_argument("--table", action="store_true", help="print all kernels")
    parser.add_argument("--match", default="", help="print those whose name has this regular expression")
    options = parser.parse_args()
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if not cuobjdump or not nvdisasm:
        print(f"skipped: {'cuobjdump' if not cuobjdump else 'nvdisasm'} was not found "
              "(a CUDA toolkit has it, or pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
        return 77
    os.environ["NVDISASM_PATH"] = nvdisasm
    missing = [path for path in options.objects if not os.path.isfile(path)]
    if missing:
        print(f"kernels: {missing[0]} is no file: build it first", file=sys.stderr)
        return 2
    with concurrent.futures.ProcessPoolExecutor() as pool:
        one = lambda path: pool.submit(kernels_of, cuobjdump, nvdisasm, path)  # noqa: E731
        kernels = [k for done in [one(path) for path in options.objects] for k in done.result()]
    if not kernels:
        print("kernels: no kernels for a GPU in these files", file=sys.stderr)
        return 2
    names = subprocess.run(["c++filt"], input="\n".join(k.symbol for k in kernels), capture_output=True, text=True,
                           check=True).stdout.splitlines()
    for kernel, name in zip(kernels, names):
        kernel.is_named(name)
    if options.table:
        print("| kernel | type | loads, bytes x instructions | stores | registers | spills | shared | blocks, warps per SM |")
        print("|---|---|---|---|---|---|---|---|")
        for k in sorted(kernels, key=lambda k: k.name):
            if re.search(options.match, k.name):
                spills = "yes" if "spills registers" in k.faults() else "no"
                print(f"| {k.name} | {k.type} | {widths(k.loads)} | {widths(k.stores)} | {k.registers} | {spills} | {k.shared} "
                      f"| {k.blocks}, {k.blocks * BLOCK // 32} |")
    faults = [(k, fault) for k in kernels for fault in k.faults()]
    for kernel, fault in sorted(faults, key=lambda f: f[0].name):
        print(f"{kernel.name} {fault}")
    print(f"{len(kernels)} kernels, {sum(k.stores[16] > 0 for k in kernels)} with stores of 16 bytes, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
