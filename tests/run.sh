#!/usr/bin/env bash
# tests/run.sh [CTEST OPTION...]: installs what is missing (Debian, Ubuntu), builds into build/ and runs the tests.
# tests/run.sh --install: only installs what a build needs.
# For example `tests/run.sh -L ops` (one folder's tests), `tests/run.sh -C nightly` (also the long ones).
# The exit code is ctest's, or that of the step that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(clang g++ cmake ninja-build ccache git catch2 libboost-context-dev libcli11-dev libeigen3-dev libfmt-dev libhwy-dev libpcre2-dev libutf8proc-dev libzstd-dev
  nlohmann-json3-dev zlib1g-dev)
for_tests=(clang-format libopenmpi-dev openmpi-bin pkg-config)  # which only tests need; with MPI, --launch mpi is built too

install_missing() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "tests/run.sh: not Debian or Ubuntu, nothing installed; needed are these or their like: $*" >&2
    return
  fi
  local missing=() root=()
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || { echo "tests/run.sh: please install as root: ${missing[*]}" >&2 && exit 2; }
    root=(sudo)
  fi
  echo "tests/run.sh: installing ${missing[*]}"
  "${root[@]}" apt-get update
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

install_missing "${packages[@]}"
[[ ${1:-} != --install ]] || exit 0
install_missing "${for_tests[@]}"

# Clang builds in half of g++'s time what is as fast and gives the same bits; a compiler of your own is named by CXX.
export CXX=${CXX:-$(command -v clang++ || command -v c++)}
cmake --preset default
cmake --build --preset default
exec ctest --preset default --output-on-failure -j2 "$@"
