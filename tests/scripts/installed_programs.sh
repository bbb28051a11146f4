#!/bin/sh
# The programs of an installed tree are in its bin, and tell its version.
#   installed_programs.sh <prefix> <version>
prefix=$1 version=$2
failures=0
programs="mla-generate mla-inspect mla-perplexity mla-quantise mla-conformance"
[ ! -e "$prefix/bin/mla-server" ] || programs="$programs mla-server"  # not everywhere
for program in $programs; do
  expected="$program $version"
  actual=$("$prefix/bin/$program" --version)
  [ "$actual" = "$expected" ] || {
    echo "FAIL $program --version: \"$actual\", expected \"$expected\""
    failures=$((failures + 1))
  }
done
[ "$failures" -eq 0 ]
