#!/usr/bin/env bash
# Measures the library on one GPU, and PyTorch beside it. Each section ends within 9 minutes.
# shellcheck disable=SC2317,SC2329  # functions are called by run
set -u
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

# shellcheck disable=SC2034  # used by read_arguments
usage="usage: tests/gpu/bench.sh [--build DIR] [--out DIR] [SECTION...]

sections, all of them unless named:
  ceilings   device copy, and a large bf16 product: what bounds the rest
  kernels    the library's own kernels as shares of the copy rate
  gemm       products of the models' shapes, by the heuristics' algorithms and by tuned ones
  attention  forward and backward, heads of 64 and 128, 1024 to 8192 tokens
  linear     gated linear attention beside it, 2048 to 32768 tokens
  train124, train350, train1b, train3b
             training steps per second, MFU and peak memory of a Llama of that size: llama_pretrain, then
             PyTorch eager and torch.compile with cuDNN's attention and fused AdamW, at the same batch

--build DIR  of the preset gpu (build/gpu); logs go to its folder work
--out DIR  for a JSON file per section (build/gpu/results)
Prints all that is in the folder as tables, by tests/gpu/report.py, last.
Exit codes: 0 done, 1 something failed, 2 nothing was run (no GPU, bad input)."
# shellcheck disable=SC2034
folders=(--build --out)
# shellcheck disable=SC2034
sections=(ceilings kernels gemm attention linear train124 train350 train1b train3b)

# A program of build/gpu/bench, whose results are FILE.json.
program() { # NAME FILE OPTION...
  local file=$out/$2.json
  if [[ ! -x $build/bench/$1 ]]; then
    skip "$2" "$build/bench/$1 is not built"
    return
  fi
  mkdir -p "$out" && rm -f "$file"
  run "$2" ours "$build/bench/$1" --json "$file" "${@:3}" && cat "$work/${current}_$2.log"
}

steps=30
untimed=10

# The same text, batch, optimizer and learning rates for all.
options() { # CONFIG BATCH SEQ
  echo --model "examples/configs/$1" --batch-size "$2" --seq-len "$3" --steps "$steps" --lr 3e-4 --warmup-steps 10 \
    --data docs/*.md nn/*.cpp ops/*.cpp
}

train() { # CONFIG BATCH SEQ
  local files=$work/$current list program
  rm -rf "$files" && mkdir -p "$files" "$out"
  read -ra list <<<"$(options "$@")"
  ours_to() { ours "$build/bin/llama_pretrain" "${@:2}" --device cuda --dtype bf16 --metrics "$files/$1"; }
  export files
  run "llama_pretrain" ours_to dtensor "${list[@]}"
  if python3 -c 'import torch' 2>/dev/null; then
    run "PyTorch eager" python3 tests/bench/peers/torch_llama.py "${list[@]}" --metrics "$files/eager"
    run "PyTorch compiled" python3 tests/bench/peers/torch_llama.py "${list[@]}" --compile --metrics "$files/compiled"
  else
    skip "PyTorch" "python3 has no torch"
  fi
  run "llama_pretrain again" ours_to dtensor_again "${list[@]}"  # how much figures differ from run to run
  run "llama_pretrain without a graph" ours_to dtensor_no_graph "${list[@]}" --cuda-graph never
  rm -f "$work/$current.algorithms"
  run "llama_pretrain with tuned products" ours_to dtensor_tuned "${list[@]}" --tune-gemm "$work/$current.algorithms"
  # A table of ops for people, beside the JSON file of the section.
  run "llama_pretrain op by op" ours_to dtensor_profile "${list[@]}" --profile "$out/$current.profile.txt" --hardware h200
  list=()
  for program in dtensor eager compiled dtensor_again dtensor_no_graph dtensor_tuned; do
    [[ -e $files/$program ]] && list+=("$program=$files/$program")
  done
  python3 tests/gpu/metrics.py "examples/configs/$1" "$2" "$3" "$untimed" "$out/$current.json" "${list[@]}"
}

section_ceilings() { program ceilings_cuda ceilings; }
section_kernels() { program kernels_cuda kernels; }
section_gemm() {
  program gemm_cuda gemm
  rm -f "$work/gemm_algorithms"
  program gemm_cuda gemm_tuned --tune-gemm "$work/gemm_algorithms"
}
section_attention() { program attention_cuda attention; }
section_linear() { program linear_attention_cuda linear_attention; }
section_train124() { train llama_124m.json 32 1024; }
section_train350() { train llama_350m.json 16 2048; }
section_train1b() { train llama_1b.json 4 4096; }
section_train3b() { train llama_3b.json 2 4096; }

read_arguments "$@"
need_gpu
for name in "${chosen[@]}"; do
  section "$name"
  "section_$name"
done
echo
python3 tests/gpu/report.py "$out"
finish
