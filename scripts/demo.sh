#!/usr/bin/env bash
# Builds the demo and runs it on the small model in models/. Arguments are passed on to the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install_dependencies.sh demo
cmake --preset demo
cmake --build --preset demo --target mla-demo --parallel "$(nproc)"
exec build/demo/examples/mla-demo models/tiny-shakespeare-v3 "$@"
