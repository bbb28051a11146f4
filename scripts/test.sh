#!/usr/bin/env bash
# Builds everything and runs all tests.
#   scripts/test.sh          with the default compiler, then with clang 16
#   scripts/test.sh --quick  with the default compiler only
# The last line says "<number> passed, <number> failed", over both runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

quick=false
case "${1:-}" in
  "") ;;
  --quick) quick=true ;;
  *) sed -n '2,5s/^# //p' "$0"; exit 2 ;;
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

scripts/install_dependencies.sh "$($quick && echo test || echo all)" ||
  { fail "dependencies are missing"; finish; }
run release
if ! $quick; then
  if command -v clang++-16 >/dev/null; then
    # Once is enough for what does not depend on the compiler.
    run clang --label-exclude '^(consumers|source)$'
  else
    echo "No clang++-16 here: not run a second time."
  fi
fi
finish
