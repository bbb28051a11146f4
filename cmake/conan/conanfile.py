"""Conan 2 recipe of this checkout: conan create cmake/conan --build=missing"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class MlaConan(ConanFile):
    name = "mla"
    description = "Multi-head Latent Attention on CPUs: header-only, with compiled kernels"
    license = "MIT"
    topics = ("attention", "transformer", "inference", "cpu", "simd")
    package_type = "static-library"
    settings = "os", "arch", "compiler", "build_type"

    def set_version(self):
        text = load(self, os.path.join(ROOT, "include", "mla", "version.hpp"))
        numbers = re.findall(r"#define MLA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
        self.version = ".".join(numbers)

    def export_sources(self):
        for part in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "bindings/c/mla.h"):
            copy(self, part, src=ROOT, dst=self.export_sources_folder)

    def requirements(self):
        self.requires("eigen/3.4.0", transitive_headers=True)
        self.requires("nlohmann_json/3.11.3", transitive_headers=True)
        self.requires("pcre2/10.42", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        CMakeDeps(self).generate()
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "BENCHMARKS", "EXAMPLES", "C", "SERVER", "PYTHON"):
            toolchain.cache_variables[f"MLA_BUILD_{part}"] = False
        toolchain.cache_variables["MLA_INSTALL"] = True
        toolchain.cache_variables["MLA_WARNINGS_AS_ERRORS"] = False
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", src=self.source_folder,
             dst=os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        # The package's own mlaConfig.cmake has the targets mla::mla, mla::compiled, ...
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("lib", "cmake", "mla")]
        self.cpp_info.libs = ["mla_compiled"]
        self.cpp_info.defines = ["MLA_COMPILED"]
