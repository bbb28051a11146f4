#!/bin/sh
# Builds a program with pkg-config and a plain compiler command line, and runs it.
#   pkg_config_program.sh <compiler> <prefix> <program> <sources...>
set -e
compiler=$1 prefix=$2 program=$3
shift 3
for directory in "$prefix"/lib/pkgconfig "$prefix"/lib/*/pkgconfig "$prefix"/lib64/pkgconfig; do
  [ ! -f "$directory/mla.pc" ] || PKG_CONFIG_PATH=$directory
done
export PKG_CONFIG_PATH
mkdir -p "$(dirname "$program")"
flags=$(pkg-config --cflags --libs mla)
set -x
# shellcheck disable=SC2086  # flags are words
"$compiler" -std=c++20 -O2 "$@" -o "$program" $flags
"$program"
