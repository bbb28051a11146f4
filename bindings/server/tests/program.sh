#!/bin/sh
# mla-server as a person starts and ends it: it says where it is, serves, refuses wrong usage in one
# line, and ends at a signal with what was running told so.
#   program.sh <mla-server> <models> <directory>
server=$1 model=$2/tiny-shakespeare-v3 work=$3
failures=0
rm -rf "$work" && mkdir -p "$work" || exit 1
fail() {
  echo "FAIL $*"
  failures=$((failures + 1))
}
refuses() { # what, exit status, text, arguments
  what=$1 status=$2 text=$3
  shift 3
  "$server" "$@" > "$work/out" 2> "$work/err"
  actual=$?
  [ "$actual" -eq "$status" ] || fail "$what: exit status $actual, expected $status"
  grep -qF -- "$text" "$work/err" || fail "$what: no \"$text\" in: $(cat "$work/err")"
  [ "$(wc -l < "$work/err")" -eq 1 ] || fail "$what: $(cat "$work/err")"
}
"$server" --version | grep -q '^mla-server [0-9]' || fail "version"
"$server" --help | grep -q -- --api-key-file || fail "help"
refuses "no model" 2 "one MODEL_DIR is needed"
refuses "port" 2 "--port must be at most 65535" "$model" --port 70000
refuses "drafts" 2 "--drafts needs --lookup" "$model" --drafts 3
refuses "lookup" 2 "--lookup must be at most 32" "$model" --lookup 33
refuses "template" 1 "$work/nothing" "$model" --chat-template "$work/nothing"
refuses "limit" 2 "--time-limit must be a whole number from 1 on" "$model" --time-limit 0
refuses "choices" 2 "--max-choices must be a whole number from 1 on" "$model" --max-choices 0
refuses "model" 1 "not a directory with a model" "$work/nothing"
printf 'two\nlines\n' > "$work/key"
refuses "key" 1 "must have one line" "$model" --api-key-file "$work/key"
"$server" "$model" --host 192.0.2.1 > "$work/out" 2> "$work/err" && fail "a host that is not here"
grep -q "cannot listen on 192.0.2.1" "$work/err" || fail "host: $(cat "$work/err")"

[ "$failures" -eq 0 ] || exit 1
for signal in INT TERM; do
  echo secret > "$work/key"
  : > "$work/err"  # or the server before this one would be asked
  "$server" "$model" --port 0 --api-key-file "$work/key" --max-choices 2 --lookup 2 \
    2> "$work/err" &
  pid=$!
  url=""
  while [ -z "$url" ] && kill -0 $pid 2> "$work/kill"; do
    url=$(sed -n 's/^mla-server: .* on \(http:.*\)$/\1/p' "$work/err")
    sleep 0.05
  done
  grep -qE '^mla-server: [0-9]+ threads?, ' "$work/err" || fail "does not say how it computes"
  if command -v curl > "$work/curl"; then
    post() { # path, body
      curl -sS --max-time 60 "$url$1" -H 'Content-Type: application/json' \
        -H 'Authorization: Bearer secret' -d "$2"
    }
    post /v1/completions '{"model":"tiny-shakespeare-v3","prompt":"ROMEO:","max_tokens":5}' |
      grep -q '"completion_tokens":5' || fail "curl gets no completion"
    post /v1/chat/completions '{"model":"tiny-shakespeare-v3","stream":true,"max_tokens":5,
      "messages":[{"role":"user","content":"Hi"}]}' | grep -qx 'data: \[DONE\]' ||
      fail "curl gets no stream"
    curl -sS --max-time 60 "$url/metrics" | grep -q invalid_api_key || fail "the key is not asked for"
    curl -sS --max-time 60 "$url/health" | grep -q '"status":"ok"' || fail "health"
  fi
  kill -$signal $pid
  wait $pid
  status=$?
  [ $status -eq 0 ] || fail "SIG$signal: exit status $status"
done
[ "$failures" -eq 0 ]
