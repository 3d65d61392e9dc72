#!/bin/sh
# Packs what a machine with a GPU needs of the build folder $1 into its carry.tar.xz, which check.sh and bench.sh unpack
# there: the programs hold much of the same, so together they take a fraction of their size. Says how large it is, and
# which libraries the machine must have.
cd "$1" || exit 2
set --
for path in bin/llama_pretrain bench/*_cuda gpu/* lib/* tests/test_cuda; do
  [ -e "$path" ] && set -- "$@" "$path"
done
rm -f carry.tar.xz
tar -cf - "$@" | xz -T1 --lzma2=preset=3,dict=64MiB >carry.tar.xz || exit 1
touch carry.unpacked # here everything is there already
du -ch "$@"
echo "to carry: $(du -h carry.tar.xz | cut -f 1) in $PWD/carry.tar.xz"
echo "libraries that the machine must have:"
for file; do
  readelf -d "$file" 2>/dev/null
done | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p' | sort -u | while read -r name; do
  [ -e "lib/$name" ] || echo "  $name"
done
