#!/bin/sh
# Runs the published client library against the server. For developers: it needs node, and the
# package openai in NODE_PATH (npm install --prefix DIR openai; NODE_PATH=DIR/node_modules).
#   openai_client.sh <mla-server> <model> <directory>
server=$1 model=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd) || exit 1
command -v node > /dev/null && [ -n "${NODE_PATH:-}" ] && [ -d "$NODE_PATH/openai" ] || {
  echo "skipped: no node with the package openai in NODE_PATH"
  exit 77
}
mkdir -p "$work" || exit 1
"$server" "$model" --port 0 2> "$work/log" &
pid=$!
trap 'kill $pid; wait $pid' EXIT
url=""
while [ -z "$url" ] && kill -0 $pid 2> "$work/kill"; do
  url=$(sed -n 's/^mla-server: .* on \(http:.*\)$/\1/p' "$work/log")
  sleep 0.1
done
node "$here/openai_client.mjs" "$url/v1"
