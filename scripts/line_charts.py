"""Line charts as SVG, with nothing but the standard library: legible on light and dark pages."""

import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe, Ito
WIDTH, HEIGHT = 300, 230  # of a panel's axes
LEFT, RIGHT, TOP, BOTTOM = 72, 155, 34, 52  # around them
LEGEND = 34  # height
PANELS_IN_A_ROW = 2


@dataclass
class Series:
    name: str
    points: list  # (x, y), rising in x
    label: str = ""  # beside its end; the name if empty
    dashed: bool = False
    marks: list = field(default_factory=list)  # (x, y) of diamonds


@dataclass
class Panel:
    title: str
    x_label: str
    y_label: str
    series: list
    log_y: bool = False
    line: float = None  # a horizontal one


def text(x, y, words, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def number(value):
    return f"{value:g}" if value < 1e5 else f"{value:.0f}"


def log_ticks(low, high):
    """1, 2, 5, 10, ... from the last at or below `low` to the first at or above `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    first = max(tick for tick in ticks if tick <= low * 1.001)
    last = min(tick for tick in ticks if tick >= high * 0.999)
    return [tick for tick in ticks if first <= tick <= last]


def linear_ticks(high):
    step = 10.0 ** math.floor(math.log10(high))
    step = next(step * factor for factor in (0.2, 0.5, 1.0, 2.0) if high / (step * factor) <= 5)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def spread(places, lowest, gap=15.0):
    """The places of labels, in their order but no closer than `gap` and none below `lowest`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in zip(order, order[1:]):
        moved[i] = max(moved[i], moved[before] + gap)
    for rank, i in enumerate(reversed(order)):
        moved[i] = min(moved[i], lowest - rank * gap)
    return moved


class Axes:
    """Where a panel's numbers are, its upper left corner being (0, 0)."""

    def __init__(self, panel):
        points = [point for series in panel.series for point in series.points]
        self.xs = sorted({x for x, _ in points})
        ys = [y for _, y in points] + ([panel.line] if panel.line else [])
        self.ticks = log_ticks(min(ys), max(ys)) if panel.log_y else linear_ticks(max(ys))
        self.scale_y = math.log if panel.log_y else float

    def x(self, x):
        first, last = math.log(self.xs[0]), math.log(self.xs[-1])
        return LEFT + WIDTH * (math.log(x) - first) / ((last - first) or 1.0)

    def y(self, y):
        low, high = self.scale_y(self.ticks[0]), self.scale_y(self.ticks[-1])
        return TOP + HEIGHT * (high - self.scale_y(y)) / ((high - low) or 1.0)


def draw_axes(panel, axes):
    right, bottom = LEFT + WIDTH, TOP + HEIGHT
    yield text(LEFT, TOP - 14, panel.title, extra=' class="title"')
    for tick in axes.ticks:
        y = axes.y(tick)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield text(LEFT - 8, y + 4, number(tick), "end")
    if panel.line:
        y = axes.y(panel.line)
        yield f'<line class="axis" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
    yield f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    every = math.ceil(len(axes.xs) / 7)
    for tick in axes.xs[::every]:
        yield text(axes.x(tick), bottom + 18, number(tick), "middle")
    yield text(LEFT + WIDTH / 2, bottom + 40, panel.x_label, "middle")
    turned = f' transform="rotate(-90 14 {TOP + HEIGHT / 2})"'
    yield text(14, TOP + HEIGHT / 2, panel.y_label, "middle", turned)


def draw_series(series, color, axes, label_y):
    places = [(axes.x(x), axes.y(y)) for x, y in series.points]
    dash = ' stroke-dasharray="6 4"' if series.dashed else ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="series" stroke="{color}"{dash} points="{line}"/>'
    for x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'
    for x, y in ((axes.x(x), axes.y(y)) for x, y in series.marks):
        corners = f"{x - 7:.1f},{y:.1f} {x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f}"
        yield f'<polygon class="mark" stroke="{color}" points="{corners}"/>'
    x, y = places[-1]
    yield f'<line stroke="{color}" x1="{x:.1f}" y1="{y:.1f}" x2="{x + 16:.1f}" y2="{label_y:.1f}"/>'
    yield text(x + 20, label_y + 4, series.label or series.name)


def draw_panel(panel, colors):
    axes = Axes(panel)
    yield from draw_axes(panel, axes)
    ends = [axes.y(series.points[-1][1]) for series in panel.series]
    labels = spread(ends, TOP + HEIGHT - 4)
    for series, label_y in zip(panel.series, labels):
        yield from draw_series(series, colors[series.name], axes, label_y)


def draw_legend(panels, colors):
    dashed = {series.name for panel in panels for series in panel.series if series.dashed}
    x = LEFT
    for name, color in colors.items():
        dash = ' stroke-dasharray="6 4"' if name in dashed else ""
        ends = f'x1="{x}" y1="20" x2="{x + 24}" y2="20"'
        yield f'<line stroke="{color}" stroke-width="2.5"{dash} {ends}/>'
        yield text(x + 30, 24, name)
        x += 30 + 8 * len(name) + 16
    if any(series.marks for panel in panels for series in panel.series):
        corners = f"{x},20 {x + 7},13 {x + 14},20 {x + 7},27"
        yield f'<polygon class="mark" stroke="#333" points="{corners}"/>'
        yield text(x + 20, 24, "automatic switches")


STYLE = (
    "text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.grid{stroke:#ddd}"
    ".axis{stroke:#555}.series{fill:none;stroke-width:2.5}.mark{fill:#fff;stroke-width:2}"
)


def draw_figure(panels):
    """An SVG of all panels, in rows, on a background of its own."""
    columns = min(len(panels), PANELS_IN_A_ROW)
    cell = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM)
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    width, height = columns * cell[0], LEGEND + math.ceil(len(panels) / columns) * cell[1]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
        *draw_legend(panels, colors),
    ]
    for i, panel in enumerate(panels):
        x, y = i % columns * cell[0], LEGEND + i // columns * cell[1]
        lines += [f'<g transform="translate({x} {y})">', *draw_panel(panel, colors), "</g>"]
    return "\n".join([*lines, "</svg>", ""])
