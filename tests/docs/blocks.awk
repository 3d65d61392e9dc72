# The C++ blocks of a page as one C++ file: a program becomes the function NAME_1(), and a fragment a function NAME_2(...)
# with the names that the page uses. -v name=NAME.
/^```cpp$/ { inside = 1; block = ""; line = NR + 1; next }
/^```$/ && inside {
  inside = 0
  ++n
  if (sub(/int main\(\)/, "void " name "_" n "()", block))
    printf "#line %d \"%s\"\n%s\n", line, FILENAME, block
  else
    printf "void %s_%d(Rank& rank, const DeviceMesh& mesh, DistributedTensor x, DistributedTensor w) {\n#line %d \"%s\"\n%s}\n\n",
           name, n, line, FILENAME, block
}
inside { block = block $0 "\n" }
BEGIN { print "#include \"tests/docs/blocks.h\"\n" }
END { if (!n) { print "#error no blocks in " FILENAME } }
