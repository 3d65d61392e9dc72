# shellcheck shell=bash disable=SC2154  # sections, folders and usage are those of the script that sources this
# What check.sh and bench.sh share: arguments, libraries, the table. To be sourced; then, with $sections, $folders (the
# options that take one) and $usage set, `read_arguments "$@"`, `need_gpu`, `section`, `run` and `skip`, `finish`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$root/build/gpu
out=""
failures=0
rows=()

# Fills $chosen, $build, $out, and $work: a folder for logs and metrics.
read_arguments() {
  chosen=()
  while (($#)); do
    if [[ $1 == -h || $1 == --help ]]; then
      echo "$usage"
      exit 0
    elif [[ " ${folders[*]} " == *" $1 "* ]]; then
      (($# > 1)) || { echo "$0: $1 needs a folder" >&2; exit 2; }
      printf -v "${1#--}" %s "$(realpath -m "$2")"  # $build or $out
      shift
    elif [[ " ${sections[*]} " == *" $1 "* ]]; then
      chosen+=("$1")
    else
      echo "$0: there is no section or option $1; sections: ${sections[*]}" >&2
      exit 2
    fi
    shift
  done
  ((${#chosen[@]})) || chosen=("${sections[@]}")
  work=$build/work
  [[ $out ]] || out=$build/results
  cd "$root" || exit 2
}

# Folders of the libraries that our programs need and the system's loader does not know: the toolkit's, then those that
# came with a Python package (PyTorch's). Programs here are told by LD_LIBRARY_PATH, but for cuDNN, of which they find
# the newest themselves; PyTorch is not, it has its own.
library_folders() {
  local known name folder packages
  known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null)
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)
  for name in libcublasLt.so.13 libnccl.so.2 libnvrtc.so.13; do
    [[ $known == *"$name"* ]] && continue
    for folder in /usr/local/cuda/lib64 "$packages"/nvidia/*/lib; do
      [[ -e $folder/$name ]] && printf '%s:' "$folder" && break
    done
  done
}

# One of our programs, with its libraries.
ours() {
  LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-} "$@"
}

# Ends the script with 2 where nothing can run.
need_gpu() {
  PATH=$PATH:/usr/local/cuda/bin
  if [[ $build/carry.tar.xz -nt $build/carry.unpacked ]]; then  # as carry.sh packed it
    python3 -m tarfile -e "$build/carry.tar.xz" "$build" && touch "$build/carry.unpacked" || exit 2
  fi
  libraries=$(library_folders)
  if [[ ! -x $build/tests/test_cuda ]]; then
    echo "$0: $build/tests/test_cuda is not there: cmake --preset gpu && cmake --build --preset gpu (or --build DIR)" >&2
    exit 2
  fi
  local said
  said=$(ours "$build/tests/test_cuda" "no test of this name" 2>&1)
  case $? in
    127) echo "$0: $said" >&2 && exit 2 ;;  # a library is missing
    2) [[ $said == test_cuda:* ]] && echo "$0: no GPU: ${said#test_cuda: }" >&2 && exit 2 ;;
  esac
  mkdir -p "$work"
}

# A call of the machine with a GPU lasts 10 minutes at most, so a section must end within 9.
section() {
  current=$1
  section_end=$((SECONDS + 540))
  echo "== $current"
}

row() { # RESULT NAME SECONDS
  rows+=("$(printf '%-12s %-44s %5ss  %s' "$current" "$2" "$3" "$1")")
  echo "${rows[-1]}"
}

skip() { # NAME REASON
  row "SKIP($2)" "$1" 0
}

# A row: PASS where the command succeeds before the section's time is over. Its output goes to a file, the end of which
# is shown where it fails.
run() { # NAME COMMAND...
  local name=$1 began=$SECONDS left=$((section_end - SECONDS)) log rc failure
  shift
  log=$work/${current}_$(tr -c 'A-Za-z0-9_=\n' '_' <<<"$name").log
  if ((left < 5)); then
    row "FAIL(the section's 9 minutes are over)" "$name" 0
    failures=$((failures + 1))
    return 1
  fi
  # In a shell of its own, so that commands may be functions of the scripts.
  export -f ours
  export libraries build out work root section_end
  timeout --kill-after=10 "$left" bash -c "$(declare -f); \"\$@\"" run "$@" >"$log" 2>&1
  rc=$?
  if ((rc == 0)); then
    row PASS "$name" $((SECONDS - began))
    return 0
  fi
  tail -n 25 "$log" | sed 's/^/    /'
  failure="exit $rc"
  ((rc == 124 || rc == 137)) && failure="timed out"
  row "FAIL($failure)" "$name" $((SECONDS - began))
  failures=$((failures + 1))
  return 1
}

finish() {
  echo
  printf '%s\n' "${rows[@]}"
  echo "logs: $work"
  ((failures == 0)) || echo "$failures failed"
  exit $((failures > 0))
}
