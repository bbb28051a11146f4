#!/usr/bin/env bash
# Builds the programs, lets the small model in models/ write some verse, and shows what its attention
# computes and what latent caching saves. Arguments are passed on to mla-generate.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install_dependencies.sh demo
cmake --preset demo
cmake --build --preset demo --target mla-generate mla-perplexity mla-conformance mla-demo \
  --parallel "$(nproc)"
model=models/tiny-shakespeare-v3
echo
build/demo/examples/mla-generate "$model" --prompt "ROMEO:" --temperature 0.8 --seed 3 --stats \
  --precision exact "$@"
echo
exec build/demo/examples/mla-demo "$model"
