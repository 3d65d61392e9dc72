"""The Conan recipe, of the checkout that it lies in: conan create examples/packaging/conan --build=missing"""
import os

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, rmdir


class Dtensor(ConanFile):
    name = "dtensor"
    version = "0.1.0"
    description = "Tensors sharded over a mesh of devices"
    license = "MIT"
    package_type = "static-library"
    settings = "os", "compiler", "build_type", "arch"

    def export_sources(self):
        root = os.path.join(self.recipe_folder, "..", "..", "..")
        for pattern in ("CMakeLists.txt", "LICENSE", "placement/*", "dtensor/*", "ops/*", "nn/*",
                        "docs/CMakeLists.txt", "examples/hardware/*"):
            copy(self, pattern, root, self.export_sources_folder)

    def requirements(self):
        for dependency in ("fmt/[>=9 <12]", "highway/[>=1 <2]", "nlohmann_json/[>=3 <4]", "pcre2/[>=10 <11]", "utf8proc/[>=2 <3]",
                           "zlib/[>=1.2 <2]", "zstd/[>=1.5 <2]"):
            self.requires(dependency, transitive_headers=True)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for option in ("CUDA", "MPI", "PROGRAMS"):
            toolchain.cache_variables["DTENSOR_" + option] = "OFF"
        toolchain.generate()
        dependencies = CMakeDeps(self)
        # As Highway's own file for CMake is called.
        dependencies.set_property("highway", "cmake_file_name", "hwy")
        dependencies.set_property("highway::hwy", "cmake_target_name", "hwy::hwy")
        dependencies.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        CMake(self).install()
        for folder in ("cmake", "pkgconfig"):  # Conan makes these for each of its users
            rmdir(self, os.path.join(self.package_folder, "lib", folder))

    def package_info(self):
        requires = {
            "placement": ["fmt::fmt"],
            "core": ["placement", "nlohmann_json::nlohmann_json"],
            "ops": ["core", "highway::highway"],
            "testing": ["ops"],
            "nn": ["ops", "pcre2::pcre2", "utf8proc::utf8proc", "zlib::zlib", "zstd::zstd"],
        }
        for layer, others in requires.items():
            component = self.cpp_info.components[layer]
            component.libs = ["dtensor_" + layer]
            component.requires = others
            component.includedirs = [os.path.join("include", "dtensor")]
            component.cxxflags = ["-ffp-contract=off"]
        self.cpp_info.components["core"].system_libs = ["pthread", "dl"]
