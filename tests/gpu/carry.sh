#!/bin/sh
# What a machine with a GPU needs of the build folder $1, its size, and the libraries that it must have.
cd "$1" || exit 2
set --
for path in bin bench gpu lib tests/test_cuda; do
  [ -e "$path" ] && set -- "$@" "$path"
done
echo "to carry, from $PWD:"
du -ch "$@"
echo "libraries that the machine must have:"
find "$@" -type f -exec readelf -d {} + 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p' | sort | uniq -c |
  while read -r count name; do
    [ -e "lib/$name" ] || echo "  $name ($count)"
  done
