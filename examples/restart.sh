#!/usr/bin/env bash
# examples/restart.sh COMMAND...: runs it again while it fails, at most MOST times (10) in a row without a step in
# between. For runs outside of a scheduler, on a machine or a node that may lose ranks:
#
#     examples/restart.sh mpirun -n 4 build/bin/llama_pretrain --launch mpi --mesh dp=4 --checkpoint-dir run \
#       --checkpoint-every 100 --metrics run.jsonl ...
#
# With --checkpoint-dir each start goes on from the newest sound checkpoint. 0 ends the loop: done, or told to stop by
# SIGTERM or SIGINT. So does 2, bad input, which no restart mends. METRICS names the --metrics file by which progress
# is seen; without it every failure counts.
set -uo pipefail
(($#)) || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 2; }

child=
trap '[[ -n $child ]] && kill -TERM "$child"' TERM INT

steps() { # that the metrics file has
  local n
  n=$(grep -c '"loss"' "${METRICS:-/dev/null}" 2>/dev/null)
  echo "${n:-0}"
}

failures=0
while true; do
  before=$(steps)
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done  # a signal ended the waiting, not the run
  case $code in 0 | 2) exit "$code" ;; esac
  if (($(steps) > before)); then failures=0; fi
  if ((++failures > ${MOST:-10})); then
    echo "restart.sh: it failed $failures times in a row, the last time with $code: given up" >&2
    exit "$code"
  fi
  echo "restart.sh: it failed with $code, $failures of at most ${MOST:-10} times; again in ${PAUSE:-5} s" >&2
  sleep "${PAUSE:-5}"
done
