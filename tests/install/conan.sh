#!/usr/bin/env bash
# tests/install/conan.sh: makes the Conan package of this checkout, and builds and runs the program of this folder with
# it. Conan Center's packages are stood in for by Debian's (debian_package.py). It needs conan 2 (pip install conan) and
# takes as long as a build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CONAN_HOME=$work/home
profile=$root/tests/install/debian.profile
options=(-pr:a "$profile" --no-remote -c tools.cmake.cmaketoolchain:user_presets="" -c tools.build:jobs="${JOBS:-$(nproc)}")
for package in fmt/9.1.0 highway/1.0.3 nlohmann_json/3.11.2 pcre2/10.42 utf8proc/2.8.0 zlib/1.2.13 zstd/1.5.4; do
  conan create "$root/tests/install/debian_package.py" --name "${package%/*}" --version "${package#*/}" "${options[@]}"
done
conan create "$root/examples/packaging/conan" "${options[@]}"
conan install --requires=dtensor/0.1.0 "${options[@]}" -g CMakeDeps -g CMakeToolchain -of "$work/deps"
cmake -S "$root/tests/install" -B "$work/build" -DWAY=find_package -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_TOOLCHAIN_FILE="$work/deps/conan_toolchain.cmake"
cmake --build "$work/build"
"$work/build/outside" | grep -q 'tp=Shard(0): 1 8 27'
echo "conan: the program runs"
