#!/bin/sh
# Fails when an include points up: a header includes its own folder and the earlier ones only; and
# when a header does not have core/compiler.hpp, the root of all, by another header of the library.
# Run in the root of the repository.
loose=$(find include/mla -name '*.hpp' ! -path include/mla/core/compiler.hpp \
             -exec grep -L '^#include "mla/' {} +)
[ -z "$loose" ] || { echo "these include no header of the library: $loose"; exit 1; }
grep -rnE '^[[:space:]]*#[[:space:]]*include' include/mla | awk '
  BEGIN {
    folders = split("core simd ops attention baseline io model text", order, " ")
    for (i = 1; i <= folders; ++i) rank[order[i]] = i
  }
  function fail(why) { print $0 ": " why; failures++ }
  {
    file = $0
    sub(/:.*/, "", file)
    sub(/^include\/mla\//, "", file)
    folder = file ~ /\// ? substr(file, 1, index(file, "/") - 1) : ""
    target = $0
    sub(/.*#[ \t]*include[ \t]*[<"]?/, "", target)
    sub(/[>"].*/, "", target)

    if (folder == "") mine = rank["baseline"]  # mla.hpp: what needs only Eigen and the standard library
    else if (folder in rank) mine = rank[folder]
    else { fail("include/mla/" folder " has no place in the order of folders"); next }

    if (target ~ /^\.\.\//) fail("write the path from include/")
    else if (target ~ /^nlohmann\// && mine < rank["io"]) fail("nlohmann/json begins in io/")
    else if (target ~ /^mla\//) {
      sub(/^mla\//, "", target)
      theirs = target ~ /\// ? rank[substr(target, 1, index(target, "/") - 1)] : 0
      if (!theirs) fail("no such folder, or the umbrella itself")
      else if (theirs > mine) fail("points up")
    }
    checked++
  }
  END {
    print checked + 0 " includes, " failures + 0 " that point the wrong way"
    exit failures > 0 || checked == 0
  }'
