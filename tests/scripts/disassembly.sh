#!/bin/sh
# Instructions that need more than the baseline of x86-64 or AArch64 are in the kernels of the
# instruction set that allows them, and nowhere else: a program that was built without -m flags runs everywhere.
#   disassembly.sh <objdump> <object file or program>...
# Names are left mangled: objdump gives up demangling the longest, and a mangled name begins with
# its namespace even where template arguments name others.
objdump=$1
shift

for file in "$@"; do
  "$objdump" -d --no-show-raw-insn "$file" | awk -v file="$file" '
    BEGIN {
      # By namespace: what an instruction with its operands must not match, and what some must.
      bmi = "^(andn|bextr|bls[irm]|bls(msk)|bzhi|mulx|pdep|pext|rorx|s[ah][lr]x) "
      newer = "^v(pdp|p?popcnt|perm[it]?2?b |aes|pclmul|gf2|pmadd52|pcompress[bw]|pexpand[bw])"
      tiles = "^(t(ile|dp)|[ls][dt]tile)"
      dots = "^v(dpbf16|cvtne)"
      inside["avx2"] = "4avx2"
      inside["avx512"] = "6avx512"
      inside["avx512_bf16"] = "6avx5124bf16"
      inside["amx"] = "6avx5124bf163amx"
      allowed["avx2"] = "ymm"
      never["avx2"] = "zmm|%k[0-7]|mm(1[6-9]|2[0-9]|3[01])|" bmi "|" newer "|" tiles "|" dots
      allowed["avx512"] = "zmm"
      never["avx512"] = bmi "|" newer "|" tiles "|" dots
      allowed["avx512_bf16"] = "vdpbf16ps"
      never["avx512_bf16"] = bmi "|" newer "|" tiles
      allowed["amx"] = "tdpbf16ps"
      never["amx"] = bmi "|" newer
      arm_newer = "^(bf(mmla|dot|mlal|cvt)|[su]+(mmla|dot)|sqrdml|fc(mla|add)|crc32|cas|swp|" \
                  "ld(add|clr|eor|set|[su](max|min)))"
      sve = "[^a-z]z[0-9]+\\.[bhsd]"
      inside["neon"] = "4neon"
      inside["neon_bf16"] = "4neon4bf16"
      allowed["neon"] = "^fmla"
      never["neon"] = arm_newer "|" sve
      allowed["neon_bf16"] = "^bfmmla"
      never["neon_bf16"] = sve
      never["baseline"] = "^v|^k[a-z]+[bwdq] |mm(1[6-9]|2[0-9]|3[01])|[yz]mm|" bmi "|" tiles "|" \
                          arm_newer "|" sve
    }
    /^[0-9a-f]+ <.*>:$/ {
      name = $2
      tier = "baseline"
      for (t in inside)  # the innermost namespace
        if (name ~ "^<_Z+(N[VK]*)?3mla4simd[0-9]+baseline" inside[t] "[0-9]" &&
            (tier == "baseline" || length(inside[t]) > length(inside[tier])))
          tier = t
      functions[tier]++
      next
    }
    /^ +[0-9a-f]+:\t/ {
      instruction = $0
      sub(/^ +[0-9a-f]+:\t/, "", instruction)
      sub(/ *[<#].*/, "", instruction)
      if (instruction ~ never[tier] && !(name in bad)) {
        bad[name] = instruction
        print tier " code must not hold \"" instruction "\": " name
        failures++
      }
      if (tier in allowed && instruction ~ allowed[tier]) seen[tier]++
    }
    END {
      for (t in allowed)
        if (!seen[t] && functions[t]) { print "no " allowed[t] " in " t; failures++ }
      printf "%s: %d functions", file, functions["baseline"]
      for (t in inside) if (functions[t]) printf ", %d of %s", functions[t], t
      printf ", %d out of place\n", failures
      exit failures > 0 || functions["baseline"] == 0
    }' || failed=1
done
exit "${failed:-0}"
