#!/usr/bin/env python3
"""Draws what bench_kernels measured: decode.svg, projections.svg and forms.svg in DIRECTORY, each
if its benchmarks are in the results. Repeated runs count by their median.

    bench_kernels --benchmark_format=json > results.json
    plot_performance.py results.json... DIRECTORY
"""

import json
import math
import os
import statistics
import sys
from dataclasses import dataclass

from line_charts import Panel, Series, draw_figure

TYPES = ["float32", "bfloat16", "float16"]
SPEED = "GFLOP/s (fraction of peak)"


@dataclass
class Run:
    benchmark: str
    arguments: dict  # name -> int
    isa: str  # its name
    counters: dict  # name -> number


def read_runs(paths):
    """One Run for each benchmark and its arguments, with the medians of its counters."""
    repeated = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        for entry in results["benchmarks"]:
            if entry.get("run_type") != "aggregate" and not entry.get("error_occurred"):
                repeated.setdefault(entry["name"], []).append(entry)
    runs = []
    for name, entries in repeated.items():
        benchmark, *rest = name.split("/")
        pairs = [part.split(":") for part in rest if ":" in part]
        arguments = {key: int(value) for key, value in pairs if value.isdigit()}
        numbers = [key for key, value in entries[0].items() if isinstance(value, (int, float))]
        counters = {key: statistics.median(entry[key] for entry in entries) for key in numbers}
        runs.append(Run(benchmark, arguments, entries[0].get("label", ""), counters))
    return runs


def select(runs, benchmark, **arguments):
    return [
        run
        for run in runs
        if run.benchmark == benchmark
        and all(run.arguments.get(key) == value for key, value in arguments.items())
    ]


def speed_series(name, runs, x, dashed=False):
    """GFLOP/s of the runs over their argument x; the last one's fraction of the peak beside it."""
    runs = sorted(runs, key=lambda run: run.arguments[x])
    points = [(run.arguments[x], run.counters["FLOP/s"] / 1e9) for run in runs]
    of_peak = runs[-1].counters.get("of_peak") if runs else None
    label = f"{name} ({of_peak:.2f})" if of_peak and not dashed else name
    return Series(name, points, label, dashed)


def speed_by_isa(runs, benchmark, x, **arguments):
    runs = select(runs, benchmark, **arguments)
    names = {run.arguments["isa"]: run.isa for run in runs}
    all_series = [
        speed_series(name, select(runs, benchmark, isa=isa), x)
        for isa, name in sorted(names.items())
    ]
    return [series for series in all_series if len(series.points) > 1]


def decode_panels(runs):
    shape = {"type": 1, "latent": 512, "rope": 64, "queries": 1, "threads": 1}
    by_context = speed_by_isa(runs, "BM_AbsorbedDecode", "context", heads=128, **shape)
    by_heads = speed_by_isa(runs, "BM_AbsorbedDecode", "heads", context=4096, **shape)
    title = "Absorbed attention, one token, "
    return [
        Panel(title + "128 heads", "context (tokens)", SPEED, by_context),
        Panel(title + "context 4096", "heads", SPEED, by_heads),
    ]


def projection_panels(runs):
    panels = []
    ours = select(runs, "BM_Projection", type=1)
    for inputs, outputs in sorted({(run.arguments["in"], run.arguments["out"]) for run in ours}):
        shape = {"in": inputs, "out": outputs}
        series = speed_by_isa(ours, "BM_Projection", "tokens", threads=1, **shape)
        for name, benchmark in [("oneDNN", "BM_ProjectionOneDnn"), ("Eigen", "BM_ProjectionEigen")]:
            series.append(speed_series(name, select(runs, benchmark, **shape), "tokens", True))
        title = f"Projection {inputs} → {outputs}"
        panels.append(Panel(title, "tokens", SPEED, series, log_y=True))
    return panels


def form_series(context, runs):
    """Time of the absorbed form by that of the other, marked where AttentionForm::automatic switches."""
    runs = sorted(runs, key=lambda run: run.arguments["queries"])
    ratio = [run.counters["absorbed_s"] / run.counters["decompressed_s"] for run in runs]
    points = [(run.arguments["queries"], y) for run, y in zip(runs, ratio)]
    marks = [
        (math.sqrt(points[i - 1][0] * points[i][0]), math.sqrt(ratio[i - 1] * ratio[i]))
        for i in range(1, len(runs))
        if runs[i - 1].counters["automatic"] != runs[i].counters["automatic"]
    ]
    return Series(f"context {context}", points, marks=marks)


def form_panels(runs):
    groups = {}
    for run in select(runs, "BM_AttentionForms"):
        rest = {k: v for k, v in run.arguments.items() if k not in ("context", "queries")}
        groups.setdefault(tuple(sorted(rest.items())), []).append(run)
    panels = []
    for rest, group in sorted(groups.items()):
        arguments = dict(rest)
        title = f"{group[0].isa}, {TYPES[arguments['type']]}, {arguments['heads']} heads"
        if arguments.get("threads", 1) > 1:
            title += f", {arguments['threads']} threads"
        series = [
            form_series(context, select(group, "BM_AttentionForms", context=context))
            for context in sorted({run.arguments["context"] for run in group})
        ]
        y_label = "time absorbed / time decompressed"
        panels.append(Panel(title, "query tokens", y_label, series, log_y=True, line=1.0))
    return panels


def main(arguments):
    if len(arguments) < 2:
        sys.exit(__doc__)
    *results, directory = arguments
    runs = read_runs(results)
    os.makedirs(directory, exist_ok=True)
    figures = {"decode": decode_panels, "projections": projection_panels, "forms": form_panels}
    for name, make_panels in figures.items():
        panels = make_panels(runs)
        for panel in panels:
            panel.series = [series for series in panel.series if series.points]
        panels = [panel for panel in panels if panel.series]
        if not panels:
            continue
        path = os.path.join(directory, name + ".svg")
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(draw_figure(panels))
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
