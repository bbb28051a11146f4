#!/bin/sh
# The first C++ block of the README that has a main() compiles with a plain command line against the
# installed library, and runs.
#   readme_program.sh <compiler> <prefix> <directory to build in>
here=$(dirname "$0")
mkdir -p "$3"
awk '/^```cpp/ { inside = 1; block = ""; next }
     /^```/    { if (inside && block ~ /int main/) { found = 1; exit } inside = 0 }
     inside    { block = block $0 "\n" }
     END       { if (found) printf "%s", block; else exit 1 }' "$here/../../README.md" \
  > "$3/readme.cpp" || { echo "README.md has no \`\`\`cpp block with int main"; exit 1; }
exec sh "$here/pkg_config_program.sh" "$1" "$2" mla "$3/readme" "$3/readme.cpp"
