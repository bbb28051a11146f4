#!/bin/sh
# scripts/plot_performance.py draws what it should of a few made-up results, as well-formed XML and
# the same each time. Run in the root of the repository.
#   plot_performance.sh <build directory>
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
work=$1/tests/plot_performance
rm -rf "$work"
mkdir -p "$work" || exit 1

# One isa at two contexts and two numbers of heads, a repeated run and what must not be drawn; two
# projections beside oneDNN and Eigen; two contexts, of which one crosses over.
python3 - > "$work/results.json" << 'END' || exit 1
import json

benchmarks = []


def add(name, **counters):
    isa = {"1": "avx2", "2": "avx512", "3": "avx512_bf16", "4": "amx"}[name[name.index("isa:") + 4]]
    name += "/min_time:0.300/manual_time"
    benchmarks.append({"name": name, "run_type": "iteration", "label": isa, **counters})


shape = "isa:{}/type:{}/heads:{}/latent:512/rope:64/context:{}/queries:1/threads:{}"
decode = "BM_AbsorbedDecode/" + shape
for isa, heads, context, speed in [
    (2, 128, 1024, 150e9), (2, 128, 4096, 210e9), (2, 16, 4096, 120e9), (2, 128, 4096, 100e9),
    (2, 128, 4096, 200e9), (4, 128, 1024, 700e9), (4, 128, 4096, 880e9)]:
    add(decode.format(isa, 1, heads, context, 1), **{"FLOP/s": speed, "of_peak": speed / 250e9})
add(decode.format(2, 0, 128, 4096, 1), **{"FLOP/s": 1.0, "of_peak": 1.0})  # float32
add(decode.format(2, 1, 128, 4096, 2), **{"FLOP/s": 1.0, "of_peak": 1.0})  # two threads
add(decode.format(1, 1, 128, 4096, 1), **{"FLOP/s": 1.0, "of_peak": 1.0})  # a point is no line
benchmarks.append({**benchmarks[1], "run_type": "aggregate", "of_peak": 0.0})
benchmarks.append({**benchmarks[1], "error_occurred": True, "of_peak": 0.0})
for tokens in 1, 64:
    for out in 1536, 24576:
        shape = f"in:7168/out:{out}/tokens:{tokens}"
        speed = {"FLOP/s": 10e9 * tokens, "of_peak": 0.5}
        add(f"BM_Projection/isa:3/type:1/{shape}/threads:1", **speed)
        add(f"BM_ProjectionOneDnn/isa:3/{shape}", **speed)
        add(f"BM_ProjectionEigen/isa:3/{shape}", **speed)
for context, switch in (1024, 16), (16384, 1000):
    for queries in 1, 4, 16, 64:
        shape = f"isa:4/type:1/heads:128/context:{context}/queries:{queries}/threads:1"
        add("BM_AttentionForms/" + shape, absorbed_s=queries * 1e-3,
            decompressed_s=switch * 1e-3, automatic=float(queries >= switch), loss=1.0)
json.dump({"context": {}, "benchmarks": benchmarks}, open(1, "w"))
END

for run in once again; do
  python3 -B scripts/plot_performance.py "$work/results.json" "$work/$run" || exit 1
done
diff -r "$work/once" "$work/again" || { echo "FAIL not the same twice"; exit 1; }

python3 - "$work/once" << 'END'
import sys
import xml.etree.ElementTree as tree

SVG = "{http://www.w3.org/2000/svg}"
failures = 0


def expect(what, actual, expected):
    global failures
    if actual != expected:
        failures += 1
        print(f"FAIL {what}: {actual}, expected {expected}")


def figure(name, series, points, marks, words):
    root = tree.parse(f"{sys.argv[1]}/{name}.svg").getroot()
    of_class = lambda tag, kind: [e for e in root.iter(SVG + tag) if e.get("class") == kind]
    lines = [line.get("points").split() for line in of_class("polyline", "series")]
    expect(name + ", series", len(lines), series)
    expect(name + ", points", sorted(map(len, lines)), points)
    expect(name + ", marks", len(of_class("polygon", "mark")), marks)
    texts = [element.text for element in root.iter(SVG + "text")]
    for word in words:
        expect(f"{name}, '{word}'", word in texts, True)
    _, _, width, height = map(float, root.get("viewBox").split())
    for x, y in (map(float, point.split(",")) for line in lines for point in line):
        expect(f"{name}, {x} {y} inside", 0 < x < width and 0 < y < height, True)
    return lines


# 0.80 of the peak: the median of 210, 100 and 200 is 200 of 250.
by_context, amx, _ = figure("decode", 3, [2, 2, 2], 0, ["avx512 (0.80)", "heads", "4096"])
expect("amx above avx512", [float(b.split(",")[1]) < float(a.split(",")[1])
                            for a, b in zip(by_context, amx)], [True, True])
figure("projections", 6, [2] * 6, 0, ["Projection 7168 → 1536", "oneDNN", "Eigen"])
# One switch, and its place in the legend.
figure("forms", 2, [4, 4], 2, ["amx, bfloat16, 128 heads", "context 16384", "automatic switches"])
sys.exit(failures > 0)
END
