#!/usr/bin/env bash
# Builds everything and runs all tests.
#   scripts/test.sh            with the default compiler, with clang 16 under its sanitizers, and for
#                              64-bit ARM in an emulator
#   scripts/test.sh --quick    with the default compiler only
#   scripts/test.sh PRESET...  those of CMakePresets.json: release, clang, asan, tsan, fuzz, aarch64
# The last line says "<number> passed, <number> failed", over all runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

case "${1:-}" in
  -*) [ "$*" = --quick ] || { sed -n '2,7s/^# //p' "$0"; exit 2; } ;;
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

# run <preset> <targets> [ctest options...]: configures, builds and tests. Passed tests are counted,
# not shown.
run() {
  local preset=$1 targets=$2 log status total wrong skipped
  log=build/$preset/ctest.log
  shift 2
  echo "== $preset"
  # shellcheck disable=SC2086  # targets are words
  if ! cmake --preset "$preset" ||
      ! cmake --build --preset "$preset" --target $targets --parallel "$(nproc)"; then
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

what=all
[ "${1:-}" != --quick ] || what=test
scripts/install_dependencies.sh $what || { fail "dependencies are missing"; finish; }
if [ $# -gt 0 ] && [ "$1" != --quick ]; then
  for preset in "$@"; do run "$preset" all; done
  finish
fi
run release all
if [ $# -eq 0 ]; then
  # Once is enough for what does not depend on the compiler.
  others=(--label-exclude '^(consumers|source)$')
  if scripts/install_dependencies.sh has-sanitizers; then
    run asan all "${others[@]}"
    run tsan all "${others[@]}"
    # The kernels as clang optimises them.
    run clang "test_simd mla_unoptimised" --label-regex '^simd$'
  elif command -v clang++-16 >/dev/null; then
    echo "clang 16 has no sanitizers here: run without them."
    run clang all "${others[@]}"
  else
    echo "No clang++-16 here: not run a second time."
  fi
  if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null &&
     [ -e /usr/src/googletest/CMakeLists.txt ]; then
    run aarch64 all
  else
    echo "No cross compiler, emulator or GoogleTest sources for 64-bit ARM here: not run there."
  fi
fi
finish
