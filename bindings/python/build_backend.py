"""Builds the wheel with CMake, from the sources two folders up. Needs nothing but Python, and what
CMake finds: a compiler, Eigen, nlohmann/json, PCRE2 and pybind11."""

import base64
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def version():
    text = (ROOT / "include/mla/version.hpp").read_text()
    return ".".join(re.findall(r"#define MLA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


def metadata():
    return (
        "Metadata-Version: 2.1\n"
        "Name: mla\n"
        f"Version: {version()}\n"
        "Summary: Multi-head Latent Attention on CPUs\n"
        "License: MIT\n"
        f"Requires-Python: >={sys.version_info.major}.{sys.version_info.minor}\n"
        "Requires-Dist: numpy\n"
    )


def build(build_directory):
    """Builds the package mla in build_directory and returns its files. With MLA_BUILD_DIRECTORY in
    the environment: takes the one that was built there."""
    if "MLA_BUILD_DIRECTORY" in os.environ:
        return sorted(pathlib.Path(os.environ["MLA_BUILD_DIRECTORY"], "mla").iterdir())
    define = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_FLAGS_RELEASE": "-O2",
        "Python_EXECUTABLE": sys.executable,
        "MLA_BUILD_PYTHON": "ON",
    }
    for part in ("TESTS", "BENCHMARKS", "EXAMPLES", "C", "SERVER"):
        define[f"MLA_BUILD_{part}"] = "OFF"
    options = [f"-D{name}={value}" for name, value in define.items()]
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", build_directory, *options], check=True, stdout=sys.stderr
    )
    subprocess.run(
        ["cmake", "--build", build_directory, "--target", "mla_python", "--parallel",
         str(os.cpu_count())],
        check=True, stdout=sys.stderr,
    )
    return sorted(pathlib.Path(build_directory, "bindings/python/mla").iterdir())


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    tag = "-".join(
        [f"cp{sys.version_info.major}{sys.version_info.minor}"] * 2
        + [re.sub(r"[^a-zA-Z0-9]", "_", sysconfig.get_platform())]
    )
    name = f"mla-{version()}"
    info = f"{name}.dist-info"
    wheel = f"{name}-{tag}.whl"
    with tempfile.TemporaryDirectory() as build_directory:
        files = {
            f"mla/{path.name}": path.read_bytes()
            for path in build(build_directory)
            if path.is_file()
        }
    files[f"{info}/METADATA"] = metadata().encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: mla\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    )
    files[f"{info}/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    record = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(content)}\n")
    record.append(f"{info}/RECORD,,\n")
    files[f"{info}/RECORD"] = "".join(record).encode()
    with zipfile.ZipFile(pathlib.Path(wheel_directory, wheel), "w", zipfile.ZIP_DEFLATED) as out:
        for path, content in files.items():
            out.writestr(path, content)
    return wheel


def build_sdist(sdist_directory, config_settings=None):
    raise NotImplementedError("install from a checkout: the sources are two folders up")
