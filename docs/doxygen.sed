# For Doxygen (docs/CMakeLists.txt): plain comments before a declaration, and behind one, document it; the first is the file's.
# A formatter of {fmt} belongs to a namespace that is not here; the token <s> is no tag.
/^template <>$/{
  N
  s|^.*struct fmt::formatter<.*$|\n|
}
s|<s>|\\<s>|
1s|^// (.*)|/// \\file\n/// \1|
s|^( *)//( .*)?$|\1///\2|
s|([;,]) +// |\1 ///< |
