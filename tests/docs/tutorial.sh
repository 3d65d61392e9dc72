#!/usr/bin/env bash
# tests/docs/tutorial.sh [PAGE]: runs the sh blocks of docs/tutorial.md word for word, in a fresh clone of this
# repository's last commit. Its exit code is that of the command that failed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone -q "$root" "$work/dtensor"
cd "$work/dtensor"
awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "${1:-docs/tutorial.md}" > "$work/commands.sh"
time bash -euxo pipefail "$work/commands.sh"
