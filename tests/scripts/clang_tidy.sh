#!/bin/sh
# clang-tidy finds nothing in the headers, with the checks of .clang-tidy: as a user of mla::compiled
# and mla::text sees them, and as the one file that compiles the kernels does.
#   clang_tidy.sh <build directory>      run in the root of the repository
# Checks differ from version to version, so only one counts; without it, exit status 77: skipped.
tool=clang-tidy-16
command -v $tool > /dev/null || { echo "skipped: no $tool"; exit 77; }
status=0
check() { # file, further options
  source=$1
  shift
  $tool --quiet -p "$build" --warnings-as-errors='*' --header-filter='include/mla/' \
    --extra-arg=-Wno-unknown-warning-option "$@" "$build/$source" || status=1
}
build=$1
check tests/alone/all.cpp
# Kernels leave memory and registers as they are until they write them.
check mla_compiled.cpp --checks=-cppcoreguidelines-pro-type-member-init
exit $status
