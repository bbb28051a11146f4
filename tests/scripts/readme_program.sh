#!/bin/sh
# The C++ blocks of a document, taken together, are one program that compiles against the installed
# library and runs: their includes first, the rest one after the other in a main() of its own. What a
# block has in a main() is in braces.
#   readme_program.sh <document> <compiler> <prefix> <directory to build in>
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$4"
awk '/^```cpp/ { inside = 1; blocks++; next }
     /^```/    { inside = 0; next }
     !inside   { next }
     /^#include/     { includes = includes $0 "\n"; next }
     /^int main\(\)/ { body = body "{\n"; next }
                     { body = body $0 "\n" }
     END { if (!blocks) exit 1; printf "%s\nint main() {\n%s}\n", includes, body }' "$1" \
  > "$4/program.cpp" || { echo "$1 has no \`\`\`cpp block"; exit 1; }
cd "$4" && ln -sfn "$here/../../models" models  # paths of the document are the repository's
exec sh "$here/pkg_config_program.sh" "$2" "$3" "mla-compiled mla-text" "$4/program" program.cpp \
  -O0 -pthread
