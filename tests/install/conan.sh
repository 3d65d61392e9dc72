#!/usr/bin/env bash
# tests/install/conan.sh: makes the Conan package of this checkout against Debian's libraries, and builds and runs the
# program of this folder with it. It needs conan 2 (pip install conan) and takes as long as a build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CONAN_HOME=$work/home
profile=$root/packaging/conan/debian.profile
conan create "$root/packaging/conan" -pr:a "$profile" -nr
conan install --requires=dtensor/0.1.0 -pr:a "$profile" -nr -g CMakeDeps -g CMakeToolchain -of "$work/deps"
cmake -S "$root/tests/install" -B "$work/build" -DWAY=find_package -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_TOOLCHAIN_FILE="$work/deps/conan_toolchain.cmake"
cmake --build "$work/build"
"$work/build/outside" | grep -q 'tp=Shard(0): 1 8 27'
echo "conan: the program runs"
