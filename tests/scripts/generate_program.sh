#!/bin/sh
# The programs that run models, as a user calls them: greedy text is the goldens', plainly and
# speculatively; seeds repeat; whatever goes wrong ends with one line on stderr and an exit status.
#   generate_program.sh <mla-generate> <mla-perplexity> <mla-conformance> <mla-quantise> <models>
#                       <directory>
generate=$1 perplexity=$2 conformance=$3 quantise=$4 models=$5 work=$6
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

# float32, whose text the goldens have.
exact="--precision exact --threads 1"

# Runs a program; stdout and stderr go into files, and the line that says how it computes into
# another.
call() {
  "$@" > "$work/out" 2> "$work/err"
  result=$?
  separate
  return $result
}

separate() {
  grep -E "$announcement" "$work/err" > "$work/announced"
  grep -vE "$announcement" "$work/err" > "$work/rest"
  mv "$work/rest" "$work/err"
}
announcement='^mla-[a-z]*: [0-9]+ threads?, [a-z0-9_]+, b?float[0-9]+ arithmetic, [a-z0-9]+ cache(, weights quantised to [a-z0-9]+)?$'

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

misused() { # what, text, arguments of mla-generate
  what=$1 text=$2
  shift 2
  refuses "$what" 2 "$text" "$generate" "$@"
  grep -qF "(--help for usage)" "$work/err" || fail "$what: no hint in $(cat "$work/err")"
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
  for how in "--threads 1" "--threads 1 --speculative" "--threads 1 --mode absorbed" \
    "--threads 1 --speculative --drafts 3" "--threads 1 --lookup 2" \
    "--threads 1 --speculative --lookup 3 --drafts 5" \
    "--mode decompressed --speculative" "--threads 3" "--threads 1 --isa scalar"; do
    # shellcheck disable=SC2086
    passes "$prompt $how" "$generate" "$model" --prompt-ids "$ids" --max-tokens 64 --ids \
      --precision exact $how
    same "$prompt $how: ids" "$work/expected" "$work/out"
  done
  string $prompt continuation > "$work/expected"
  # shellcheck disable=SC2086
  passes "$prompt text" "$generate" "$model" --prompt "$text" --max-tokens 64 $exact
  same "$prompt: text" "$work/expected" "$work/out"
done
printf '%s' "$text" > "$work/prompt"
# shellcheck disable=SC2086
passes "prompt file" "$generate" "$model" --prompt-file "$work/prompt" --max-tokens=64 $exact
same "prompt file" "$work/expected" "$work/out"
# A chat is the text that the template makes of its turns, continued after each, with drafts and
# without.
chat=$work/chat
mkdir -p "$chat"
for file in "$model"/*; do ln -sf "$file" "$chat/"; done
printf '%s' '{{ bos_token }}{% for m in messages %}{{ m.content }}{{ "/" if not loop.last }}{% endfor %}' \
  > "$chat/chat_template.jinja"
chat_options="$exact --max-tokens 12"
printf 'ROMEO:\nJULIET:\n' > "$work/turns"
call "$generate" "$chat" --chat $chat_options < "$work/turns" || fail "chat: $(cat "$work/err")"
cp "$work/out" "$work/answers"
passes "first turn" "$generate" "$model" --prompt "ROMEO:" $chat_options
first=$(cat "$work/out")
passes "second turn" "$generate" "$model" --prompt "ROMEO:/$first/JULIET:" $chat_options
second=$(cat "$work/out")
printf '%s\n%s\n' "$first" "$second" > "$work/expected"
same "the answers of a chat" "$work/answers" "$work/expected"
for how in "--lookup 1" "--speculative --drafts 3 --lookup 2"; do
  # shellcheck disable=SC2086
  call "$generate" "$chat" --chat $chat_options $how < "$work/turns" ||
    fail "chat $how: $(cat "$work/err")"
  same "the answers of a chat $how" "$work/out" "$work/answers"
done
refuses "no chat template" 1 "chat template" "$generate" "$model" --chat < /dev/null
refuses "a system prompt without a chat" 2 "--system" \
  "$generate" "$model" --prompt x --system "You are brief."
refuses "thinking" 2 "on or off" "$generate" "$model" --chat --thinking maybe < /dev/null
printf '{{ messages | shuffle }}' > "$chat/chat_template.jinja"
refuses "an unknown filter" 1 "shuffle" "$generate" "$chat" --chat < /dev/null

passes "fp8" "$generate" "$fp8" --prompt "ROMEO:" --max-tokens 20 --cache bf16
[ -s "$work/out" ] || fail "the fp8 copy writes nothing"
for cache in int8 fp8 int4; do
  passes "$cache cache" "$generate" "$model" --prompt "ROMEO:" --max-tokens 20 --cache $cache
  [ -s "$work/out" ] || fail "a cache of $cache writes nothing"
done

# A window: the text goes on beyond the 256 tokens of the context, with drafts and without.
# shellcheck disable=SC2086
passes "window" "$generate" "$model" --prompt "ROMEO:" --max-tokens 400 --ids --window 96 $exact
mv "$work/out" "$work/expected"
[ "$(wc -l < "$work/expected")" -eq 400 ] || fail "a window does not go on"
# shellcheck disable=SC2086
passes "window with drafts" "$generate" "$model" --prompt "ROMEO:" --max-tokens 400 --ids \
  --window 96 --keep 4 --speculative $exact
same "window with drafts" "$work/expected" "$work/out"
misused "keep" "--keep needs --window" "$model" --prompt x --keep 4
misused "window" "--window must be" "$model" --prompt x --window -1
misused "drafts of nothing" "--drafts needs --speculative or --lookup" "$model" --prompt x --drafts 2
misused "many drafts" "--drafts must be at most 64" "$model" --prompt x --speculative --drafts 65
misused "no lookup" "--lookup must be a whole number from 1 on" "$model" --prompt x --lookup 0
misused "long lookup" "--lookup must be at most 32" "$model" --prompt x --lookup 33

# Quantised at load is quantised before: the same text. A folder that is there stays as it is.
for format in int8 int4; do
  passes "load as $format" "$generate" "$model" --prompt "ROMEO:" --max-tokens 30 --weights $format
  grep -q ", weights quantised to $format$" "$work/announced" || fail "$format is not said"
  mv "$work/out" "$work/expected"
  passes "quantise to $format" "$quantise" "$model" "$work/$format" --weights $format --threads 2
  passes "$format folder" "$generate" "$work/$format" --prompt "ROMEO:" --max-tokens 30
  same "$format folder" "$work/expected" "$work/out"
done
refuses "folder exists" 1 "int8: exists already" "$quantise" "$model" "$work/int8" --weights int8
refuses "no format" 2 "--weights is needed" "$quantise" "$model" "$work/x"
refuses "other format" 2 "--weights must be int8 or int4, got fp8" "$quantise" "$model" "$work/x" \
  --weights fp8
misused "weights" "--weights must be stored, int8 or int4, got int2" "$model" --prompt x \
  --weights int2

# Samples.
sample() { # seed, options
  seed=$1
  shift
  passes "seed $seed" "$generate" "$model" --prompt "ROMEO:" --temperature 0.8 --top-p 0.95 \
    --top-k 50 --min-p 0.01 --repetition-penalty 1.1 --max-tokens 60 --seed "$seed" --threads 1 "$@"
}
for how in "" --speculative "--speculative --drafts 3" "--lookup 1"; do
  # shellcheck disable=SC2086
  sample 7 $how && mv "$work/out" "$work/expected"
  # shellcheck disable=SC2086
  sample 7 $how && same "seed 7 $how twice" "$work/expected" "$work/out"
  # shellcheck disable=SC2086
  sample 8 $how && cmp -s "$work/expected" "$work/out" && fail "seeds 7 and 8 give the same text"
done

# What it says beside the text.
# shellcheck disable=SC2086
passes "full context" "$generate" "$model" --prompt "ROMEO:" --max-tokens 1000 --ids $exact
one_line "full context" "context of 256 tokens is full"
passes "stats" "$generate" "$model" --prompt "ROMEO:" --max-tokens 30 --speculative --stats
for line in "^prefill .*tokens/s" "^decode .*tokens/s" "^cache .*MLA.*MHA" "^drafts .*accepted"; do
  grep -q "$line" "$work/err" || fail "--stats prints no $line"
done
grep -q "^drafts .*tokens per call" "$work/err" || fail "--stats prints no tokens per call"
eos=$(integers short.greedy | sed -n 5p)
integers short.greedy | sed "/^$eos\$/,\$d" > "$work/expected"
edit eos generation_config.json "s/\"eos_token_id\": 1/\"eos_token_id\": $eos/"
# shellcheck disable=SC2086
passes "end of text" "$generate" "$work/eos" --prompt "$(string short text)" --ids $exact
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
misused "no ids" "--prompt-ids has no ids" "$model" --prompt-ids ""
misused "ids" '--prompt-ids must be a whole number from 0 on, got "x"' "$model" --prompt-ids 0,x
misused "large ids" "--prompt-ids is out of range" "$model" --prompt-ids 1,999999999999999999999
misused "two prompts" "got 2" "$model" --prompt x --prompt-ids 1
misused "no prompt" "got 0" "$model"
misused "no model" "MODEL_DIR" --prompt x
misused "temperature" "temperature" "$model" --prompt x --temperature -1
misused "number" "--temperature must be a number, got" "$model" --prompt x --temperature 1y
for value in 12y 1e3 2.5 -1; do
  misused "whole number $value" "--max-tokens must be a whole number from 0 on, got \"$value\"" \
    "$model" --prompt x --max-tokens=$value
done
misused "seed" '--seed must be a whole number from 0 on, got "-1"' "$model" --prompt x --seed=-1
misused "threads" '--threads must be a whole number from 1 on, got "0"' "$model" --prompt x --threads 0
misused "option" "--bogus" "$model" --prompt x --bogus
misused "value" "--seed needs a value" "$model" --prompt x --seed
misused "kernels" "one of scalar, avx2, avx512, avx512_bf16, amx, neon, neon_bf16; got foo" \
  "$model" --prompt x --isa foo

# Nothing that a terminal would obey: in an argument, in a path, in a file.
escape=$(printf 'a\033[31m\302\233\377b')
silent() { # what
  LC_ALL=C tr -d '\n\040-\176' < "$work/err" > "$work/bytes"
  [ ! -s "$work/bytes" ] || fail "$1: wrote $(od -An -tx1 "$work/bytes")"
}
misused "escapes in an option" '--a\x1b[31m\xc2\x9b\xffb' "$model" "--$escape"
silent "escapes in an option"
refuses "escapes in a path" 1 '/a\x1b[31m\xc2\x9b\xffb: not a' "$generate" "/$escape" --prompt x
silent "escapes in a path"
printf '%s' "$escape" > "$work/escapes"
refuses "escapes in a file" 1 'a token id must be a whole number from 0 on, got "a\x1b[31m' \
  "$perplexity" "$model" --ids-from "$work/escapes"
silent "escapes in a file"

# How it computes: fast without a word, on one thread for so small a model, and what is asked for.
computes() { # expected, options
  expected=$1
  shift
  passes "$*" "$generate" "$model" --prompt x --max-tokens 1 "$@"
  grep -qxE "mla-generate: $expected" "$work/announced" ||
    fail "$*: not $expected but $(cat "$work/announced")"
  [ "$(wc -l < "$work/announced")" -eq 1 ] || fail "$*: said $(cat "$work/announced")"
}
case $(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo 2> "$work/grep") in
  *bf16*) fast="bfloat16 arithmetic, bf16 cache" ;;
  *) fast="float32 arithmetic, f16 cache" ;;
esac
computes "1 thread, [a-z0-9_]+, $fast"
computes "1 thread, [a-z0-9_]+, $fast" --precision fast
computes "1 thread, [a-z0-9_]+, float32 arithmetic, f32 cache" --precision exact
computes "1 thread, scalar, float32 arithmetic, f16 cache" --isa scalar --threads 1
computes "3 threads, scalar, float32 arithmetic, bf16 cache" --isa scalar --threads 3 --cache bf16
computes "2 threads, scalar, float32 arithmetic, f16 cache" --precision exact --isa scalar \
  --threads 2 --cache f16
MLA_ISA=scalar
export MLA_ISA
computes "1 thread, scalar, float32 arithmetic, f16 cache"
unset MLA_ISA
misused "precision" "--precision must be fast or exact, got half" "$model" --prompt x \
  --precision half
for threads in 1 3; do
  passes "fast text" "$generate" "$model" --prompt ROMEO: --threads $threads --ids
  mv "$work/out" "$work/threads$threads"
done
same "fast text of 1 thread and of 3" "$work/threads1" "$work/threads3"

# What programs say of themselves, and of MLA_ISA.
version=$("$generate" --version) || fail "--version of mla-generate"
for name in mla-generate mla-inspect mla-perplexity mla-conformance mla-quantise mla-demo \
  mla-attention-layer mla-embed-decoder; do
  program=$(dirname "$generate")/$name
  passes "$name --help" "$program" --help
  grep -q "^usage: $name" "$work/out" || fail "$name --help: $(cat "$work/out")"
  passes "$name --version" "$program" --version
  echo "$name ${version#* }" | cmp -s - "$work/out" || fail "$name --version: $(cat "$work/out")"
  refuses "$name --bogus" 2 "unknown option --bogus (--help for usage)" "$program" --bogus
done
for isa in scalar foo AVX2 neon_bf16; do
  passes "MLA_ISA=$isa" env MLA_ISA=$isa "$generate" "$model" --prompt x --max-tokens 1
  if [ $isa = scalar ]; then
    [ ! -s "$work/err" ] || fail "MLA_ISA=$isa: $(cat "$work/err")"
  elif [ $isa != neon_bf16 ]; then
    one_line "MLA_ISA=$isa" "MLA_ISA=$isa changes nothing: known are scalar, avx2"
  elif [ "$(uname -m)" = x86_64 ]; then
    one_line "MLA_ISA=$isa" "MLA_ISA=$isa is not supported by this machine"
  fi
done

# Output that cannot be written, and Ctrl-C while it waits for the prompt.
if [ -c /dev/full ]; then
  for how in "" --ids; do
    # shellcheck disable=SC2086
    "$generate" "$model" --prompt x $how > /dev/full 2> "$work/err" && fail "full disk: status 0"
    separate
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

# Ctrl-C while it reads a long text, which would go on for seconds and end as a failure.
yes "To be, or not to be, that is the question:" | head -c 100000000 > "$work/tragedy"
timeout --preserve-status -s INT 1 "$generate" "$model" --prompt-file "$work/tragedy" \
  > "$work/out" 2> "$work/err"
status=$?
rm "$work/tragedy"
[ "$status" -eq 130 ] || fail "Ctrl-C in the prompt: exit status $status"
one_line "Ctrl-C in the prompt" "interrupted"

# A prompt of 2,000 tokens, for which this copy declares room.
edit long config.json "s/\"max_position_embeddings\": 256/\"max_position_embeddings\": 8192/"
ids=$(awk 'BEGIN { printf "0"; for (i = 1; i < 2000; ++i) printf ",%d", i * 37 % 1000 + 3 }')

# Ctrl-C while it writes.
timeout --preserve-status -s INT 2 "$generate" "$work/long" --prompt-ids 0,5 --max-tokens 8000 --ids \
  > "$work/out" 2> "$work/err"
status=$?
separate
[ "$status" -eq 130 ] || fail "Ctrl-C in the text: exit status $status"
one_line "Ctrl-C in the text" "interrupted"

# Peak memory: weights, caches and 16 MB. Sanitizers need more.
kilobytes() { wc -c < "$1" | awk '{ print int($1 / 1000) }'; }
if [ -r /proc/self/status ] && ! grep -q __asan_init "$generate"; then
  for how in "" --speculative "--mode decompressed"; do
    # shellcheck disable=SC2086
    "$generate" "$work/long" --prompt-ids "$ids" --max-tokens 100 --ids --stats $exact $how \
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
passes "long prompt" "$generate" "$work/long" --prompt-ids "$ids" --max-tokens 2 --ids --threads 1
[ ! -s "$work/err" ] || fail "progress without a terminal: $(cat "$work/err")"
if command -v script > "$work/which" && script --version 2>&1 | grep -q util-linux; then
  script -qec "$generate $work/long --prompt-ids $ids,$ids --max-tokens 2 --ids $exact" /dev/null \
    < /dev/null > "$work/terminal"
  grep -q "reading the prompt  \[#*\.*\]  [0-9]* / 4000" "$work/terminal" ||
    fail "no progress on a terminal: $(od -c "$work/terminal" | head)"
  esc=$(printf '\033')
  grep -q "$esc\[K" "$work/terminal" || fail "progress is not erased"
  validation=$model/goldens.safetensors:validation.input_ids
  script -qec "$perplexity $work/long --ids-from $validation $exact" \
    /dev/null < /dev/null > "$work/terminal"
  grep -q "scoring  \[#*\.*\]  [0-9]* / 8192" "$work/terminal" ||
    fail "perplexity shows no progress on a terminal"
fi

# Perplexity: what the goldens state, to their last digit; by default nearly so.
validation=$model/goldens.safetensors:validation.input_ids
# shellcheck disable=SC2086
passes "perplexity" "$perplexity" "$model" --ids-from "$validation" $exact
grep -q "^3\.2750[34][0-9]* nats a token.* 8192 tokens in 32 windows" "$work/out" ||
  fail "perplexity: $(cat "$work/out")"
passes "perplexity with int8" "$perplexity" "$model" --ids-from "$validation" --tokens 512 \
  --precision exact --cache int8
passes "perplexity by default" "$perplexity" "$model" --ids-from "$validation"
grep -q "^3\.27[45][0-9]* nats a token.* 8192 tokens in 32 windows" "$work/out" ||
  fail "perplexity by default: $(cat "$work/out")"
passes "perplexity of few" "$perplexity" "$model" "$work/numbers" --tokens 300 --threads 2
grep -q " 256 tokens in 1 window of 256" "$work/out" || fail "--tokens: $(cat "$work/out")"
refuses "short text" 1 "fewer than a window" "$perplexity" "$model" "$work/prompt"
refuses "no text" 2 "FILE" "$perplexity" "$model"
refuses "long window" 2 "--window 257 is longer" "$perplexity" "$model" "$work/numbers" --window 257
refuses "no tensor" 2 "goldens.safetensors:NAME (--help for usage)" \
  "$perplexity" "$model" --ids-from "$model/goldens.safetensors"
refuses "tensor of floats" 1 "short.logits has dtype F32, expected I32 or I64" \
  "$perplexity" "$model" --ids-from "$model/goldens.safetensors:short.logits"

# The same ids as text and as a tensor of 64 bits.
header='{"ids":{"dtype":"I64","shape":[256],"data_offsets":[0,2048]}}   '
{
  # shellcheck disable=SC2059  # the format is the length, of 64 bytes
  printf "\\$(printf %o ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
  # shellcheck disable=SC2059
  for id in $(seq 0 255); do printf "\\$(printf %o "$id")\\0\\0\\0\\0\\0\\0\\0"; done
} > "$work/ids.safetensors"
seq 0 255 > "$work/ids"
passes "ids in a file" "$perplexity" "$model" --ids-from "$work/ids"
sed 's/, [^,]*$//' "$work/out" > "$work/expected"
passes "ids of 64 bits" "$perplexity" "$model" --ids-from "$work/ids.safetensors:ids"
sed 's/, [^,]*$//' "$work/out" > "$work/actual"
same "ids of 64 bits" "$work/expected" "$work/actual"

# Conformance of whole models; goldens that are wrong, and that are not for this model.
passes "conformance" "$conformance" "$model" "$fp8" "$fp8-ue8m0" "$model-int4"
[ "$(grep -c "  pass$" "$work/out")" -eq 112 ] || fail "conformance: $(cat "$work/out")"
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
