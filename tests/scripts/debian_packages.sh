#!/bin/sh
# The Debian packages can be made, and have what they should.
#   debian_packages.sh <cpack> <build directory> <directory> <version>
cpack=$1 build=$2 work=$3 version=$4
command -v dpkg-deb > /dev/null && command -v dpkg-shlibdeps > /dev/null || {
  echo "skipped: no dpkg-dev"
  exit 77
}
failures=0
fail() {
  echo "FAIL $*"
  failures=$((failures + 1))
}
rm -rf "$work" && mkdir -p "$work" || exit 1
"$cpack" -G DEB --config "$build/CPackConfig.cmake" -B "$work" > "$work/log" 2>&1 || {
  cat "$work/log"
  exit 1
}
has() { # package, path
  dpkg-deb -c "$work"/"$1"_*.deb | grep -q "\./usr/$2" || fail "$1 has no $2"
}
lacks() { # package, pattern
  if dpkg-deb -c "$work"/"$1"_*.deb | grep -q "$2"; then fail "$1 has $2"; fi
}
field() { # package, field, pattern
  dpkg-deb -f "$work"/"$1"_*.deb "$2" | grep -q "$3" || fail "$1: $2 does not say $3"
}
has libmla-dev include/mla/mla.hpp
has libmla-dev include/mla.h
has libmla-dev 'lib.*/libmla.so -> '
has libmla-dev 'lib.*/libmla_compiled.a'
has libmla-dev 'lib.*/pkgconfig/mla-c.pc'
has libmla-dev 'lib.*/cmake/mla/mlaConfig.cmake'
field libmla-dev Depends "libmla1 (= $version)"
has libmla1 'lib.*/libmla.so.1'
lacks libmla1 include
field libmla1 Depends libc6
field libmla1 Version "$version"
has mla-programs bin/mla-generate
has mla-programs bin/mla-inspect
lacks mla-programs /lib/
field mla-programs Depends libpcre2
rm -rf "$work/_CPack_Packages"
[ "$failures" -eq 0 ]
