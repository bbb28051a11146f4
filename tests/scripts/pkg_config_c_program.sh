#!/bin/sh
# Builds a program in C99 with pkg-config and a plain command line, and runs it.
#   pkg_config_c_program.sh <compiler> <prefix> <program> <source> [arguments...]
set -e
compiler=$1 prefix=$2 program=$3 source=$4
shift 4
for directory in "$prefix"/lib/pkgconfig "$prefix"/lib/*/pkgconfig "$prefix"/lib64/pkgconfig; do
  [ ! -f "$directory/mla-c.pc" ] || export PKG_CONFIG_PATH="$directory"
done
mkdir -p "$(dirname "$program")"
libdir=$(pkg-config --variable=libdir mla-c)
set -x
# shellcheck disable=SC2046  # flags are words
"$compiler" -std=c99 -pedantic-errors -Wall -Wextra -Werror "$source" -o "$program" \
  $(pkg-config --cflags --libs mla-c) -Wl,-rpath,"$libdir"
"$program" "$@"
