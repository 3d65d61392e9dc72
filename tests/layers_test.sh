#!/bin/sh
# layers_test.sh [REPOSITORY]: fails where a layer includes one above it (placement < dtensor < ops < nn), a room of ops/
# one that it may not, and where a source breaks one of the few other rules that a search can check. Prints
# file:line: rule.
cd "${1:-$(dirname "$0")/..}" || exit 2
found=0

files() { # FOLDER...
  find "$@" -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' | sort
}

forbid() { # REGEX RULE FOLDER...
  regex=$1 rule=$2
  shift 2
  hits=$(files "$@" | xargs -r grep -nHE "$regex")
  [ -z "$hits" ] && return
  printf '%s\n' "$hits" | while IFS=: read -r file line text; do printf '%s:%s: %s: %s\n' "$file" "$line" "$rule" "$text"; done
  found=1
}

layer() { # FOLDER REGEX-OF-WHAT-IS-ABOVE
  forbid "^[[:space:]]*#[[:space:]]*include[[:space:]]*[\"<]($2)/" "$1/ may not include ($2)/, which are above it" "$1"
}

layer placement 'dtensor|ops|nn|examples|tests'
layer dtensor 'ops|nn|examples|tests'
layer ops 'nn|examples|tests'
layer nn 'examples|tests'

# The rooms of ops/, from below: cpu and core, family (how families are made), the families, functions.h and cards.h over
# them, testing. The kernels of cuda/ know the families that they serve; core knows of them what finds one. A family calls
# another by ops/functions.h alone.
families='pointwise reduction shape linalg layer'
above="$(echo $families | tr ' ' '|')"
room() { # ROOM REGEX-OF-WHAT-IT-MAY-NOT-INCLUDE
  forbid "^[[:space:]]*#[[:space:]]*include[[:space:]]*[\"<]ops/($2)" "ops/$1/ may not include ops/ ($2)" "ops/$1"
}
room cpu "core|family|$above|cuda|testing|[a-z_]+\.h"
room core "family|$above|testing|[a-z_]+\.h|cuda/[^k]"
room family "$above|testing|cards|explain"
for family in $families; do
  others="$(echo $families | tr ' ' '\n' | grep -vx "$family" | tr '\n' '|')testing|explain"
  room "$family" "($others)"
done
room cuda "testing|functions|cards|all"

code='^([^/]|/[^/])*' # what stands before a comment
forbid "${code}thread_local" 'library code has no thread_local: state belongs to Rank' placement dtensor ops nn

include='^[[:space:]]*#[[:space:]]*include[[:space:]]*'
root='placement|dtensor|ops|nn|examples|tests'
for quoted in $(files placement dtensor ops nn examples tests | xargs -r grep -nHE "$include\"" |
  grep -vE "include[[:space:]]*\"($root)/[^.]" | cut -d: -f1,2); do
  echo "$quoted: includes start at the repository root: #include \"placement/rule.h\""
  found=1
done
for header in $(files placement dtensor ops nn examples tests | grep -E '\.(h|cuh)$' | grep -v -- '-inl\.h$'); do  # Highway includes those several times
  grep -q '^#pragma once' "$header" || { echo "$header:1: a header has #pragma once" && found=1; }
done
exit $found
