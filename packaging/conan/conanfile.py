"""The Conan recipe, of the checkout that it lies in: conan create packaging/conan --build=missing"""
import os

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy


class Dtensor(ConanFile):
    name = "dtensor"
    version = "0.1.0"
    description = "Tensors sharded over a mesh of devices"
    license = "MIT"
    package_type = "static-library"
    settings = "os", "compiler", "build_type", "arch"
    options = {"cuda": [True, False], "mpi": [True, False]}
    default_options = {"cuda": False, "mpi": False}

    def export_sources(self):
        root = os.path.join(self.recipe_folder, "..", "..")
        for pattern in ("CMakeLists.txt", "LICENSE", "placement/*", "dtensor/*", "ops/*", "nn/*", "packaging/dtensor.pc.in",
                        "examples/hardware/*"):
            copy(self, pattern, root, self.export_sources_folder)

    def requirements(self):
        for dependency in ("fmt/[>=9 <12]", "highway/[>=1 <2]", "nlohmann_json/[>=3 <4]", "pcre2/[>=10 <11]", "utf8proc/[>=2 <3]",
                           "zlib/[>=1.2 <2]", "zstd/[>=1.5 <2]"):
            self.requires(dependency, transitive_headers=True)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for option in ("cuda", "mpi"):
            toolchain.cache_variables["DTENSOR_" + option.upper()] = "ON" if self.options.get_safe(option) else "OFF"
        toolchain.cache_variables["DTENSOR_PROGRAMS"] = "OFF"
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()

    def package_info(self):
        self.cpp_info.set_property("cmake_find_mode", "none")  # the installed dtensorConfig.cmake is it
        self.cpp_info.builddirs = [os.path.join("lib", "cmake", "dtensor")]
