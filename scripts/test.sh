#!/usr/bin/env bash
# Builds everything and runs all tests.
#   scripts/test.sh            with the default compiler, then with clang 16 under sanitizers
#   scripts/test.sh --quick    with the default compiler only
#   scripts/test.sh PRESET...  those of CMakePresets.json: release, clang, asan, tsan, fuzz, debug
# The last line says "<number> passed, <number> failed", over all runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

presets=("$@") dependencies=all
case "${1:-}" in
  "") presets=(release asan tsan) ;;
  --quick) presets=(release) dependencies=test ;;
  -*) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
esac

passed=0 failed=0
finish() {
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}
fail() {
  echo "$1"
  failed=$((failed + 1))
}

# run <preset> [ctest options...]: configures, builds and tests. Passed tests are counted, not shown.
run() {
  local preset=$1 log status total wrong skipped
  log=build/$preset/ctest.log
  shift
  echo "== $preset"
  if ! cmake --preset "$preset" || ! cmake --build --preset "$preset" --parallel "$(nproc)"; then
    fail "$preset: does not build"
    return
  fi
  ctest --preset "$preset" --parallel "$(nproc)" "$@" 2>&1 | tee "$log" |
    grep --line-buffered -vE '^ *(Start +[0-9]+: |[0-9]+/[0-9]+ Test .* Passed )'
  status=${PIPESTATUS[0]}

  # ctest ends with "<percent> tests passed, <wrong> tests failed out of <total>"; a skipped test is
  # not among the wrong ones, nor do we call it passed.
  read -r wrong total < <(sed -n 's/.* \([0-9]*\) tests failed out of \([0-9]*\)$/\1 \2/p' "$log" |
                          tail -n 1)
  if [ -z "${total:-}" ] || { [ "$status" -ne 0 ] && [ "$wrong" -eq 0 ]; }; then
    fail "$preset: the test run broke off"
    return
  fi
  skipped=$(grep -c ' - .* (Skipped)$' "$log")
  failed=$((failed + wrong))
  passed=$((passed + total - wrong - skipped))
  [ "$skipped" -eq 0 ] || echo "$preset: $skipped skipped"
}

scripts/install_dependencies.sh "$dependencies" || { fail "dependencies are missing"; finish; }
for preset in "${presets[@]}"; do
  if [ $# -eq 0 ] && [ "$preset" != release ]; then
    if ! scripts/install_dependencies.sh has-sanitizers; then
      echo "No clang++-16 with its sanitizers here: $preset is not run."
      continue
    fi
    # Once is enough for what does not depend on the compiler.
    run "$preset" --label-exclude '^(consumers|source)$'
  else
    run "$preset"
  fi
done
finish
