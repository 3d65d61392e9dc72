#!/usr/bin/env bash
# tests/install/vcpkg.sh: makes the vcpkg port of this checkout, and builds and runs the program of this folder with it.
# Debian's packages stand in for vcpkg's, by empty ports of their names. It needs vcpkg: VCPKG_ROOT is a checkout of it,
# and `vcpkg` its program, there or on the path. Takes as long as a build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${VCPKG_ROOT:?is to be a checkout of vcpkg}"
export VCPKG_ROOT VCPKG_FORCE_SYSTEM_BINARIES=1 VCPKG_DISABLE_METRICS=1 VCPKG_MAX_CONCURRENCY=${JOBS:-$(nproc)}
export PATH=$VCPKG_ROOT:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for port in fmt highway nlohmann-json pcre2 utf8proc zlib zstd; do
  mkdir -p "$work/ports/$port"
  echo "{\"name\": \"$port\", \"version\": \"0\"}" > "$work/ports/$port/vcpkg.json"
  echo 'set(VCPKG_POLICY_EMPTY_PACKAGE enabled)' > "$work/ports/$port/portfile.cmake"
done
vcpkg install dtensor --overlay-ports="$root/examples/packaging/vcpkg" --overlay-ports="$work/ports" --triplet x64-linux-release \
  --host-triplet x64-linux-release --binarysource=clear --x-buildtrees-root="$work/buildtrees" --x-install-root="$work/installed" --x-packages-root="$work/packages" \
  --downloads-root="$work/downloads"
cmake -S "$root/tests/install" -B "$work/build" -DWAY=find_package -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_TOOLCHAIN_FILE="$VCPKG_ROOT/scripts/buildsystems/vcpkg.cmake" -DVCPKG_TARGET_TRIPLET=x64-linux-release \
  -DVCPKG_INSTALLED_DIR="$work/installed"
cmake --build "$work/build"
"$work/build/outside" | grep -q 'tp=Shard(0): 1 8 27'
echo "vcpkg: the program runs"
