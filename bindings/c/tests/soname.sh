#!/bin/sh
# The SONAME has the number of the interface that the header has.
#   soname.sh <objdump> <library> <header>
abi=$(sed -n 's/^#define MLA_ABI_VERSION \([0-9]*\)$/\1/p' "$3")
soname=$("$1" -p "$2" | awk '$1 == "SONAME" { print $2 }')
[ -n "$abi" ] && [ "$soname" = "libmla.so.$abi" ] || {
  echo "SONAME is $soname, expected libmla.so.$abi"
  exit 1
}
