#!/bin/sh
# Runs a program of node against the server. For developers: it needs node, and an npm package in
# NODE_PATH (npm install --prefix DIR openai playwright-core; NODE_PATH=DIR/node_modules).
#   client.sh <mla-server> <model> <directory> <program.mjs> <package>
server=$1 model=$2 work=$3 program=$4 package=$5
command -v node > /dev/null && [ -n "${NODE_PATH:-}" ] && [ -d "$NODE_PATH/$package" ] || {
  echo "skipped: no node with the package $package in NODE_PATH"
  exit 77
}
rm -rf "$work" && mkdir -p "$work" || exit 1
"$server" "$model" --port 0 2> "$work/log" &
pid=$!
trap 'kill $pid; wait $pid' EXIT
url=""
while [ -z "$url" ] && kill -0 $pid 2> "$work/kill"; do
  url=$(sed -n 's/^mla-server: .* on \(http:.*\)$/\1/p' "$work/log")
  sleep 0.1
done
node "$program" "$url"
