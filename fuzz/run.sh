#!/bin/sh
# Runs a fuzz target for some time. What it learnt stays in <build>/fuzz/corpus for the next time; an
# input that breaks something ends the run and is kept in <build>/fuzz/findings. Exit status 0: none.
#   run.sh <build directory> <target> <seconds>
build=$1 target=$2 seconds=$3
here=$(cd "$(dirname "$0")" && pwd) || exit 1
corpus=$build/fuzz/corpus/$target findings=$build/fuzz/findings/$target log=$build/fuzz/$target.log
mkdir -p "$corpus" "$findings" "$build/fuzz/tmp" || exit 1

# Files from the internet may be large, but inputs of 8 KiB have no reason to need much of anything.
TMPDIR=$build/fuzz/tmp "$build/fuzz/fuzz_$target" "$corpus" "$here/corpus/$target" \
  -dict="$here/json.dict" -max_len=8192 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=512 \
  -max_total_time="$seconds" -artifact_prefix="$findings/" -print_final_stats=1 > "$log" 2>&1
status=$?
executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
if [ "$status" -eq 0 ]; then
  echo "$target: ${executions:-0} executions, no finding"
else
  echo "$target: a finding after ${executions:-some} executions, kept in $findings"
  tail -n 60 "$log"
fi
exit "$status"
