#!/bin/sh
# The library exports the functions of a list and nothing else.
#   symbols.sh <nm> <library> <list>
nm=$1 library=$2 list=$3
exported=$("$nm" -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' |
  LC_ALL=C sort)
[ "$exported" = "$(cat "$list")" ] && exit 0
echo "exported by $library, but not in $list (<), or the other way round (>):"
echo "$exported" | diff - "$list"
exit 1
