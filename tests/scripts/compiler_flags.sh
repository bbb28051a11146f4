#!/bin/sh
# Flags that the library cannot be compiled with are refused by the first message of the compiler,
# header-only or not, and harmless ones are taken.
#   compiler_flags.sh <compiler> <include folder>
compiler=$1 include=$2
failures=0
case $("$compiler" --version) in *clang*) clang=yes ;; *) clang= ;; esac

# compile <header> <flags...>
compile() {
  header=$1
  shift
  echo "#include \"mla/$header\"" | LC_ALL=C "$compiler" -I "$include" "$@" -fsyntax-only -x c++ - 2>&1
}

fail() {
  echo "$1" | head -n 9
  failures=$((failures + 1))
}

# expect_first <words of the message> <header> <flags...>
expect_first() {
  words=$1 header=$2
  shift 2
  said=$(compile "$header" "$@") && fail "$header is compiled with $*"
  case $(echo "$said" | grep 'error: ' | head -n 1) in
    *"$words"*) ;;
    *) fail "the first error of $header with $* is not about $words: $said" ;;
  esac
}

# refused <words of the message> <flags...>
refused() {
  words=$1
  shift
  expect_first "$words" core/float16.hpp "$@"
  expect_first "$words" core/error.hpp -DMLA_COMPILED "$@"
}

# taken <flags...>
taken() {
  said=$(compile core/float16.hpp "$@") || fail "refused with $*: $said"
}

refused 'needs C++20' -std=c++17
refused 'needs C++20' -std=gnu++14
refused 'needs IEEE arithmetic' -std=c++20 -O2 -ffast-math
refused 'needs IEEE arithmetic' -std=c++20 -Ofast
refused 'needs IEEE arithmetic' -std=c++20 -O2 -ffinite-math-only
if [ -z "$clang" ]; then  # clang does not tell
  refused 'needs IEEE arithmetic' -std=c++20 -fassociative-math -fno-signed-zeros -fno-trapping-math
  refused 'needs IEEE arithmetic' -std=c++20 -funsafe-math-optimizations
  refused 'needs IEEE arithmetic' -std=c++20 -freciprocal-math
fi
taken -std=c++20
taken -std=c++2b
taken -std=c++20 -O3 -fno-math-errno -fno-trapping-math -Wall -Wextra -Wundef -Werror
taken -std=c++20 -O2 -ffast-math -fno-fast-math

[ "$failures" -eq 0 ] && echo "all as expected"
