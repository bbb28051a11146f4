#!/usr/bin/env bash
# Installs with apt what is missing; does nothing, quickly, when all is there.
#   install_dependencies.sh          what the full test run uses
#   install_dependencies.sh test     what building and testing with the default compiler needs
#   install_dependencies.sh fuzz     what scripts/fuzz.sh needs
#   install_dependencies.sh demo     what the demo needs
#   install_dependencies.sh has-sanitizers   installs nothing: whether clang 16 and its runtimes are here
set -euo pipefail
what=${1:-all}

missing=() optional=()
has_tool() { command -v "$1" >/dev/null; }
has_header() {
  local prefixes=/usr:/usr/local:${CMAKE_PREFIX_PATH:-} prefix
  while read -r -d : prefix; do
    [ -n "$prefix" ] && [ -e "$prefix/include/$1" ] && return
  done <<<"${prefixes//;/:}:"
  return 1
}
has_sanitizers() {
  has_tool clang++-16 &&
    [ -e "$(clang++-16 -print-resource-dir)/lib/linux/libclang_rt.fuzzer-$(uname -m).a" ]
}
[ "$what" != has-sanitizers ] || { has_sanitizers; exit; }
# need <package> <check...>: the package, unless the check finds it (from wherever it came).
need() { "${@:2}" || missing+=("$1"); }

need g++ has_tool "${CXX:-c++}"
need cmake has_tool cmake
need ninja-build has_tool ninja
need libeigen3-dev has_header eigen3/Eigen/Core
need nlohmann-json3-dev has_header nlohmann/json.hpp
need libpcre2-dev has_header pcre2.h
need pkg-config has_tool pkg-config
if [ "$what" = test ] || [ "$what" = all ]; then
  need libgtest-dev has_header gtest/gtest.h
  need libbenchmark-dev has_header benchmark/benchmark.h
fi
if [ "$what" = fuzz ]; then
  need clang-16 has_tool clang++-16
  need libclang-rt-16-dev has_sanitizers
fi
if [ "$what" = test ] || [ "$what" = all ]; then  # without these, mla-server or the Python package is left out
  has_header httplib.h || optional+=(libcpp-httplib-dev)
  has_python() { /usr/bin/python3 -c "import $1" 2>/dev/null || python3 -c "import $1" 2>/dev/null; }
  has_header pybind11/pybind11.h || optional+=(pybind11-dev)
  compgen -G '/usr/include/python3*/Python.h' >/dev/null || optional+=(python3-dev)
  has_python numpy || optional+=(python3-numpy)
  has_python pytest || optional+=(python3-pytest)
  has_python pip || optional+=(python3-pip)
fi
if [ "$what" = all ]; then  # the test run is narrower without these, but it runs
  has_tool clang++-16 || optional+=(clang-16)
  has_sanitizers || optional+=(libclang-rt-16-dev)
  has_tool clang-format || optional+=(clang-format)
  has_tool doxygen || optional+=(doxygen)
  has_tool python3 || optional+=(python3)
  has_tool clang-tidy-16 || optional+=(clang-tidy-16)
  # The tests on 64-bit ARM.
  has_tool aarch64-linux-gnu-g++ || optional+=(g++-aarch64-linux-gnu)
  has_tool qemu-aarch64 || optional+=(qemu-user)
  [ -e /usr/src/googletest/CMakeLists.txt ] || optional+=(googletest)
fi

if [ ${#missing[@]} -gt 0 ] || [ ${#optional[@]} -gt 0 ]; then
  if ! has_tool apt-get; then
    [ ${#optional[@]} -eq 0 ] || echo "Going on without: ${optional[*]}"
    if [ ${#missing[@]} -gt 0 ]; then
      echo "No apt-get here. Please install: ${missing[*]} (names as in Debian)"
      exit 1
    fi
  else
    root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive
             apt-get install -y -qq --no-install-recommends)
    "${root[@]}" apt-get update -qq || true  # a stale list may still do
    if [ ${#missing[@]} -gt 0 ] && ! "${install[@]}" "${missing[@]}"; then
      echo "Could not install: ${missing[*]}"
      exit 1
    fi
    for package in "${optional[@]}"; do
      "${install[@]}" "$package" || echo "Going on without $package."
    done
  fi
fi

version=$(cmake --version | sed -n '1s/[^0-9]*//p')
if [ "$(printf '%s\n' 3.25 "$version" | sort -V | head -n 1)" != 3.25 ]; then
  echo "CMake 3.25 or newer is needed, this is $version (newer ones: pip install cmake)."
  exit 1
fi
