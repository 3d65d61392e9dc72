#!/usr/bin/env bash
# Everything that can only be checked on a GPU. Each section ends within 9 minutes.
# shellcheck disable=SC2317,SC2329  # functions are called by run
set -u
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

# shellcheck disable=SC2034  # used by read_arguments
usage="usage: tests/gpu/check.sh [--build DIR] [SECTION...]

sections, all of them unless named:
  tests        build/gpu/tests/test_cuda: every test that needs a GPU
  sanitizer    the quick ones of them under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
  determinism  a run twice has the same bits: float32 and bfloat16, launched as a graph and not
  cpu          losses on CUDA are those of the CPU: 30 steps in float32 to 1e-4, 100 in bfloat16 to 1e-2
  ranks        several ranks on one GPU (threads) have the losses of one rank to 1e-4
  nccl         NCCL with one rank and with several processes on one GPU
  killed       a rank of NCCL is killed: the others end with exit code 1 and say why

--build DIR  of the preset gpu (build/gpu); logs and metrics go to its folder work
Prints a table last. Exit codes: 0 all passed or were skipped, 1 something failed, 2 nothing was run (no GPU, bad input)."
folders=(--build)
# shellcheck disable=SC2034
sections=(tests sanitizer determinism cpu ranks nccl killed)

