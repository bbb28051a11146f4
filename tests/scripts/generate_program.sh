#!/bin/sh
# The programs that run models, as a user calls them: greedy text is the goldens', plainly and
# speculatively; seeds repeat; whatever goes wrong ends with one line on stderr and an exit status.
#   generate_program.sh <mla-generate> <mla-perplexity> <mla-conformance> <models> <directory>
generate=$1 perplexity=$2 conformance=$3 models=$4 work=$5
model=$models/tiny-shakespeare-v3
fp8=$models/tiny-shakespeare-v3-fp8
failures=0
export LC_ALL=C  # sed and grep work on bytes

rm -rf "$work"
mkdir -p "$work" || exit 1

fail() {
  echo "FAIL $*"
  failures=$((failures + 1))
}

same() { # what, file, file
  cmp "$2" "$3" || fail "$1"
}

# Runs a program; stdout and stderr go into files.
call() {
  "$@" > "$work/out" 2> "$work/err"
}

passes() { # what, program, arguments
  what=$1
  shift
  call "$@" || fail "$what: exit status $?, $(cat "$work/err")"
}

# One line on stderr with a text in it, nothing on stdout.
refuses() { # what, exit status, text, program, arguments
  what=$1 status=$2 text=$3
  shift 3
  call "$@"
  actual=$?
  [ "$actual" -eq "$status" ] || fail "$what: exit status $actual, expected $status"
  one_line "$what" "$text"
  [ ! -s "$work/out" ] || fail "$what: wrote $(wc -c < "$work/out") bytes to stdout"
}

one_line() { # what, text
  [ "$(wc -l < "$work/err")" -eq 1 ] || fail "$1: more or less than one line: $(cat "$work/err")"
  grep -qF -- "$2" "$work/err" || fail "$1: no \"$2\" in: $(cat "$work/err")"
}

