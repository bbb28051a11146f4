#!/bin/sh
# The program in C writes the greedy text of the goldens, and runs a layer.
#   example.sh <program> <models> <directory>
program=$1 model=$2/tiny-shakespeare-v3 work=$3
export LC_ALL=C
string() { # prompt, key
  printf '%b' "$(sed -n "/^ *\"$1\": {/,/}/s/^ *\"$2\": \"\(.*\)\",*\$/\1/p" "$model/goldens.json" |
    sed 's/\\"/"/g')"
}
failures=0
for prompt in short medium; do
  { string $prompt continuation && echo; } > "$work/example.expected"
  "$program" "$model" "$(string $prompt text)" > "$work/example.out" 2> "$work/example.err" ||
    failures=$((failures + 1))
  cmp "$work/example.expected" "$work/example.out" || failures=$((failures + 1))
  grep -qx 'layer 0: 10 tokens in 1600 bytes' "$work/example.err" || {
    cat "$work/example.err"
    failures=$((failures + 1))
  }
done
"$program" "$work/nothing" x > "$work/example.out" 2> "$work/example.err" && failures=$((failures + 1))
grep -q 'runtime error: .*nothing' "$work/example.err" || failures=$((failures + 1))
exit $failures