# llama_pretrain on the tiny Llama. Metrics go to NAME.jsonl.
train() { # NAME OPTION...
  local name=$1
  shift
  rm -f "$work/$name.jsonl"  # of an earlier call
  ours "$build/bin/llama_pretrain" --model examples/configs/llama_tiny.json --data docs/*.md --batch-size 16 --seq-len 128 \
    --lr 1e-3 --warmup-steps 10 --metrics "$work/$name.jsonl" "$@"
}

agree() { # A B OPTION...
  python3 tests/gpu/compare_metrics.py "$work/$1.jsonl" "$work/$2.jsonl" "${@:3}"
}

section_tests() {
  run test_cuda ours "$build/tests/test_cuda" --durations yes
}

# Names of test cases that took the least time, up to 2 seconds together: a sanitizer makes them tens of times slower.
quick_tests() {
  local log=$work/tests_test_cuda.log names=$work/names.txt
  [[ -s $log ]] || ours "$build/tests/test_cuda" --durations yes >"$log" || return 1
  ours "$build/tests/test_cuda" --list-test-names-only >"$names"
  sed -nE 's/^([0-9.]+) s: (.*)$/\1\t\2/p' "$log" | sort -n | awk -F '\t' '
    NR == FNR { test[$0]; next }
    ($2 in test) && !($2 in seen) { seen[$2]; total += $1; if (total <= 2) print $2 }' "$names" - |
    sed 's/,/\\,/g' >"$work/quick.txt"  # as Catch reads names
  echo "$(wc -l <"$work/quick.txt") of $(wc -l <"$names") test cases"
  [[ -s $work/quick.txt ]]
}

# Failing calls of the CUDA API are no finding: tests provoke them.
sanitize() { # TOOL OPTION...
  ours compute-sanitizer --tool "$1" --error-exitcode 99 --report-api-errors no "${@:2}" \
    "$build/tests/test_cuda" --input-file "$work/quick.txt"
}

section_sanitizer() {
  local tool
  if ! command -v compute-sanitizer >/dev/null; then
    skip "all tools" "compute-sanitizer is not in PATH"
    return
  fi
  run "quick tests" quick_tests || return
  for tool in memcheck racecheck initcheck synccheck; do
    case $tool in
      # Only our kernels. Not so for the others: memory that a library's kernel wrote would count as never written.
      racecheck | synccheck) run "$tool" sanitize "$tool" --kernel-name kns=dtensor ;;
      *) run "$tool" sanitize "$tool" ;;
    esac
  done
}

section_determinism() {
  local dtype graph i
  for dtype in fp32 bf16; do
    for graph in auto never; do
      for i in 1 2; do
        run "run $i, $dtype, graph $graph" train "twice_${dtype}_${graph}_$i" --device cuda --dtype "$dtype" \
          --cuda-graph "$graph" --steps 30
      done
      run "same bits, $dtype, graph $graph" agree "twice_${dtype}_${graph}_1" "twice_${dtype}_${graph}_2" --bits
    done
    run "graph or not, $dtype" agree "twice_${dtype}_auto_1" "twice_${dtype}_never_1" --tolerance 1e-6
  done
}

section_cpu() {
  local steps
  for steps in 30 100; do
    run "CPU, $steps steps" train "cpu_$steps" --device cpu --steps "$steps"
  done
  run "CUDA, fp32" train cuda_fp32 --device cuda --dtype fp32 --steps 30
  run "CUDA, bf16" train cuda_bf16 --device cuda --dtype bf16 --steps 100
  run "fp32: losses of 30 steps to 1e-4" agree cpu_30 cuda_fp32 --tolerance 1e-4
  run "bf16: losses of 100 steps to 1e-2" agree cpu_100 cuda_bf16 --tolerance 1e-2
}

section_ranks() {
  local mesh plan name
  run "one rank" train one_rank --device cuda --dtype fp32 --steps 30
  while read -r mesh plan; do
    name="$mesh $plan"
    run "$name" train "ranks_${mesh//,/_}_$plan" --device cuda --dtype fp32 --steps 30 --comm threads --mesh "$mesh" \
      --plan "examples/plans/$plan.json"
    run "$name: losses to 1e-4" agree one_rank "ranks_${mesh//,/_}_$plan" --tolerance 1e-4
  done <<'EOF'
tp=2 tp
tp=2 tp_sp_loss
dp=2 ddp
dp=2 fsdp
dp=2,tp=2 fsdp_tp
EOF
}

# The rest of a shell in the background: one process of several, by torchrun's variables.
as_rank() { # VARIABLE=VALUE... COMMAND...
  exec env LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:-}" MASTER_ADDR=127.0.0.1 MASTER_PORT="$port" "$@"
}

# The same for several processes on one GPU, each on a "host" of its own: NCCL refuses two ranks on one GPU of a host.
# Sockets connect them.
on_own_host() { # RANK WORLD COMMAND...
  as_rank RANK="$1" WORLD_SIZE="$2" LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 NCCL_HOSTID="loop-$1" NCCL_NET=Socket \
    NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_NVLS_ENABLE=0 NCCL_MAX_CTAS=2 \
    NCCL_PROTO=Simple "${@:3}"
}

free_port() {
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
}

# Each rank's metrics go to NAME_rankR.jsonl: rank 0's has the steps.
nccl_train() { # WORLD NAME OPTION...
  local world=$1 name=$2 rank pid pids=() bad=0
  shift 2
  rm -f "$work/${name}"_rank*.jsonl
  free_port
  for ((rank = 0; rank < world; rank++)); do
    on_own_host "$rank" "$world" "$build/bin/llama_pretrain" --model examples/configs/llama_tiny.json --data docs/*.md \
      --batch-size 16 --seq-len 128 --lr 1e-3 --warmup-steps 10 --device cuda --dtype fp32 --comm nccl \
      --metrics "$work/${name}_rank$rank.jsonl" "$@" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || bad=1
  done
  return "$bad"
}

# Two ranks on one GPU of one host end with the remedy.
nccl_refused() {
  local rank pid pids=() said=$work/nccl_refused.txt
  free_port
  for rank in 0 1; do
    as_rank RANK="$rank" WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 \
      "$build/bin/llama_pretrain" --model examples/configs/llama_tiny.json --data docs/*.md --steps 1 --mesh dp=2 \
      --device cuda --comm nccl &>"$said.$rank" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    if wait "$pid"; then
      echo "a rank did not fail"
      return 1
    fi
  done
  cat "$said".*
  grep -q -e "--comm threads" "$said".*
}

# Real NCCL on one GPU: results of all collectives, a rank that throws, one that is killed, one that is late.
loopback() { # RANKS
  if [[ -x $build/gpu/nccl_loopback ]]; then
    run "nccl_loopback, $1 processes" ours "$build/gpu/nccl_loopback" "$1"
  else
    skip "nccl_loopback" "$build/gpu/nccl_loopback is not built"
  fi
}

section_nccl() {
  loopback 2
  run "one rank" train one_rank --device cuda --dtype fp32 --steps 20
  run "llama_pretrain, 1 process" nccl_train 1 nccl_1 --mesh dp=1 --steps 20
  run "its losses to 1e-4" agree one_rank nccl_1_rank0 --tolerance 1e-4
  run "llama_pretrain, 2 processes, dp=2" nccl_train 2 nccl_dp --mesh dp=2 --plan examples/plans/ddp.json --steps 20
  run "its losses to 1e-4" agree one_rank nccl_dp_rank0 --tolerance 1e-4
  run "llama_pretrain, 2 processes, fsdp" nccl_train 2 nccl_fsdp --mesh dp=2 --plan examples/plans/fsdp.json --steps 20
  run "its losses to 1e-4" agree one_rank nccl_fsdp_rank0 --tolerance 1e-4
  run "two ranks on one GPU are refused" nccl_refused
}

# Kills rank 1 of 3 with signal 9 in the middle of a run; the others have 60 seconds.
kill_one() {
  local rank pids=() file=$work/killed_rank0.jsonl said=$work/killed.txt began rc bad=0
  rm -f "$file"
  free_port
  for rank in 0 1 2; do
    on_own_host "$rank" 3 "$build/bin/llama_pretrain" --model examples/configs/llama_tiny.json --data docs/*.md \
      --batch-size 12 --seq-len 128 --mesh dp=3 --plan examples/plans/ddp.json --device cuda --dtype fp32 --comm nccl \
      --steps 100000 --metrics "$work/killed_rank$rank.jsonl" >"$said.$rank" 2>&1 &
    pids+=($!)
  done
  for ((began = SECONDS; SECONDS - began < 120; )); do
    [[ -e $file && $(wc -l <"$file") -ge 3 ]] && break
    for rank in 0 1 2; do kill -0 "${pids[rank]}" 2>/dev/null || break 2; done
    sleep 0.2
  done
  if ! [[ -e $file && $(wc -l <"$file") -ge 3 ]]; then
    tail -n 5 "$said".*
    echo "the run did not come to its third step"
    kill -9 "${pids[@]}" 2>/dev/null
    return 1
  fi
  kill -9 "${pids[1]}" && began=$SECONDS
  for rank in 0 2; do
    while kill -0 "${pids[rank]}" 2>/dev/null && ((SECONDS - began < 60)); do sleep 0.2; done
    if kill -0 "${pids[rank]}" 2>/dev/null; then
      echo "rank $rank still runs after 60 seconds"
      kill -9 "${pids[rank]}"
      bad=1
      continue
    fi
    wait "${pids[rank]}"
    rc=$?
    echo "rank $rank ended with $rc after $((SECONDS - began)) s: $(tail -n 1 "$said.$rank")"
    ((rc == 1)) && grep -q "rank 1" "$said.$rank" || bad=1
  done
  return "$bad"
}

section_killed() {
  loopback 3
  run "a rank of llama_pretrain" kill_one
}

read_arguments "$@"
need_gpu
for name in "${chosen[@]}"; do
  section "$name"
  "section_$name"
done
finish
