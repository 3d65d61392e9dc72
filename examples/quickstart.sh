#!/usr/bin/env bash
# examples/quickstart.sh: from a bare Debian or Ubuntu machine to a trained, sharded Llama.
#
# Installs what is missing (as root or with sudo), builds build/bin/llama_pretrain, and trains a Llama of a million
# parameters on this repository's own text, on four ranks (threads of one process): data parallel over dp=2 with fully
# sharded parameters, tensor and sequence parallel over tp=2. The build takes some minutes the first time, the training
# less than one. Run it again and only the training is left.
#
# Writes to build/ only. The exit code is that of the step that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  '') ;;
  -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' examples/quickstart.sh && exit 0 ;;
  *) echo "examples/quickstart.sh: it takes no options; see --help" >&2 && exit 2 ;;
esac

headline() { printf '\n== %s\n' "$*"; }

headline 'Installing what is missing'
tests/run.sh --install

headline 'Building build/bin/llama_pretrain'
export CXX=${CXX:-$(command -v clang++ || command -v c++)}  # as tests/run.sh
cmake --preset default >/dev/null
cmake --build --preset default --target llama_pretrain

headline 'Training a Llama on mesh dp=2,tp=2 (examples/plans/fsdp_tp.json)'
mapfile -t text < <(find README.md docs placement dtensor ops nn examples tests -name '*.md' -o -name '*.h' -o -name '*.cpp' | LC_ALL=C sort)
mkdir -p build/quickstart
llama=(build/bin/llama_pretrain --model examples/configs/llama_tiny.json)
plan=(--plan examples/plans/fsdp_tp.json)
"${llama[@]}" --mesh dp=2,tp=2 "${plan[@]}" --data "${text[@]}" --steps 100 --warmup-steps 10 --lr 0.003 \
  --metrics build/quickstart/metrics.jsonl

cat <<END

== What to try next, in $PWD
What a training step would communicate on 32 ranks, and why; nothing runs:
    ${llama[*]} --mesh dp=8,tp=4 ${plan[*]} --dry-run
The same losses on one rank as on four:
    ${llama[*]} --data README.md docs/*.md --steps 20
    ${llama[*]} --data README.md docs/*.md --steps 20 --mesh dp=2,tp=2 ${plan[*]}
How two sharded matrices are multiplied, and the ways not taken:
    cmake --build build --target dtensor_explain
    build/bin/dtensor_explain --mesh tp=4 op matmul "f32[8,16] tp=Shard(1)" "f32[16,4] tp=Shard(0)"
The first of the numbered examples, 40 to 80 lines each:
    cmake --build build --target 01_hello_mesh && build/bin/01_hello_mesh
END
