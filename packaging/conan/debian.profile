# For tests/install/conan.sh: what the recipe requires are Debian's packages.
[settings]
os=Linux
arch=x86_64
compiler=gcc
compiler.version=12
compiler.libcxx=libstdc++11
compiler.cppstd=20
build_type=Release
[platform_requires]
fmt/9.1.0
highway/1.0.3
nlohmann_json/3.11.2
pcre2/10.42
utf8proc/2.8.0
zlib/1.2.13
zstd/1.5.4
