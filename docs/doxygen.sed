# For Doxygen (docs/CMakeLists.txt): plain comments before a declaration, and behind one, document it; the first is the file's.
1s|^// (.*)|/// \\file\n/// \1|
s|^( *)//( .*)?$|\1///\2|
s|([;,]) +// |\1 ///< |
