"""A Conan package that is a Debian package, named and divided as Conan Center's is: for conan.sh, which reaches no server."""
from conan import ConanFile

LIBRARIES = {
    "fmt": {"fmt": ["fmt"]},
    "highway": {"hwy": ["hwy"], "hwy_contrib": ["hwy_contrib"]},
    "nlohmann_json": {"nlohmann_json": []},
    "pcre2": {"pcre2-8bit": ["pcre2-8"]},
    "utf8proc": {"utf8proc": ["utf8proc"]},
    "zlib": {"zlib": ["z"]},
    "zstd": {"zstdlib": ["zstd"]},
}


class DebianPackage(ConanFile):
    settings = "os", "compiler", "build_type", "arch"

    def package_info(self):
        components = LIBRARIES[self.name]
        for component, libraries in components.items():
            # A package of one part has none in Conan Center.
            info = self.cpp_info if component == self.name else self.cpp_info.components[component]
            info.includedirs, info.libdirs = [], []
            info.system_libs = libraries
            if self.name == "highway":
                info.defines = ["HWY_SHARED_DEFINE"]
