#!/bin/sh
# The library within another project: without a build type its kernels are compiled with -O2, and
# configuring says so; what the project chose stays otherwise.
#   build_type.sh <cmake> <project folder> <directory to configure in> <options...>
cmake=$1 project=$2 work=$3
shift 3
failures=0

expect() { # how often -O2 is in the command of mla::compiled, and is said; further options
  flags=$1
  shift
  rm -rf "$work"
  "$cmake" -S "$project" -B "$work" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON "$@" > "$work.log" ||
    { cat "$work.log"; exit 1; }
  command=$(grep '"command".*mla_compiled\.cpp' "$work/compile_commands.json")
  [ -n "$command" ] || { echo "FAIL nothing compiles mla_compiled.cpp"; exit 1; }
  actual=$(echo "$command" | grep -c -- ' -O2 ')
  said=$(grep -c 'mla::compiled is compiled with -O2' "$work.log")
  [ "$actual $said" = "$flags $flags" ] || {
    echo "FAIL $*: -O2 $actual times, said $said times, expected $flags: $command"
    failures=$((failures + 1))
  }
}

expect 1 "$@" -DCMAKE_BUILD_TYPE=
expect 0 "$@" -DCMAKE_BUILD_TYPE=Debug
expect 0 "$@" -DCMAKE_BUILD_TYPE= -DCMAKE_CXX_FLAGS=-O3
[ "$failures" -eq 0 ]
