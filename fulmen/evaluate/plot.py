"""The curves of studies as an SVG: accuracy against the tokens of a run, with 95 % intervals.

Each study has a panel of its own, all of them the same axes. Beside a run whose thought grows stand
votes whose number grows; what lies above each other costs the same.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fulmen import svg

_HEADER, _FOOTER = 86, 70
"""Space above and below all panels"""
_GAP_X, _GAP_Y = 70, 66
"""Space to the left of a panel, and between two rows of them"""
_WIDE, _NARROW = (550, 314), (380, 230)
"""Width and height of the only panel, and of one of several"""
_COLUMNS = 2
_LONGEST_NAME = 44
_LABELS: Final = {
    "fork": "one thought",
    "separate": "separate runs",
    "majority": "majority vote",
    "likeliest": "likeliest of n",
    "any": "any of n",
}
_LIGHT: Final = {
    "back": "#ffffff",
    "ink": "#1c2330",
    "soft": "#5b6678",
    "grid": "#e3e7ee",
    "fork": "#d1495b",
    "separate": "#2b6cb0",
    "majority": "#2f855a",
    "likeliest": "#b7791f",
    "any": "#8a94a6",
}
_DARK: Final = {
    "back": "#12161d",
    "ink": "#e8ecf3",
    "soft": "#9aa5b8",
    "grid": "#2a313d",
    "fork": "#ff7b8b",
    "separate": "#6ea3ff",
    "majority": "#5fd39a",
    "likeliest": "#e5b454",
    "any": "#6b7587",
}
_STYLE: Final = """\
text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif }
.title { font-size: 18px; font-weight: 600 }
.end { text-anchor: end }
.middle { text-anchor: middle }
.curve { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.any.curve { stroke-dasharray: 5 4 }
.bar { stroke-width: 1.5 }
.panel { font-weight: 600 }"""
_RULES: Final = {
    "back": ".back { fill: %s }",
    "ink": "text { fill: %s }",
    "soft": ".soft { fill: %s } .axis { stroke: %s }",
    "grid": ".grid { stroke: %s }",
} | {kind: f".{kind} {{ stroke: %s }} .{kind}.dot {{ fill: %s }}" for kind in _LABELS}


class _Point(NamedTuple):
    tokens: float
    mean: float
    low: float
    high: float


class _Line(NamedTuple):
    """A kind of runs at growing cost."""

    kind: str
    mark: int
    """Place of the votes' budget among those of its study, which the shape of the dots tells"""
    vote_budget: int | None
    points: list[_Point]


@dataclass(frozen=True, slots=True)
class _Panel:
    """The place of one study, with tokens spaced evenly in their logarithm."""

    left: float
    top: float
    width: float
    height: float
    lowest: float
    """Logarithms of tokens at both ends"""
    highest: float

    def x(self, tokens: float) -> float:
        share = (math.log2(tokens) - self.lowest) / (self.highest - self.lowest)
        return round(self.left + self.width * share, 2)

    def y(self, accuracy: float) -> float:
        return round(self.top + self.height * (1 - accuracy), 2)

    def ticks(self) -> list[int]:
        """Return about ten powers of two at most; a curve may have tokens between them."""
        powers = range(math.ceil(self.lowest), math.floor(self.highest) + 1)
        step = max(1, math.ceil(len(powers) / (self.width / 50)))
        return [2**power for power in powers if power >= 0][::step]


def plot_svg(*summaries: Mapping[str, Any]) -> str:
    """Draw what `summarize` returns of one study or of several: tokens on a logarithmic axis,
    accuracy from 0 to 1."""
    drawn = [_lines(summary) for summary in summaries]
    title, names = _names([summary["about"] for summary in summaries])
    panels = _panels(drawn)
    right, bottom = panels[min(len(panels), _COLUMNS) - 1], panels[-1]
    edge = right.left + right.width
    legend = _legend_lines(line for lines in drawn for line in lines)
    longest = max(len(label) for label, _ in legend)
    thoughts = " or ".join(sorted({str(each["about"]["num_thoughts"]) for each in summaries}))
    counts = " or ".join(str(count) for count in sorted({each["num_tasks"] for each in summaries}))
    body = [
        svg.text(_GAP_X, 34, title, "title"),
        svg.text(_GAP_X, 58, f"{counts} tasks, {thoughts} thoughts each; bars: 95 %", "soft"),
    ]
    for panel, name, lines in zip(panels, names, drawn, strict=True):
        body += _frame(panel)
        if name:
            body.append(svg.text(panel.left, panel.top - 10, name, "panel"))
        for place, line in reversed(list(enumerate(lines))):
            # Side by side, so that bars at one place can be told apart.
            body += _curve(line, panel, shift=3.0 * (place - (len(lines) - 1) / 2))
    for place, (label, line) in enumerate(legend):
        body += _legend_entry(label, line, edge + 14, _HEADER + 20 + 26 * place)
    label = "tokens of a run, thought and answer together"
    middle = (_GAP_X + edge) / 2
    body.append(svg.text(middle, bottom.top + bottom.height + 46, label, "soft middle"))
    return svg.page(
        round(max(edge + 50 + 7.5 * longest, _GAP_X + 11 * len(title))),
        round(bottom.top + bottom.height + _FOOTER),
        title=title,
        style=svg.style_sheet(_STYLE, _RULES, _LIGHT, _DARK),
        body=body,
    )


def _names(about: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return the title of all, and those of the panels."""
    models = [_shortened(str(each["model"])) for each in about]
    title = "Accuracy against thinking: "
    if len(about) == 1:
        return f"{title}{models[0]} on {about[0]['task']}", [""]
    if len(set(models)) == 1:
        return f"{title}{models[0]}", [str(each["task"]) for each in about]
    pairs = zip(models, about, strict=True)
    return title.rstrip(": "), [f"{model} on {each['task']}" for model, each in pairs]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[-_LONGEST_NAME:]}"


def _lines(summary: Mapping[str, Any]) -> list[_Line]:
    """Return the lines of a study that have points."""
    rows, votes = summary["budgets"], summary["votes"]
    lines = [
        _Line(kind, 0, None, [_Point(row[kind]["tokens"], **row[kind]["accuracy"]) for row in rows])
        for kind in ("fork", "separate")
        if kind in rows[0]
    ]
    for mark, budget in enumerate(dict.fromkeys(each["budget"] for each in votes)):
        for kind in ("majority", "likeliest", "any"):
            points = [
                _Point(each["tokens"], **each[kind])
                for each in votes
                if each["budget"] == budget and each[kind] is not None
            ]
            if points:
                lines.append(_Line(kind, mark, budget, points))
    return lines


def _panels(drawn: Sequence[Sequence[_Line]]) -> list[_Panel]:
    """Return a place for each study, in rows; the axes are those of all."""
    tokens = [point.tokens for lines in drawn for line in lines for point in line.points]
    lowest, highest = math.log2(min(tokens)) - 0.25, math.log2(max(tokens)) + 0.25
    width, height = _WIDE if len(drawn) == 1 else _NARROW
    top = _HEADER if len(drawn) == 1 else _HEADER + 16
    return [
        _Panel(
            _GAP_X + (place % _COLUMNS) * (width + _GAP_X),
            top + (place // _COLUMNS) * (height + _GAP_Y),
            *(width, height, lowest, highest),
        )
        for place in range(len(drawn))
    ]


def _frame(panel: _Panel) -> Iterator[str]:
    left, right = panel.left, panel.left + panel.width
    bottom = panel.top + panel.height
    for tenths in range(0, 11, 2):
        y = panel.y(tenths / 10)
        yield svg.line(left, y, right, y, "grid" if tenths else "axis")
        yield svg.text(left - 10, y + 4, f"{tenths / 10:.1f}", "soft end")
    for tokens in panel.ticks():
        x = panel.x(tokens)
        yield svg.line(x, bottom, x, bottom + 5, "axis")
        yield svg.text(x, bottom + 21, f"{tokens:,}", "soft middle")
    turned = f"translate({left - 46} {panel.top + panel.height / 2}) rotate(-90)"
    yield f'<text class="soft middle" transform="{turned}">accuracy</text>'


def _curve(line: _Line, panel: _Panel, *, shift: float) -> Iterator[str]:
    places = [(round(panel.x(point.tokens) + shift, 2), point) for point in line.points]
    path = "L".join(f"{x} {panel.y(point.mean)}" for x, point in places)
    yield f'<path class="{line.kind} curve" d="M{path}"/>'
    for x, point in places:
        if line.kind != "any":  # only an upper bound on what voting could reach
            yield svg.line(x, panel.y(point.low), x, panel.y(point.high), f"{line.kind} bar")
        yield _dot(line, x, panel.y(point.mean))


def _dot(line: _Line, x: float, y: float) -> str:
    """Return a circle, a square, a diamond or a triangle, by the place of the votes' budget."""
    if line.mark % 4 == 0:
        return f'<circle class="{line.kind} dot" cx="{x}" cy="{y}" r="3.5"/>'
    shape = ("m-3.5-3.5h7v7h-7z", "m0-5l5 5l-5 5l-5-5z", "m0-5l5 8h-10z")[line.mark % 4 - 1]
    return f'<path class="{line.kind} dot" d="M{x} {y}{shape}"/>'


def _legend_lines(lines: Iterable[_Line]) -> list[tuple[str, _Line]]:
    """Return each kind of line once, with its label."""
    known = {(line.kind, line.vote_budget): line for line in lines}
    has_several = len({budget for _, budget in known} - {None}) > 1
    places = {kind: place for place, kind in enumerate(_LABELS)}
    found = []
    for kind, budget in sorted(known, key=lambda key: (places[key[0]], key[1] or 0)):
        each = "" if budget is None or not has_several else f", {budget:,} each"
        found.append((f"{_LABELS[kind]}{each}", known[kind, budget]))
    return found


def _legend_entry(label: str, line: _Line, left: float, y: float) -> Iterator[str]:
    yield f'<path class="{line.kind} curve" d="M{left} {y}h24"/>'
    yield _dot(line, left + 12, y)
    yield svg.text(left + 32, y + 4.5, label)
