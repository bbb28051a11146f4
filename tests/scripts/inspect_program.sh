#!/bin/sh
# mla-inspect as a user calls it: what it says of the models here, and of what cannot be run.
#   inspect_program.sh <mla-inspect> <models> <directory>
inspect=$1 models=$2 work=$3
model=$models/tiny-shakespeare-v3
failures=0
export LC_ALL=C

rm -rf "$work"
mkdir -p "$work" || exit 1

fail() {
  echo "FAIL $*"
  failures=$((failures + 1))
}

# Runs the program and compares its exit status.
expect() { # what, exit status, arguments
  what=$1 status=$2
  shift 2
  "$inspect" "$@" > "$work/out" 2> "$work/err"
  actual=$?
  [ "$actual" -eq "$status" ] || fail "$what: exit status $actual, expected $status: $(cat "$work/err")"
}

says() { # pattern of a line on standard output
  grep -qE -- "$1" "$work/out" || fail "$what: no line \"$1\" in: $(cat "$work/out")"
}

one_line() { # text in the one line on standard error
  [ "$(wc -l < "$work/err")" -eq 1 ] || fail "$what: more or less than one line: $(cat "$work/err")"
  grep -qF -- "$1" "$work/err" || fail "$what: no \"$1\" in: $(cat "$work/err")"
}

expect "the model" 0 "$model"
[ ! -s "$work/err" ] || fail "$what: $(cat "$work/err")"
says '^family +deepseek_v3 \(DeepseekV3ForCausalLM\)$'
says '^runs +yes$'
says '^layers +4, 1 without experts; a module for multi-token prediction$'
says '^tokenizer +1024 tokens$'
says '^cache .* 256 tokens +with weights$'
for format in f32 bf16 f16 int8 fp8 int4; do says "^  $format +[0-9]+ +[0-9]+ "; done
grep -q 'up_proj' "$work/out" && fail "$what: lists tensors without being asked"

expect "its tensors" 0 --tensors "$model"
says '^  model\.layers\.\*\.mlp\.experts\.\*\.up_proj\.weight '

expect "a context" 0 "$model" --context 1000
says '^cache .* 1000 tokens'
# kv_lora_rank 64 and a rotary key of 16, 4 bytes each, in 4 layers and in the module; 6 heads of
# 32 + 16 and 32 in multi-head attention. 1000 times 1280 + 320 bytes.
says '^  f32 +1280 +320 +7680 +6\.0 +1\.6 MB '

for quantised in fp8:fp8 fp8-ue8m0:fp8 int4:int4; do
  expect "$quantised" 0 "$model-${quantised%%:*}"
  says "^  ${quantised##*:} +[0-9]+ "
  says " ${quantised##*:} with a scale per "
done

expect "JSON" 0 --json "$model"
for line in '"model_type": "deepseek_v3"' '"runs": true' '"multi_token_prediction": true' \
  '"format": "int4"' '"chat_template": '; do
  says "$line"
done
if command -v python3 > /dev/null; then
  python3 - "$work/out" << 'END' || fail "JSON is not what it should be"
import json, sys
report = json.load(open(sys.argv[1]))
assert sum(t["bytes"] for t in report["tensors"]) == report["weight_bytes"]
for cache in report["caches"]:
    token = cache["bytes_per_token"] + cache["prediction_bytes_per_token"]
    assert cache["context_bytes"] == token * report["context"]
    assert cache["memory_bytes"] == cache["context_bytes"] + report["weight_bytes"]
END
fi

# What is refused has a report with the reason, the same on standard error, and the exit status 1.
cp -r "$model" "$work/llama" && chmod -R u+w "$work/llama"
sed 's/deepseek_v3/llama/' "$model/config.json" > "$work/llama/config.json"
expect "another family" 1 "$work/llama"
says '^refused +.*model_type = llama is not supported'
says '^family +llama'
says '^weights +'
one_line 'model_type = llama is not supported'
expect "another family in JSON" 1 "$work/llama" --json
says '"runs": false'
says '"refusals": \['
rm "$work/llama/tokenizer.json"
expect "no tokenizer" 1 "$work/llama"
says '^tokenizer +.*tokenizer.json'

mkdir "$work/empty"
expect "an empty directory" 1 "$work/empty"
says '^refused +.*config.json'
one_line config.json
expect "no directory" 1 "$work/nothing"
one_line "$work/nothing"
[ ! -s "$work/out" ] || fail "$what: wrote something"

expect "no argument" 2
one_line "MODEL_DIR"
expect "two directories" 2 "$model" "$model"
expect "a context of nothing" 2 "$model" --context 0
one_line "--context"
expect "an unknown option" 2 "$model" --contxt 5
one_line "unknown option --contxt"
expect "help" 0 --help
says '^usage: mla-inspect MODEL_DIR$'
expect "version" 0 --version
says '^mla-inspect [0-9]+\.[0-9]+\.[0-9]+$'

[ "$failures" -eq 0 ]