# Where a tensor of the goldens begins and ends, in bytes of the file.
place() { # name
  header=$(od -An -v -td8 -N8 "$model/goldens.safetensors" | tr -d ' ')
  offsets=$(dd if="$model/goldens.safetensors" bs=1 skip=8 count="$header" 2> "$work/dd" |
    sed "s/.*\"$1\":{[^}]*\"data_offsets\":\[\([0-9]*\), *\([0-9]*\)\].*/\1 \2/")
  begin=$((8 + header + ${offsets% *}))
  end=$((8 + header + ${offsets#* }))
}

# Its numbers, one a line.
integers() { # name
  place "$1"
  od -An -v -td4 -w4 -j "$begin" -N $((end - begin)) "$model/goldens.safetensors" | tr -d ' '
}

# A string of a prompt in goldens.json, without its JSON escapes.
string() { # prompt, key
  printf '%b' "$(sed -n "/^ *\"$1\": {/,/}/s/^ *\"$2\": \"\(.*\)\",*\$/\1/p" "$model/goldens.json" |
    sed 's/\\"/"/g')"
}

copy() { # name of a changed copy of the model
  rm -rf "${work:?}/$1"
  cp -r "$model" "$work/$1"
  chmod -R u+w "$work/$1"
}

edit() { # copy, file, sed command
  copy "$1"
  sed "$3" "$model/$2" > "$work/$1/$2"
  cmp -s "$model/$2" "$work/$1/$2" && fail "$3 changes nothing in $2"
}

# Greedy text.
for prompt in short medium long; do
  integers $prompt.greedy > "$work/expected"
  [ "$(wc -l < "$work/expected")" -eq 64 ] || fail "cannot read $prompt.greedy"
  ids=$(integers $prompt.input_ids | paste -sd, -)
  text=$(string $prompt text)
  for how in "" --speculative "--mode absorbed" "--mode decompressed --speculative" "--threads 3" \
    "--isa scalar"; do
    # shellcheck disable=SC2086
    passes "$prompt $how" "$generate" "$model" --prompt-ids "$ids" --max-tokens 64 --ids $how
    same "$prompt $how: ids" "$work/expected" "$work/out"
  done
  string $prompt continuation > "$work/expected"
  passes "$prompt text" "$generate" "$model" --prompt "$text" --max-tokens 64
  same "$prompt: text" "$work/expected" "$work/out"
done
printf '%s' "$text" > "$work/prompt"
passes "prompt file" "$generate" "$model" --prompt-file "$work/prompt" --max-tokens=64
same "prompt file" "$work/expected" "$work/out"
passes "fp8" "$generate" "$fp8" --prompt "ROMEO:" --max-tokens 20 --cache bf16
[ -s "$work/out" ] || fail "the fp8 copy writes nothing"

# Samples.
sample() { # seed, options
  seed=$1
  shift
  passes "seed $seed" "$generate" "$model" --prompt "ROMEO:" --temperature 0.8 --top-p 0.95 \
    --top-k 50 --min-p 0.01 --repetition-penalty 1.1 --max-tokens 60 --seed "$seed" "$@"
}
for how in "" --speculative; do
  # shellcheck disable=SC2086
  sample 7 $how && mv "$work/out" "$work/expected"
  # shellcheck disable=SC2086
  sample 7 $how && same "seed 7 $how twice" "$work/expected" "$work/out"
  # shellcheck disable=SC2086
  sample 8 $how && cmp -s "$work/expected" "$work/out" && fail "seeds 7 and 8 give the same text"
done

# What it says beside the text.
passes "full context" "$generate" "$model" --prompt "ROMEO:" --max-tokens 1000 --ids
one_line "full context" "context of 256 tokens is full"
passes "stats" "$generate" "$model" --prompt "ROMEO:" --max-tokens 30 --speculative --stats
for line in "^prefill .*tokens/s" "^decode .*tokens/s" "^cache .*MLA.*MHA" "^drafts .*accepted"; do
  grep -q "$line" "$work/err" || fail "--stats prints no $line"
done
eos=$(integers short.greedy | sed -n 5p)
integers short.greedy | sed "/^$eos\$/,\$d" > "$work/expected"
edit eos generation_config.json "s/\"eos_token_id\": 1/\"eos_token_id\": $eos/"
passes "end of text" "$generate" "$work/eos" --prompt "$(string short text)" --ids
same "end of text" "$work/expected" "$work/out"
[ ! -s "$work/err" ] || fail "end of text: $(cat "$work/err")"

# Models that cannot be run. Names in the file of weights are changed in their place.
edit missing model.safetensors "s/model\.norm\.weight/model.nurm.weight/"
refuses "missing tensor" 1 "model.norm.weight is missing" "$generate" "$work/missing" --prompt x
edit shape config.json "s/\"intermediate_size\": 384/\"intermediate_size\": 383/"
refuses "wrong shape" 1 "has shape" "$generate" "$work/shape" --prompt x
edit architecture config.json "s/deepseek_v3/llama/"
refuses "architecture" 1 "model_type" "$generate" "$work/architecture" --prompt x
edit scoring config.json "s/\"sigmoid\"/\"tanh\"/"
refuses "scoring function" 1 "scoring_func" "$generate" "$work/scoring" --prompt x
edit tokens tokenizer.json "s/\"id\": 2,/\"id\": 1024,/"
refuses "tokenizer of more tokens" 1 "okenizer" "$generate" "$work/tokens" --prompt x
edit bos config.json "s/\"bos_token_id\": 0/\"bos_token_id\": 2/"
refuses "tokenizer with another BOS" 1 "bos_token_id" "$generate" "$work/bos" --prompt x
copy cut && head -c 1000000 "$model/model.safetensors" > "$work/cut/model.safetensors"
refuses "half a file" 1 "model.safetensors" "$generate" "$work/cut" --prompt x
copy untold && rm "$work/untold/tokenizer.json"
refuses "no tokenizer" 1 "tokenizer.json" "$generate" "$work/untold" --prompt x
passes "ids need no tokenizer" "$generate" "$work/untold" --prompt-ids 0,5 --ids --max-tokens 3
refuses "no model" 1 "$work/nothing" "$generate" "$work/nothing" --prompt x
if [ "$(id -u)" -ne 0 ]; then  # whom nothing is unreadable
  copy secret && chmod a-r "$work/secret/model.safetensors"
  refuses "unreadable file" 1 "model.safetensors" "$generate" "$work/secret" --prompt x
fi

# Prompts and arguments.
seq 1 300 > "$work/numbers"
refuses "long prompt" 1 "context" "$generate" "$model" --prompt-file "$work/numbers"
printf 'ab\377' > "$work/latin"
refuses "not UTF-8" 1 "latin: text is not UTF-8 at byte 2" "$generate" "$model" \
  --prompt-file "$work/latin"
refuses "no file" 1 "nothing: cannot open" "$generate" "$model" --prompt-file "$work/nothing"
refuses "directory" 1 "cannot read" "$generate" "$model" --prompt-file "$work"
refuses "token" 1 "token 1024 " "$generate" "$model" --prompt-ids 0,1024
refuses "no ids" 1 "prompt is empty" "$generate" "$model" --prompt-ids ""
refuses "ids" 1 "--prompt-ids" "$generate" "$model" --prompt-ids 0,x
refuses "two prompts" 2 "got 2" "$generate" "$model" --prompt x --prompt-ids 1
refuses "no prompt" 2 "got 0" "$generate" "$model"
refuses "no model" 2 "MODEL_DIR" "$generate" --prompt x
refuses "temperature" 2 "temperature" "$generate" "$model" --prompt x --temperature -1
refuses "number" 2 "--max-tokens" "$generate" "$model" --prompt x --max-tokens 12y
refuses "option" 2 "--bogus" "$generate" "$model" --prompt x --bogus
refuses "value" 2 "--seed needs a value" "$generate" "$model" --prompt x --seed
passes "help" "$generate" --help

# Output that cannot be written, and Ctrl-C while it waits for the prompt.
if [ -c /dev/full ]; then
  for how in "" --ids; do
    # shellcheck disable=SC2086
    "$generate" "$model" --prompt x $how > /dev/full 2> "$work/err" && fail "full disk: status 0"
    one_line "full disk" "No space left on device"
  done
fi
mkfifo "$work/pipe"
sleep 20 > "$work/pipe" &
writer=$!
timeout --preserve-status -s INT 1 "$generate" "$model" --prompt-file - \
  < "$work/pipe" > "$work/out" 2> "$work/err"
status=$?
kill "$writer"
[ "$status" -eq 130 ] || fail "Ctrl-C: exit status $status"
one_line "Ctrl-C" "interrupted"


# A prompt of 2,000 tokens, for which this copy declares room.
edit long config.json "s/\"max_position_embeddings\": 256/\"max_position_embeddings\": 8192/"
ids=$(awk 'BEGIN { printf "0"; for (i = 1; i < 2000; ++i) printf ",%d", i * 37 % 1000 + 3 }')

# Ctrl-C while it writes.
timeout --preserve-status -s INT 2 "$generate" "$work/long" --prompt-ids 0,5 --max-tokens 8000 --ids \
  > "$work/out" 2> "$work/err"
status=$?
[ "$status" -eq 130 ] || fail "Ctrl-C in the text: exit status $status"
one_line "Ctrl-C in the text" "interrupted"

# Peak memory: weights, caches and 16 MB. Sanitizers need more.
kilobytes() { wc -c < "$1" | awk '{ print int($1 / 1000) }'; }
if [ -r /proc/self/status ] && ! grep -q __asan_init "$generate"; then
  for how in "" --speculative "--mode decompressed"; do
    # shellcheck disable=SC2086
    "$generate" "$work/long" --prompt-ids "$ids" --max-tokens 100 --ids --stats $how \
      > "$work/out" 2> "$work/err" &
    peak=0
    while now=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$!/status" 2> "$work/sed") &&
      [ -n "$now" ]; do
      peak=$now
    done
    wait $! || fail "long prompt $how: $(cat "$work/err")"
    cache=$(sed -n 's/^cache .*MLA \([0-9]*\) bytes.*/\1/p' "$work/err")
    most=$(($(kilobytes "$work/long/model.safetensors") + cache / 1000 + 16000))
    [ "$peak" -gt 1000 ] && [ $((peak * 1024 / 1000)) -le "$most" ] ||
      fail "long prompt $how: $peak KiB at most, expected $most kB"
  done
fi

# On a terminal it shows how far it has read, and erases that; elsewhere it does not.
passes "long prompt" "$generate" "$work/long" --prompt-ids "$ids" --max-tokens 2 --ids
[ ! -s "$work/err" ] || fail "progress without a terminal: $(cat "$work/err")"
if command -v script > "$work/which" && script --version 2>&1 | grep -q util-linux; then
  script -qec "$generate $work/long --prompt-ids $ids,$ids --max-tokens 2 --ids" /dev/null \
    < /dev/null > "$work/terminal"
  grep -q "reading the prompt  \[#*\.*\]  [0-9]* / 4000" "$work/terminal" ||
    fail "no progress on a terminal: $(od -c "$work/terminal" | head)"
  esc=$(printf '\033')
  grep -q "$esc\[K" "$work/terminal" || fail "progress is not erased"
  script -qec "$perplexity $work/long --ids-from $model/goldens.safetensors:validation.input_ids" \
    /dev/null < /dev/null > "$work/terminal"
  grep -q "scoring  \[#*\.*\]  [0-9]* / 8192" "$work/terminal" ||
    fail "perplexity shows no progress on a terminal"
fi

# Perplexity: what the goldens state, to their last digit.
passes "perplexity" "$perplexity" "$model" \
  --ids-from "$model/goldens.safetensors:validation.input_ids"
grep -q "^3\.2750[34][0-9]* nats a token.* 8192 tokens in 32 windows" "$work/out" ||
  fail "perplexity: $(cat "$work/out")"
passes "perplexity of few" "$perplexity" "$model" "$work/numbers" --tokens 300 --threads 2
grep -q " 256 tokens in 1 windows of 256" "$work/out" || fail "--tokens: $(cat "$work/out")"
refuses "short text" 1 "fewer than a window" "$perplexity" "$model" "$work/prompt"
refuses "no text" 2 "FILE" "$perplexity" "$model"

# Conformance of whole models; goldens that are wrong, and that are not for this model.
passes "conformance" "$conformance" "$model" "$fp8"
[ "$(grep -c "  pass$" "$work/out")" -eq 40 ] || fail "conformance: $(cat "$work/out")"
for tensor in medium.logits long.logits_last16 short.hidden.layer2 short.mtp_logits short.greedy \
  medium.router.layer2.scores medium.router.layer3.topk_indices medium.router.layer1.topk_weights; do
  copy wrong
  place $tensor
  printf '\007' | dd of="$work/wrong/goldens.safetensors" bs=1 seek=$((end - 1)) conv=notrunc \
    2> "$work/dd"
  call "$conformance" "$work/wrong" && fail "wrong $tensor passes"
  grep -q "${tensor#*.} .*  FAIL$" "$work/out" || fail "wrong $tensor: no line says FAIL"
done
edit other goldens.safetensors "s/short\.input_ids\":{\"dtype\":\"I32\",\"shape\":\[6\]/short.input_ids\":{\"dtype\":\"F32\",\"shape\":[6]/"
refuses_model() { # what, text, directory
  call "$conformance" "$3"
  [ $? -eq 2 ] || fail "$1: not exit status 2"
  one_line "$1" "$2"
}
refuses_model "ids that are floats" "short.input_ids has dtype F32" "$work/other"
rm "$work/other/goldens.safetensors"
refuses_model "no goldens" "goldens.safetensors" "$work/other"

rm -rf "$work"
echo "$failures failures"
[ "$failures" -eq 0 ]
