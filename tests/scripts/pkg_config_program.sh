#!/bin/sh
# Builds a program with pkg-config and a plain compiler command line, and runs it.
#   pkg_config_program.sh <compiler> <prefix> <packages> <program> <sources...>
set -e
compiler=$1 prefix=$2 packages=$3 program=$4
shift 4
for directory in "$prefix"/lib/pkgconfig "$prefix"/lib/*/pkgconfig "$prefix"/lib64/pkgconfig; do
  [ ! -f "$directory/mla.pc" ] || PKG_CONFIG_PATH=$directory${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
done
export PKG_CONFIG_PATH
mkdir -p "$(dirname "$program")"
# shellcheck disable=SC2086  # packages and flags are words
flags=$(pkg-config --cflags --libs $packages)
set -x
# shellcheck disable=SC2086
"$compiler" -std=c++20 -O2 "$@" -o "$program" $flags
"$program"
