#!/bin/sh
# Every C++ file is formatted as .clang-format says. Run in the root of the repository.
# Versions of clang-format disagree on details, so only the one that the files were written with
# counts; without it the check is skipped (exit status 77).
version=14
for tool in clang-format-$version clang-format ''; do
  [ -n "$tool" ] || { echo "skipped: no clang-format $version"; exit 77; }
  "$tool" --version 2>/dev/null | grep -q "version $version\." && break
done

# Outside of a git checkout (a release archive) there are no other files than ours.
{ git ls-files '*.hpp' '*.cpp' '*.inl' 2>/dev/null ||
  find include tests bench examples -name '*.hpp' -o -name '*.cpp' -o -name '*.inl'; } |
  while read -r file; do [ ! -f "$file" ] || echo "$file"; done |  # deleted, not yet committed
  xargs "$tool" --dry-run -Werror
