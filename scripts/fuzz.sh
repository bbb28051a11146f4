#!/usr/bin/env bash
# Builds the fuzz targets and runs each for so many minutes, as many at a time as there are cores.
#   scripts/fuzz.sh MINUTES [TARGET...]   of safetensors checkpoint config tokenizer conformance requests
# The corpus grows in build/fuzz/fuzz/corpus; inputs that break something are kept beside it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
minutes=${1:-}
case $minutes in
  '' | *[!0-9]*) sed -n '2,4s/^# //p' "$0"; exit 2 ;;
esac
shift
targets=("$@")
[ $# -gt 0 ] || targets=(safetensors checkpoint config tokenizer conformance requests)

scripts/install_dependencies.sh fuzz || exit 1
cmake --preset fuzz && cmake --build --preset fuzz --parallel "$(nproc)" || exit 1
printf '%s\n' "${targets[@]}" |
  xargs -P "$(nproc)" -I '{}' sh fuzz/run.sh build/fuzz '{}' $((60 * minutes))
